"""How fine a model hears: a just-noticeable difference for each comparison of DeafTest, by staircases on new questions."""

from collections.abc import Sequence
from typing import Any

from datamodules.deaftest import Split
from datamodules.deaftest_gaps import RANGES, UNITS, with_gap
from lightning_modules.av_odyssey.adapter import Adapter
from lightning_modules.av_odyssey.examination import safely
from lightning_modules.av_odyssey.report import RULES
from lightning_modules.av_odyssey.staircase import Noticeable, Stairs, noticeable

COLUMNS = ("task", "unit", "value", "low", "high", "bound", "asked")

TARGET = Stairs(0.1, 1.0).target  # share of right answers at a threshold


def thresholds(adapter: Adapter, seed: int, split: Split, rule: str, tracks: int) -> dict[str, Noticeable]:
    """Find the just-noticeable difference of each task; every process asks the same questions, and hears the same replies."""
    return {task: noticeable(_asker(adapter, seed, split, rule, task), Stairs(*RANGES[task]), tracks) for task in RANGES}


def _asker(adapter: Adapter, seed: int, split: Split, rule: str, task: str) -> Any:
    asked = 0

    def ask(gaps: Sequence[float]) -> list[bool]:
        """Put one new question for each gap; a reply without a letter is wrong."""
        nonlocal asked
        questions = [with_gap(seed, split, task, asked + place, gap) for place, gap in enumerate(gaps)]
        asked += len(gaps)
        replies = safely(adapter, questions)
        letters = [RULES[rule](reply.text, question.options) for reply, question in zip(replies, questions, strict=True)]
        return [letter == question.answer for letter, question in zip(letters, questions, strict=True)]

    return ask


def rows_of(found: dict[str, Noticeable]) -> list[tuple[Any, ...]]:
    """Return a row of COLUMNS a task."""
    return [(task, UNITS[task], one.value, one.low, one.high, one.bound, sum(count for _, _, count in one.curve))
            for task, one in found.items()]
