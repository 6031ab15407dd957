"""An examination: every question answered once by some process, kept as it goes, and merged when all are there."""

import hashlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from datamodules.av_exam import Unread
from datamodules.av_plan import Item
from datamodules.av_questions import Question
from lightning_modules.av_odyssey.adapter import Adapter, Reply, Status
from lightning_modules.av_odyssey.answers import DONE, FOLDER, MERGED, Answer, AnswerFile, best, kept, merge
from lightning_modules.processes import from_all, from_first

log = logging.getLogger(__name__)


class Examination:
    """The answers of one model to one set of questions.

    With a folder each answer is on disk before the next batch is begun, and whoever asks again asks only for what is missing; without
    one, answers are in memory and gone with the process.
    """

    def __init__(self, folder: Path | None, model: str) -> None:
        self.folder, self.model = folder, model
        self.file: AnswerFile | None = None
        self.answers: list[Answer] = []  # of this process, where there is no folder

    def begin(self, items: Sequence[Item]) -> set[str]:
        """Return the keys of the items that are answered already; the first process looks, and all hear it before any of them writes."""
        self.answers = []
        if self.folder is None:
            return set()
        done = {answer.key for answer in best(kept(self.folder / FOLDER)).values() if answer.status in DONE}
        finished = from_first({item.key for item in items if self.key(item) in done})
        self.file = AnswerFile(self.folder / FOLDER)
        return finished

    def key(self, item: Item) -> str:
        """Name this model's answer to a question."""
        return hashlib.sha256(f"{self.model}\n{item.key}".encode()).hexdigest()

    def ask(self, adapter: Adapter, items: Sequence[Item], questions: Sequence[Question], in_step: bool = False,
            unread: Unread | None = None, spare: bool = False) -> None:
        """Have a batch answered, as many questions at a time as the adapter answers `together`, and keep those before the next.

        What fails is asked again one by one. Where processes go `in_step` it is not: all of them make as many passes as the one that has
        most to ask, for which what `unread` says could not be read, and a `spare` batch, are asked, and what is said is forgotten.
        """
        lost = unread or {}
        for place, (status, reason) in () if spare else lost.items():
            log.warning("question %s: not asked (%s)", questions[place].id, reason)
            if not in_step:
                self._keep(Answer.of(questions[place], Reply("", cast(Status, status), note=reason), self.key(items[place])))
        asked = [place for place in range(len(questions)) if in_step or place not in lost]
        size = adapter.together or max(len(asked), 1)
        groups = [] if spare else [asked[start: start + size] for start in range(0, len(asked), size)]
        for number in range(max(from_all(len(groups))) if in_step else len(groups)):
            if number >= len(groups):
                adapter.replies(questions[:1])
                continue
            began, given = time.monotonic(), [questions[place] for place in groups[number]]
            replies = adapter.replies(given) if in_step else safely(adapter, given)
            seconds = (time.monotonic() - began) / len(given)
            for place, reply in zip(groups[number], replies, strict=True):
                if place in lost:
                    reply = Reply("", cast(Status, lost[place][0]), note=lost[place][1])
                self._keep(Answer.of(questions[place], reply, self.key(items[place]), seconds))

    def finish(self, items: Sequence[Item], unusable: Mapping[str, tuple[Question, str]], first: bool) -> list[Answer]:
        """Wait for all processes and return all answers in the order of `items`; the `first` process writes the merged file.

        `unusable` has, by key of the item, the questions that could not be asked and why. Raises RuntimeError if an answer is missing.
        """
        if self.file:
            self.file.close()
            self.file = None
        shares = from_all(self.answers)
        found = kept(self.folder / FOLDER) if self.folder else (answer for share in shares for answer in share)
        answers = best([*found, *self._never_asked(items, unusable)])
        return merge(answers, [self.key(item) for item in items], self.folder / MERGED if self.folder and first else None)

    def _never_asked(self, items: Iterable[Item], unusable: Mapping[str, tuple[Question, str]]) -> list[Answer]:
        return [Answer.of(question, Reply("", "damaged", note=reason), self.key(item))
                for item in items if item.key in unusable for question, reason in [unusable[item.key]]]

    def _keep(self, answer: Answer) -> None:
        if self.file:
            self.file.append(answer)
        else:
            self.answers.append(answer)


def safely(adapter: Adapter, questions: Sequence[Question]) -> list[Reply]:
    """Have questions answered; a batch that fails is asked one by one, and a question that fails alone is an error with its reason."""
    try:
        return adapter.replies(questions)
    except Exception as error:  # whatever a model, its processor or a decoder may raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
    if len(questions) == 1:
        log.warning("question %s: no answer (%s)", questions[0].id, reason)
        return [Reply("", "error", note=reason)]
    log.warning("a batch of %d questions failed (%s); they are asked one by one", len(questions), reason)
    return [reply for question in questions for reply in safely(adapter, [question])]
