"""Questions with step-by-step rationales: rows of JSON lines, each checked, the bad ones named and set aside, and the paper's splits."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from datamodules.rows import DataError
from datamodules.steps import Splitter, split_steps
from datamodules.text import open_file

log = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
_SPLIT_NAMES = {"train": "train", "dev": "valid", "val": "valid", "valid": "valid", "validation": "valid", "test": "test"}
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_SHOWN = 3  # bad rows that the warning names; the file holds all

AnswerKind = Literal["number", "letter", "text"]


@dataclass(frozen=True)
class Rationale:
    """A question, the steps of its rationale (none where an evaluation row has no rationale) and the answer.

    `correct` says whether the rationale reaches the answer, where that is known.
    """

    id: str
    question: str
    steps: tuple[str, ...]
    answer: str
    split: str  # train, valid, test, or empty where the row does not say
    source: str
    correct: bool | None = None


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: where it stands (file:line), why, and the row as far as it could be read."""

    where: str
    reason: str
    row: Any


@dataclass
class Sifted:
    """Rows that passed the check, and those that did not."""

    good: list[Rationale] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)


class RowError(ValueError):
    """Why one row cannot be used."""


@dataclass(frozen=True)
class RowCheck:
    """What a row must have, and how its rationale is cut into steps."""

    answers: AnswerKind = "number"
    splitter: Splitter = "sentence"
    max_steps: int | None = None

    def rationale(self, row: Any, where: str) -> Rationale:
        """Turn a row into a Rationale; raise RowError with the reason if it cannot be used. `where` is its id if it has none."""
        if not isinstance(row, dict):
            raise RowError(f"{type(row).__name__} instead of an object")
        question, answer = self._text(row, "question"), self._answer(row)
        text = row.get("rationale")
        if text is not None and not isinstance(text, str):
            raise RowError(f"'rationale' is {type(text).__name__} instead of a string")
        _check_characters(text or "", "rationale")
        steps = split_steps(text or "", self.splitter, self.max_steps)
        if text and text.strip() and not steps:
            raise RowError("no steps: the rationale has neither letters nor digits")
        source = row.get("source")
        return Rationale(str(row.get("id") or where), question, steps, answer, self._split(row),
                         source if isinstance(source, str) else "", self._correct(row, steps, answer))

    def taught(self, row: Rationale, text: str, source: str) -> Rationale:
        """Give a row a rationale that somebody else wrote."""
        steps = split_steps(text, self.splitter, self.max_steps)
        return replace(row, steps=steps, source=source, correct=reaches(steps, row.answer) if self.answers == "number" else None)

    def _text(self, row: dict[str, Any], key: str) -> str:
        if key not in row:
            raise RowError(f"no key '{key}'; the row has: {', '.join(sorted(map(str, row))) or '(no keys)'}")
        value = row[key]
        if not isinstance(value, str):
            raise RowError(f"'{key}' is {'null' if value is None else type(value).__name__} instead of a string")
        if not value.strip():
            raise RowError(f"'{key}' is empty")
        _check_characters(value, key)
        return value.strip()

    def _answer(self, row: dict[str, Any]) -> str:
        value = row.get("answer")
        if self.answers == "number" and isinstance(value, int | float) and not isinstance(value, bool):
            value = repr(value).removesuffix(".0")
        text = self._text({**row, "answer": value} if "answer" in row else row, "answer")
        if self.answers == "number":
            plain = text.replace(",", "").removeprefix("$")
            if not _NUMBER.fullmatch(plain):
                raise RowError(f"'answer' is {text!r} instead of a number")
            return plain
        if self.answers == "letter" and not re.fullmatch(r"[A-Z]", text):
            raise RowError(f"'answer' is {text!r} instead of a capital letter")
        return text

    def _split(self, row: dict[str, Any]) -> str:
        key = "split_kpod" if row.get("split_kpod") is not None else "split"
        name = row.get(key)
        if name is None:
            return ""
        if not isinstance(name, str) or name not in _SPLIT_NAMES:
            raise RowError(f"'{key}' is {name!r} instead of one of: {', '.join(_SPLIT_NAMES)}")
        return _SPLIT_NAMES[name]

    def _correct(self, row: dict[str, Any], steps: tuple[str, ...], answer: str) -> bool | None:
        """Say whether the rationale is right: by the row's own word, else by the number it ends on; None where neither tells."""
        said = row.get("teacher_correct")
        if isinstance(said, bool):
            return said
        return reaches(steps, answer) if self.answers == "number" else None


