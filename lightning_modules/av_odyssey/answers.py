"""Answers as they are kept: one line of JSON each, on disk before the next question is begun, in a file of each process.

Whoever goes on, on however many processes, reads the lines of all files; a line that was cut off counts as never written.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datamodules.av_questions import Question
from lightning_modules.av_odyssey.adapter import Reply

FOLDER, MERGED = "parts", "answers.jsonl"
DONE = ("ok", "refused", "truncated")  # an error is no answer: the question is asked again when the evaluation goes on


@dataclass(frozen=True)
class Answer:
    """What a model replied to one question, with what is needed to score it again without the data."""

    key: str
    id: str
    task_id: int
    task: str
    attribute: str
    mix: str
    gold: str
    options: tuple[str, ...]
    reply: str
    status: str  # ok, error, refused or truncated; damaged: never asked
    letter_logits: tuple[float, ...] | None
    note: str = ""  # why there is no answer, or what a reader should know of it
    seconds: float = 0.0  # that its batch took, shared out; not in the merged file, which two runs have in common

    @classmethod
    def of(cls, question: Question, reply: Reply, key: str, seconds: float = 0.0) -> "Answer":
        """Put a reply beside its question."""
        q = question
        return cls(key, q.id, q.task_id, q.task, q.attribute, q.mix, q.answer, q.options,
                   reply.text, reply.status, reply.letter_logits, reply.note, seconds)

    def line(self, timed: bool = True) -> str:
        """Write the answer as one line of JSON; its floats come back bit for bit."""
        values = asdict(self)
        if not timed:
            del values["seconds"]
        return json.dumps(values, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, line: str) -> "Answer":
        """Read what `line` wrote."""
        values: dict[str, Any] = json.loads(line)
        logits = values.pop("letter_logits")
        return cls(**{**values, "options": tuple(values["options"])}, letter_logits=None if logits is None else tuple(logits))


class AnswerFile:
    """An append-only file of this process alone: the first one under `folder` that no living process holds."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(1_000_000):
            self.path = folder / f"{number:03d}.jsonl"
            self.file = self.path.open("a+b")
            try:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # freed by the system when the process dies
                break
            except OSError:
                self.file.close()
        self._cut_torn_line()

    def append(self, answer: Answer) -> None:
        """Write an answer and wait until it is on disk."""
        self.file.write(answer.line().encode())
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Let the file go."""
        self.file.close()

    def _cut_torn_line(self) -> None:
        self.file.seek(0)
        content = self.file.read()
        self.file.truncate(content.rfind(b"\n") + 1)


def kept(folder: Path) -> Iterator[Answer]:
    """Read the whole lines of all files in a folder, file by file."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n")[:-1]:  # what stands behind the last line feed is torn
            try:
                yield Answer.read(line.decode())
            except (ValueError, KeyError, TypeError):
                continue  # torn by a machine that stopped, and followed by a later start


def best(answers: Iterable[Answer]) -> dict[str, Answer]:
    """Keep one answer a key: one that is done before an error, else the first."""
    found: dict[str, Answer] = {}
    for answer in answers:
        known = found.get(answer.key)
        if known is None or (known.status not in DONE and answer.status in DONE):
            found[answer.key] = answer
    return found


def merge(answers: dict[str, Answer], keys: Iterable[str], path: Path | None) -> list[Answer]:
    """Return the answers to `keys` in that order, and write them as one file, whole or not there. Raises RuntimeError if one is missing."""
    wanted = list(keys)
    missing = [key for key in wanted if key not in answers]
    if missing:
        raise RuntimeError(f"{len(missing)} of {len(wanted)} questions have no answer, the first of key {missing[0]}")
    merged = [answers[key] for key in wanted]
    if path:
        part = path.with_name(path.name + ".part")
        with part.open("w") as file:
            file.writelines(answer.line(timed=False) for answer in merged)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    return merged
