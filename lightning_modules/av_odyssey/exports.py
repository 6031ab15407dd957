"""What other programs read: answers as parquet and JSON, and a log of samples as lmms-eval writes it for its task av_odyssey.

lmms-eval's line has doc_id, doc, target, arguments, resps, filtered_resps, three hashes, and the score that its aggregation reads
(lmms_eval/evaluator.py and tasks/av_odyssey/utils.py at 03cbb1f and 2bb5e98); its documents have letters before their options.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.av_questions import TAG, Question, prompt_text
from lightning_modules.av_odyssey.report import RULES, Graded, Report

PARQUET, JSON, SAMPLES = "answers.parquet", "answers.json", "samples_av_odyssey.jsonl"
LETTERS = {rule: f"letter_{rule}" for rule in RULES} | {"letter_logits": "letter_by_logits"}  # by rule, the name of what it reads
STRINGS = ("key", "id", "task", "attribute", "mix", "gold", "reply", "status", "note", *LETTERS.values())
SCHEMA = pa.schema([*((name, pa.string()) for name in STRINGS), ("task_id", pa.int64()), ("options", pa.list_(pa.string())),
                    ("letter_logits", pa.list_(pa.float64())), *((f"right_{rule}", pa.bool_()) for rule in RULES)])


def records(report: Report) -> list[dict[str, Any]]:
    """Return an object a question: the answer, the letter that each rule reads (null where it reads none), and whether it is right."""
    found = []
    for one in report.graded:
        values = asdict(one.answer)
        del values["seconds"]
        letters = {name: one.letters.get(rule) for rule, name in LETTERS.items()}
        logits = one.answer.letter_logits
        lists = {"options": list(one.answer.options), "letter_logits": None if logits is None else list(logits)}
        found.append({**values, **lists, **letters, **{f"right_{rule}": one.right(rule) for rule in RULES}})
    return found


def write_answers(folder: Path, report: Report) -> None:
    """Write the answers as parquet and as JSON."""
    rows = records(report)
    whole(folder / PARQUET, lambda part: pq.write_table(pa.Table.from_pylist(rows, SCHEMA), part))
    whole(folder / JSON, lambda part: part.write_text(json.dumps(rows, ensure_ascii=False, indent=1)))


def write_samples(folder: Path, report: Report, question_of: Callable[[str], Question]) -> None:
    """Write lmms-eval's log of samples; `question_of` finds a question by its id."""
    lines = [json.dumps(sample(place, one, question_of(one.answer.id)), ensure_ascii=False) + "\n"
             for place, one in enumerate(report.graded)]
    whole(folder / SAMPLES, lambda part: part.write_text("".join(lines)))


def sample(place: int, one: Graded, question: Question) -> dict[str, Any]:
    """Write one line of lmms-eval's log; media are numbered in the prompt in the order in which they stand."""
    answer = one.answer
    doc = {"question_id": answer.id, "question_type_id": answer.task_id, "subfield": answer.attribute, "question": question.text,
           "options": [f"{letter}. {option}" for letter, option in zip(question.letters, answer.options)], "answer": answer.gold,
           "data_type": "video" if "video" in answer.mix else "image"}
    prompt = numbered(prompt_text(question))
    return {"doc_id": place, "doc": doc, "target": answer.gold, "arguments": [prompt], "resps": [[answer.reply]],
            "filtered_resps": [answer.reply], "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
            "prompt_hash": _hash(prompt), "target_hash": _hash(answer.gold),
            "av_odyssey_score": {"question_id": answer.id, "category": answer.attribute, "score": float(one.right("official"))}}


def numbered(prompt: str) -> str:
    """Replace each tag by <media_N>, counted from 0 by where it stands."""
    pieces = TAG.split(prompt)
    return "".join(f"<media_{place // 2}>" if place % 2 else piece for place, piece in enumerate(pieces))


def whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Have a file written under another name, and give it its own when it is whole."""
    part = path.with_name(path.name + ".part")
    write(part)
    os.replace(part, path)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
