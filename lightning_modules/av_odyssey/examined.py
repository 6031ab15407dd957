"""Validation as an examination: a model is asked, and its answers are kept, graded, and told as figures, tables and a page."""

import logging
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from datamodules.av_exam import Batch
from datamodules.av_plan import Item
from datamodules.av_questions import prompt_text
from datamodules.deaftest_gaps import UNITS
from lightning_modules.av_odyssey import published
from lightning_modules.av_odyssey.adapter import CHECK_COLUMNS, Adapter
from lightning_modules.av_odyssey.adaptive import COLUMNS, TARGET, Remembered, rows_of, thresholds
from lightning_modules.av_odyssey.answers import Answer
from lightning_modules.av_odyssey.comparison import SUMMARY
from lightning_modules.av_odyssey.examination import Examination
from lightning_modules.av_odyssey.examples import EXAMPLE_COLUMNS, examples_of
from lightning_modules.av_odyssey.exports import whole, write_answers, write_samples
from lightning_modules.av_odyssey.page import NAME, Page
from lightning_modules.av_odyssey.pictures import draw_failures, noticeable_figure
from lightning_modules.av_odyssey.replay import Replay
from lightning_modules.av_odyssey.report import QUESTION_COLUMNS, RATE_COLUMNS, SCORE_COLUMNS, Report
from lightning_modules.av_odyssey.staircase import Noticeable
from lightning_modules.base import OptimizerFactory, Table
from lightning_modules.language.rotary import SteadyFrequencies
from lightning_modules.processes import from_all

log = logging.getLogger(__name__)

DAMAGE_COLUMNS = ("id", "task", "reason", "counted")
NOTES = {  # what a reader must know before comparing, by data.source
    "synthetic": "These questions were made on the spot in the shape of the benchmark's; the published figures are of the real ones, so "
                 "that the two do not compare.",
    "deaftest": "These sounds were made on the spot, unclipped; the published figures are of the paper's own 400 questions.",
}


