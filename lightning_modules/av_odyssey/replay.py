"""Replies that were saved earlier, in place of a model: what was asked anywhere is scored here, by all rules side by side.

A file has a JSON object on each line, with the question's `id` (or `question_id`) and the `reply`; our own answer files are such files.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any, get_args

from datamodules.av_questions import Question
from datamodules.rows import DataError
from lightning_modules.av_odyssey.adapter import Check, Reply, Status

NAMES = ("id", "question_id")
EXAMPLE = '{"id": "1_1", "reply": "B"}'


class Replay:
    """Replies by question, read from a file once; raises DataError that names file and row for whatever cannot be used."""

    cannot: Mapping[str, str] = {}
    together: int | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        content = read_bytes(path)
        self.identity = f"replay {hashlib.sha256(content).hexdigest()}"
        self.rows: dict[str, tuple[int, Reply]] = {}  # question -> (row counted from 1, reply)
        for number, line in enumerate(content.decode(errors="replace").split("\n"), start=1):
            if line.strip():
                self._take(number, line)

    def _take(self, number: int, line: str) -> None:
        where = f"{self.path} row {number}"
        name, reply = read_row(line, where)
        if name in self.rows:
            raise DataError(f"{where}: question {name} has a reply in row {self.rows[name][0]} already; leave one out")
        self.rows[name] = (number, reply)

    def check(self, wanted: Mapping[str, int]) -> None:
        """Raise DataError for what does not fit questions `wanted` (id -> letters): a reply to none of them, too many logits, no reply."""
        for name, (number, reply) in self.rows.items():
            if name not in wanted:
                near = get_close_matches(name, wanted, n=1) or list(wanted)[:1]
                raise DataError(f"{self.path} row {number}: question {name} is none of the {len(wanted)} that are asked, such as {near[0]};"
                                " ask those that the file replies to, or leave the row out")
            if reply.letter_logits is not None and len(reply.letter_logits) != wanted[name]:
                raise DataError(f"{self.path} row {number}: letter_logits: must be {wanted[name]} numbers, one for each letter of question "
                                f"{name}, not {len(reply.letter_logits)}")
        missing = [name for name in wanted if name not in self.rows]
        if missing:
            end = max((number for number, _ in self.rows.values()), default=0) + 1
            raise DataError(f"{self.path} row {end}: the file ends without a reply to question {missing[0]}"
                            + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""))

    def checks(self) -> list[Check]:
        """Find nothing to check."""
        return []

    def replies(self, questions: Sequence[Question]) -> list[Reply]:
        """Return the saved reply to each question."""
        return [self.rows[question.id][1] for question in questions]


def read_bytes(path: Path) -> bytes:
    """Read a file of replies; DataError if there is none."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"data.replies: {path}: {error.strerror}; name a file with a line such as {EXAMPLE} for each question") from None


def read_row(line: str, where: str) -> tuple[str, Reply]:
    """Read a line: the question's id and the reply. DataError, beginning with `where`, for a line that has them not."""
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: is no JSON ({error}); write a line such as {EXAMPLE}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: a {type(row).__name__} instead of an object; write a line such as {EXAMPLE}")
    name = next((row[key] for key in NAMES if key in row), None)
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise DataError(f"{where}: no question's id; write a line such as {EXAMPLE}")
    if not isinstance(row.get("reply"), str):
        found = type(row["reply"]).__name__ if "reply" in row else "none"
        raise DataError(f"{where}: reply: must be text, not {found}; write a line such as {EXAMPLE}")
    return str(name), Reply(row["reply"], _status(row, where), _logits(row, where), str(row.get("note", "")))


def _status(row: Mapping[str, Any], where: str) -> Status:
    status = row.get("status", "ok")
    if status not in get_args(Status):
        raise DataError(f"{where}: status: must be one of {', '.join(get_args(Status))}, not {status}")
    return status


def _logits(row: Mapping[str, Any], where: str) -> tuple[float, ...] | None:
    logits = row.get("letter_logits")
    if logits is None:
        return None
    if not isinstance(logits, list) or not logits or any(isinstance(x, bool) or not isinstance(x, int | float) or not isfinite(x)
                                                          for x in logits):
        raise DataError(f"{where}: letter_logits: must be a finite number for each letter, not {logits}")
    return tuple(map(float, logits))
