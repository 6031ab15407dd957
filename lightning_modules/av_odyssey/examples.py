"""Some questions with their media, what was replied and what was right, wrong ones first, to look at and to listen to."""

from collections.abc import Callable
from typing import Any

from datamodules.av_questions import Question, prompt_text
from lightning_modules.av_odyssey.report import Report

TAGS = ("img1", "img2", "img3", "img4", "video1", "audio1", "audio2", "audio3", "audio4")
EXAMPLE_COLUMNS = ("id", "task", "prompt", "gold", "letter", "right", "reply", *TAGS)


def examples_of(report: Report, rule: str, question_of: Callable[[str], Question], most: int) -> list[tuple[Any, ...]]:
    """Return at most `most` rows of EXAMPLE_COLUMNS, with None where a question has no such medium or it cannot be read."""
    chosen = sorted(report.graded, key=lambda one: one.right(rule))[:most]
    rows = []
    for one in chosen:
        question = question_of(one.answer.id)
        media = [_read(question, tag) for tag in TAGS]
        rows.append((one.answer.id, one.answer.task, prompt_text(question), one.answer.gold, one.letters[rule] or "", one.right(rule),
                     one.answer.reply, *media))
    return rows


def _read(question: Question, tag: str) -> Any:
    try:
        return question.media.get(tag)
    except Exception:  # of whatever decoder; its question has no answer, and the table of answers says why
        return None
