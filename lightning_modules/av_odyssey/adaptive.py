"""How fine a model hears: a just-noticeable difference for each comparison of DeafTest, by staircases on new questions."""

import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.av_plan import item_of
from datamodules.av_questions import Question
from datamodules.deaftest import Split
from datamodules.deaftest_gaps import RANGES, UNITS, with_gap
from lightning_modules.av_odyssey.adapter import Adapter
from lightning_modules.av_odyssey.answers import DONE, Answer, AnswerFile, best, kept
from lightning_modules.av_odyssey.examination import safely
from lightning_modules.av_odyssey.report import RULES
from lightning_modules.av_odyssey.staircase import Noticeable, Stairs, noticeable
from lightning_modules.processes import from_first

log = logging.getLogger(__name__)

REPORT_SECONDS = 30.0
COLUMNS = ("task", "unit", "value", "low", "high", "bound", "asked")

TARGET = Stairs(0.1, 1.0).target  # share of right answers at a threshold


class Remembered:
    """Replies that staircases have had: in `folder`, if any, each round is on disk before the next, and is not asked again.

    Every process asks the same questions and hears the same replies; the `first` one writes them down.
    """

    def __init__(self, adapter: Adapter, folder: Path | None = None, first: bool = True) -> None:
        self.adapter, self.told = adapter, time.monotonic()
        self.failed = 0  # questions that have no answer, and count as answered wrongly
        found = best(kept(folder)) if folder else {}
        self.known: dict[str, str] = from_first({key: answer.reply for key, answer in found.items() if answer.status in DONE})
        self.file = AnswerFile(folder) if folder and first else None

    def replies(self, questions: Sequence[Question]) -> list[str]:
        """Reply to one round."""
        keys = [hashlib.sha256(f"{self.adapter.identity}\n{item_of(0, one, 'staircases').key}".encode()).hexdigest() for one in questions]
        new = [place for place, key in enumerate(keys) if key not in self.known]
        replies = safely(self.adapter, [questions[place] for place in new]) if new else []
        for place, reply in zip(new, replies, strict=True):
            self.known[keys[place]] = reply.text
            self.failed += reply.status not in DONE
            if self.file:
                self.file.append(Answer.of(questions[place], reply, keys[place]))
        if self.file and time.monotonic() - self.told > REPORT_SECONDS:
            self.told = time.monotonic()
            log.info("staircases: %d questions of %s so far", len(self.known), questions[0].task)
        return [self.known[key] for key in keys]

    def close(self) -> None:
        """Let the file go."""
        if self.file:
            self.file.close()


def thresholds(said: Remembered, seed: int, split: Split, rule: str, tracks: int) -> dict[str, Noticeable]:
    """Find the just-noticeable difference of each task."""
    return {task: noticeable(_asker(said, seed, split, rule, task), Stairs(*RANGES[task]), tracks) for task in RANGES}


def _asker(said: Remembered, seed: int, split: Split, rule: str, task: str) -> Any:
    asked = 0

    def ask(gaps: Sequence[float]) -> list[bool]:
        """Put one new question for each gap; a reply without a letter is wrong."""
        nonlocal asked
        questions = [with_gap(seed, split, task, asked + place, gap) for place, gap in enumerate(gaps)]
        asked += len(gaps)
        letters = [RULES[rule](reply, question.options) for reply, question in zip(said.replies(questions), questions, strict=True)]
        return [letter == question.answer for letter, question in zip(letters, questions, strict=True)]

    return ask


def rows_of(found: dict[str, Noticeable]) -> list[tuple[Any, ...]]:
    """Return a row of COLUMNS a task."""
    return [(task, UNITS[task], one.value, one.low, one.high, one.bound, sum(count for _, _, count in one.curve))
            for task, one in found.items()]
