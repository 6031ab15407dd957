"""Where rows with rationales come from: files of JSON lines, and the public data sets GSM8K, SVAMP, ASDiv and CommonsenseQA."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datamodules.hub import ROWS_AT_A_TIME, HubDataset, batches
from datamodules.rationales import BadRow, Rationale, RowCheck, carve, rows_of_file, sift, with_splits
from datamodules.rows import DataError
from datamodules.sources import expand

_CALCULATION = re.compile(r"<<[^>]*>>")  # GSM8K's notes for a calculator


@dataclass(frozen=True)
class PublicSet:
    """A data set as the Hub has it: which of its splits become ours, and how its rows become question, rationale and answer.

    `valid_share` and `test_share` of the training rows are held out where the set has no such split, chosen by a seeded hash, so that the
    splits have the sizes of the KPOD paper.
    """

    name: str
    subset: str | None
    splits: dict[str, str]  # of the data set -> train, valid or test
    row: Callable[[dict[str, Any]], dict[str, Any]]
    halved: bool = False  # the test split is shared out between valid and test
    valid_share: float = 0.0
    test_share: float = 0.0


def _gsm8k(row: dict[str, Any]) -> dict[str, Any]:
    rationale, _, answer = row["answer"].rpartition("####")
    return {"question": row["question"], "rationale": _CALCULATION.sub("", rationale), "answer": answer}


def _svamp(row: dict[str, Any]) -> dict[str, Any]:
    return {"id": row["ID"], "question": f"{row['Body'].strip().removesuffix('.')}. {row['Question'].strip()}", "answer": row["Answer"]}


def _asdiv(row: dict[str, Any]) -> dict[str, Any]:
    """Join body and question; the answer's unit, in brackets behind it, is left out."""
    return {"question": f"{row['body'].strip()} {row['question'].strip()}", "answer": row["answer"].partition("(")[0]}


def _commonsenseqa(row: dict[str, Any]) -> dict[str, Any]:
    options = zip(row["choices"]["label"], row["choices"]["text"], strict=True)
    return {"id": row["id"], "question": with_options(row["question"], dict(options)), "answer": row["answerKey"]}


def with_options(question: str, options: dict[str, str]) -> str:
    """Write the options of a question below it, a letter and a full stop before each; the answer is the letter."""
    return "\n".join([f"{question} Answer Choices:", *(f"{letter}. {text}" for letter, text in options.items())])


PUBLIC = {
    "gsm8k": PublicSet("openai/gsm8k", "main", {"train": "train", "test": "test"}, _gsm8k, halved=True),
    "svamp": PublicSet("ChilleD/SVAMP", None, {"train": "train", "test": "test"}, _svamp, halved=True),
    "asdiv": PublicSet("EleutherAI/asdiv", None, {"validation": "train"}, _asdiv, valid_share=313 / 2089, test_share=314 / 2089),
    "commonsenseqa": PublicSet("tau/commonsense_qa", None, {"train": "train", "validation": "test"}, _commonsenseqa,
                               valid_share=1221 / 9741),
}


@dataclass(frozen=True)
class Copy:
    """Where a public data set is read: a name on the Hub or a folder laid out like it; None: the original."""

    place: str | None = None
    subset: str | None = None
    revision: str | None = None

    def of(self, public: PublicSet) -> HubDataset:
        """Return the data set to read."""
        return HubDataset(self.place or public.name, self.subset or (None if self.place else public.subset), self.revision)


def hub_rows(dataset: str, copy: Copy, check: RowCheck, seed: int) -> tuple[list[Rationale], list[BadRow]]:
    """Read a public data set from the Hub or a folder, with splits of the paper's sizes."""
    if dataset not in PUBLIC:
        raise DataError(f"data.dataset={dataset}: is not known on the Hub; write one of: {', '.join(PUBLIC)}, or give files")
    public = PUBLIC[dataset]
    source = copy.of(public)
    rows, bad = [], []
    for theirs, ours in public.splits.items():
        sifted = sift(_numbered(_split(source, theirs, public), f"{source}, {theirs}", theirs, public.row), check)
        rows += [replace(row, id=f"{dataset}-{row.id}", split=ours, source=row.source or source.name) for row in sifted.good]
        bad += sifted.bad
    return _paper_sizes(rows, public, seed), bad


def _split(source: HubDataset, name: str, public: PublicSet) -> Any:
    try:
        return source.split(name, "data.hub")
    except DataError as error:
        what, found, _ = str(error).partition("; set data.hub")
        raise DataError(f"{what}; give a copy with the splits {' and '.join(public.splits)}" if found else str(error)) from None


def _numbered(split: Any, label: str, name: str, adapt: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    rows = (dict(zip(table, values)) for table in batches(split, ROWS_AT_A_TIME, label) for values in zip(*table.values()))
    for number, row in enumerate(rows, start=1):
        where = f"{name}:{number}"
        try:
            yield where, adapt(row)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            yield where, BadRow(where, f"is not as in that data set ({type(error).__name__}: {error})", row)


def _paper_sizes(rows: list[Rationale], public: PublicSet, seed: int) -> list[Rationale]:
    if public.halved:
        held_out = carve([replace(row, split="train") for row in rows if row.split == "test"], 0.5, "valid", seed)
        return [row for row in rows if row.split == "train"] + [replace(row, split="test") if row.split == "train" else row
                                                                for row in held_out]
    if public.test_share:
        rows = carve(rows, public.test_share, "test", seed)
    return carve(rows, public.valid_share / (1 - public.test_share), "valid", seed + 1)


def folder_rows(root: str, dataset: str, check: RowCheck, share: float, seed: int) -> tuple[list[Rationale], list[BadRow]]:
    """Read DATASET.jsonl in a folder, or the file that `root` is; rows say their split, or it is made by hash."""
    path = Path(root).expanduser().resolve()
    if path.is_dir():
        found = sorted(file.stem for file in path.glob("*.jsonl"))
        if dataset not in found:
            listed = f"set data.dataset to one of: {', '.join(found)}" if found else "there is no .jsonl file in it"
            raise DataError(f"{root}: has no {dataset}.jsonl; {listed}")
        path = path / f"{dataset}.jsonl"
    elif not path.is_file():
        raise DataError(f"{root}: no such folder; data.root is a folder with {dataset}.jsonl, or such a file, relative to {Path.cwd()}")
    sifted = sift(rows_of_file(path), check)
    return with_splits([_named(row, path) for row in sifted.good], share, seed), sifted.bad


def file_rows(files: dict[str, list[str]], check: RowCheck, share: float, seed: int) -> tuple[list[Rationale], list[BadRow]]:
    """Read the files of each split; what the rows say about splits does not count. Without validation files a share is held out."""
    rows: list[Rationale] = []
    bad: list[BadRow] = []
    for split, patterns in files.items():
        for path in expand(patterns, split):
            sifted = sift(rows_of_file(path), check)
            rows += [replace(_named(row, path), split=split) for row in sifted.good]
            bad += sifted.bad
    return (rows if files["valid"] else carve(rows, share, "valid", seed)), bad


def _named(row: Rationale, path: Path) -> Rationale:
    return row if row.source else replace(row, source=path.name)