def _check_characters(text: str, key: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"'{key}' has half of a surrogate pair at character {error.start}") from None


def reaches(steps: tuple[str, ...], answer: str) -> bool | None:
    """Compare the last number of a rationale with the answer; None where it has no number."""
    numbers = _NUMBER.findall(" ".join(steps))
    if not numbers:
        return None
    return abs(float(numbers[-1].replace(",", "")) - float(answer)) < 1e-6


def rows_of_file(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the place (file:line) and the object of each line of a JSON-lines file; a BadRow where a line is none."""
    with open_file(path, DataError(f"{path}: no such file")) as stream:
        for number, raw in enumerate(stream, start=1):
            where = f"{path.name}:{number}"
            if not raw.strip():
                continue
            try:
                yield where, json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                yield where, BadRow(where, f"not UTF-8 (byte {error.start} of the line)", repr(raw))
            except json.JSONDecodeError as error:
                yield where, BadRow(where, f"not valid JSON ({error.msg} at column {error.colno})", raw.decode())


def sift(rows: Iterable[tuple[str, Any]], check: RowCheck) -> Sifted:
    """Check rows one by one."""
    sifted = Sifted()
    for where, row in rows:
        if isinstance(row, BadRow):
            sifted.bad.append(row)
            continue
        try:
            sifted.good.append(check.rationale(row, where))
        except RowError as error:
            sifted.bad.append(BadRow(where, str(error), row))
    return sifted


def set_aside(sifted: Sifted, folder: Path, max_bad: float) -> None:
    """Write the bad rows with their reasons to a file in `folder`, and warn; raise DataError if more than a share `max_bad` are bad."""
    bad, count = sifted.bad, len(sifted.good) + len(sifted.bad)
    if not count:
        raise DataError("no rows; write one object a line with question, rationale and answer")
    if not bad:
        return
    lines = [json.dumps({"where": row.where, "reason": row.reason, "row": row.row}, ensure_ascii=True) + "\n" for row in bad]
    path = folder / f"{hashlib.sha256(''.join(lines).encode()).hexdigest()[:16]}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{id(lines)}.tmp")
    temporary.write_text("".join(lines))
    temporary.replace(path)
    shown = "; ".join(f"{row.where}: {row.reason}" for row in bad[:_SHOWN]) + ("; ..." if len(bad) > _SHOWN else "")
    if len(bad) > max_bad * count:
        raise DataError(f"{len(bad)} of {count} rows cannot be used, more than data.max_bad={max_bad:g} allows ({shown}); "
                        f"mend them, or raise data.max_bad; all are listed in {path}")
    log.warning("%d of %d rows cannot be used and are left out: %s; all are listed in %s", len(bad), count, shown, path)


def carve(rows: list[Rationale], share: float, into: str, seed: int) -> list[Rationale]:
    """Move a share of the training rows to another split, chosen by a seeded hash of the question: equal questions stay together."""
    training = {row.question for row in rows if row.split == "train"}
    ranked = sorted(training, key=lambda question: hashlib.blake2b(f"{seed} {question}".encode(), digest_size=8).digest())
    moved = set(ranked[: int(len(ranked) * share + 0.5)])
    return [replace(row, split=into) if row.split == "train" and row.question in moved else row for row in rows]


def with_splits(rows: list[Rationale], share: float, seed: int) -> list[Rationale]:
    """Give every row a split: its own where it says one, else training; hold out a share where nothing is held out.

    A missing validation split is carved from the training rows; a missing test split only if no row says its split at all.
    """
    told = {row.split for row in rows} - {""}
    rows = [row if row.split else replace(row, split="train") for row in rows]
    if not told:
        rows = carve(rows, share, "test", seed)
    if "valid" not in told:
        rows = carve(rows, share / (1 - share) if not told else share, "valid", seed + 1)
    return rows


def digest(rows: Iterable[Rationale]) -> str:
    """Hash what decides the training and evaluation texts of rows, in their order."""
    content = hashlib.sha256()
    for row in rows:
        content.update(repr((row.question, row.steps, row.answer)).encode())
    return content.hexdigest()[:20]


def rewritten(rows: Iterable[Rationale], change: Callable[[str], str]) -> list[Rationale]:
    """Apply `change` to every text of rows."""
    return [replace(row, question=change(row.question), steps=tuple(map(change, row.steps)), answer=change(row.answer)) for row in rows]
