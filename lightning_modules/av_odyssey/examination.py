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
            unread: Unread | None = None) -> None:
        """Have a batch answered and keep the answers. A batch that fails is asked again one by one, except where processes go `in_step`.

        There all of it is asked, and what is said to those questions of which `unread` says why they could not be read is forgotten.
        """
        began, lost = time.monotonic(), unread or {}
        asked = [place for place in range(len(questions)) if in_step or place not in lost]
        given = [questions[place] for place in asked]
        replies = dict(zip(asked, adapter.replies(given) if in_step else safely(adapter, given), strict=True)) if asked else {}
        replies |= {place: Reply("", cast(Status, status), note=reason) for place, (status, reason) in lost.items()}
        for place, (_, reason) in lost.items():
            log.warning("question %s: not asked (%s)", questions[place].id, reason)
        seconds = (time.monotonic() - began) / len(questions)
        for place, (item, question) in enumerate(zip(items, questions, strict=True)):
            self._keep(Answer.of(question, replies[place], self.key(item), seconds))

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