class ExaminedModule(SteadyFrequencies):
    """A method whose validation asks questions; what it asks is `adapter`."""

    def __init__(self, config: Any, optimizer: OptimizerFactory) -> None:
        super().__init__(config, optimizer)
        self.examination = Examination(None, "")
        self.noticeable: dict[str, Noticeable] = {}  # by task, of the last validation
        self.failures: list[Path] = []  # pictures of questions that were answered wrongly, of the last evaluation

    @property
    def data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def untaught(self) -> bool:
        """Whether what replies has random weights."""
        return False

    @property
    @abstractmethod
    def adapter(self) -> Adapter:
        """What replies now."""

    def _begin(self, items: Sequence[Item]) -> set[str]:
        """Begin an examination, or go on with one; return the keys of what is answered."""
        adapter = self.adapter
        if isinstance(adapter, Replay):
            adapter.check({question.id: len(question.options) for question in self.data.exam.questions})
        self.examination = Examination(self.kept_in, adapter.identity)
        return self.examination.begin(items)

    def on_validation_epoch_start(self) -> None:
        self.asked = self.adapter
        with self.trainer.precision_plugin.forward_context():  # in which questions are asked, too
            self.checks = self.asked.checks()
        for row in [check.row for check in self.checks if not check.holds] if self.trainer.is_global_zero else []:
            log.warning("%s: measured %g, the limit is %g; %s", *row[:3], row[4])
        if self.kept_in is not None and self.trainer.is_global_zero:
            for task, reason in sorted(self.asked.cannot.items()):
                log.warning("task %s: %s; its score measures nothing", task, reason)
        if self.kept_in is None:  # a loader serves many validations, and each begins anew
            self._begin(self.data.exam.items)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.examination.ask(self.asked, batch.items, batch.questions, self.data.in_step, batch.unread, batch.spare)

    def on_validation_epoch_end(self) -> None:
        self._tell(self._finished())

    def _finished(self) -> list[Answer]:
        """Wait for all processes, and return all answers."""
        items, unusable = self.data.exam.items, self.data.exam.unusable
        if self.examination.folder is None:  # a trainer may have been told to ask only some
            asked = set().union(*from_all({answer.key for answer in self.examination.answers}))
            items = [item for item in items if item.key in unusable or self.examination.key(item) in asked]
        return self.examination.finish(items, unusable, self.trainer.is_global_zero)

    def _report(self, answers: list[Answer]) -> Report:
        return Report.of(answers, self.config.unanswered, self.data.config.damaged, self.asked.cannot)

    @torch.no_grad()
    def examine_now(self) -> dict[str, float]:
        """Ask all questions outside a validation, in evaluation mode; return the figures of a validation."""
        training = [part for part in self.modules() if part.training]
        self.eval()
        batches = self.data.val_dataloader()
        self.on_validation_epoch_start()
        with self.trainer.precision_plugin.forward_context():
            for number, batch in enumerate(batches):
                self.validation_step(batch, number)
        for part in training:
            part.training = True
        return self._figures(self._report(self._finished()))

    def _figures(self, report: Report) -> dict[str, float]:
        """Return by name what share is right by each rule, what share is no plain answer, and DeafTest's tasks or else averages."""
        found = {"val/accuracy": report.shares(self.config.rule)["average", "micro"].value}
        found |= {f"val/{rule}": report.shares(rule)["average", "micro"].value for rule in report.rules}
        found["val/invalid_rate"] = sum(one.letters["strict"] is None for one in report.graded) / len(report.graded)
        found |= {f"val/{status}_rate": report.rate(status) for status in ("refused", "truncated", "error")}
        if self.data.config.source == "hub":
            found["val/damaged_rate"] = report.rate("damaged")
        if self.data.config.source.startswith("deaftest"):
            sorted_out = sorted(_by_profile_and_task(report, self.config.rule).items())
            return found | {f"val/{name}": sum(right) / len(right) for name, right in sorted_out}
        named = {name: part.value for (kind, name), part in report.shares(self.config.rule).items() if kind == "average"}
        return found | {f"val/{name}": value for name, value in named.items() if name != "micro"}

    def _tell(self, answers: list[Answer]) -> None:
        report = self._report(answers)
        for name, value in self._figures(report).items():
            self.log(name, value, prog_bar=name == "val/accuracy", sync_dist=True)
        self.tables = {"answers": Table(QUESTION_COLUMNS, report.question_rows()), "scores": Table(SCORE_COLUMNS, report.score_rows()),
                       "rates": Table(RATE_COLUMNS, report.rate_rows(), printed=True),
                       "checks": Table(CHECK_COLUMNS, [check.row for check in self.checks])}
        failed = report.statuses["error"] + (self._climb() if self.data.config.adaptive else 0)
        if self.data.config.source == "hub":
            damaged = [(one.id, one.task, one.note, self.data.config.damaged) for one in answers if one.status == "damaged"]
            self.tables["damaged"] = Table(DAMAGE_COLUMNS, damaged)
        self.incomplete = f"{failed} questions have an error instead of an answer (tables/answers.csv)" if failed else ""
        if self.kept_in is not None and self.trainer.is_global_zero:
            self._leave(report, self.kept_in)

    def _leave(self, report: Report, folder: Path) -> None:
        """Leave beside the report what others read: comparisons, a page, exports, and for W&B some questions with their media."""
        data = self.data.config
        questions, place = self.data.exam.questions, {item.id: item.index for item in self.data.exam.items}
        wrong = (one.answer for one in report.graded if not one.right(self.config.rule) and one.answer.status in ("ok", "truncated"))
        self.failures = draw_failures(((questions[place[answer.id]], answer.reply) for answer in wrong), folder)
        page = Page(report, self.config.rule, f"{self.config.adapter}: {data.source}", self._facts(), self.checks,
                    " ".join(self._notes()), self.pictures(folder), compared=data.control == "none")
        for title, beside in page.comparisons:
            name = f"published_{title.split()[0].lower()}"
            self.tables[name] = Table(beside.columns, beside.rows())
            self.tables[f"{name}_summary"] = Table(SUMMARY, beside.summary(), printed="tasks" not in name)
        if any("attributes" in name for name in self.tables):
            self.tables["published"] = Table(published.COLUMNS, published.rows())
        asked = [(prompt_text(questions[place[one.answer.id]]), round(one.answer.seconds, 3)) for one in report.graded]
        rows = [(*row, *more) for row, more in zip(report.question_rows(), asked, strict=True)]
        self.tables["answers"] = Table((*QUESTION_COLUMNS, "prompt", "seconds"), rows)
        write_answers(folder, report)
        write_samples(folder, report, lambda name: questions[place[name]])
        whole(folder / NAME, lambda part: part.write_text(page.text()))
        shown = examples_of(report, self.config.rule, lambda name: questions[place[name]], self.config.examples)
        self.tables["examples"] = Table(EXAMPLE_COLUMNS, shown, media=True)

    def _notes(self) -> list[str]:
        """Say what a reader must know before comparing."""
        data = self.data.config
        found = [NOTES[data.source]] if data.source in NOTES else []
        if data.control != "none":
            found.append(f"Under data.control={data.control} what the answers need has been taken away, or exchanged: nothing compares.")
        return [*found, *(["The model has random weights and has learnt nothing."] if self.untaught else [])]

    def _facts(self) -> dict[str, str]:
        asked = f"{self.data.config.root}, {self.data.exam.source}" if self.data.config.source == "hub" else self.data.exam.source
        return {"model": self.asked.identity, "questions": asked, "rule of val/accuracy": self.config.rule}

    def _climb(self) -> int:
        """Find the smallest gaps that are heard; return how many questions failed."""
        config = self.data.config
        said = Remembered(self.asked, self.kept_in and self.kept_in / "staircases", self.trainer.is_global_zero)
        self.noticeable = thresholds(said, self.data.seed, config.split, self.config.rule, config.staircases)
        said.close()
        for task, found in self.noticeable.items():
            self.log(f"val/noticeable/{task}", found.value, sync_dist=True)
        self.tables["noticeable"] = Table(COLUMNS, rows_of(self.noticeable))
        return said.failed

    def pictures(self, folder: Path) -> list[Path]:
        """Draw the shares of right answers over gaps into noticeable.png, where adaptive was examined; failures have been drawn."""
        if not self.noticeable:
            return self.failures
        named = {f"{task}, {UNITS[task]}": found for task, found in self.noticeable.items()}
        noticeable_figure(named, TARGET).savefig(folder / "noticeable.png")
        return [folder / "noticeable.png", *self.failures]


def _by_profile_and_task(report: Report, rule: str) -> dict[str, list[bool]]:
    """Sort DeafTest's answers as in "hard/pitch"."""
    found: dict[str, list[bool]] = {}
    for one in report.graded:
        found.setdefault(f"{one.answer.attribute.removeprefix('DeafTest ')}/{one.answer.task}", []).append(one.right(rule))
    return found
