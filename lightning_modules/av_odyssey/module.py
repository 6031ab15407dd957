"""AV-Odyssey Bench and DeafTest (arXiv 2412.02611): models that are asked what they hear and see, and a small one that learns to.

The small model learns in two stages, because an ear that hears well is no good to a language model that has not learnt to ask it: first
the ear reads out what single sounds are like (a phase of its own), then the language model learns to answer questions about pairs of them,
the ear held still. An answer names the content before the letter ("second B"): supervision by the letter alone stays at chance.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.av_exam import Batch, Damage
from datamodules.av_plan import Item
from datamodules.cache import build_once
from datamodules.deaftest_gaps import UNITS
from lightning_modules.av_odyssey.adapter import CHECK_COLUMNS, Adapter
from lightning_modules.av_odyssey.adaptive import COLUMNS, TARGET, rows_of, thresholds
from lightning_modules.av_odyssey.answers import Answer
from lightning_modules.av_odyssey.comparison import SUMMARY
from lightning_modules.av_odyssey.ear import EarSection, ear_phase, load_ear
from lightning_modules.av_odyssey.examination import Examination
from lightning_modules.av_odyssey.examples import EXAMPLE_COLUMNS, examples_of
from lightning_modules.av_odyssey.exports import whole, write_answers, write_samples
from lightning_modules.av_odyssey.hearing import mel_filters
from lightning_modules.av_odyssey.omni import OmniAdapter, OmniSection
from lightning_modules.av_odyssey.oracle import Oracle
from lightning_modules.av_odyssey.page import NAME, Page
from lightning_modules.av_odyssey.pictures import draw_failures, noticeable_figure
from lightning_modules.av_odyssey.replay import Replay
from lightning_modules.av_odyssey.report import QUESTION_COLUMNS, SCORE_COLUMNS, Report
from lightning_modules.av_odyssey.small import SmallModel
from lightning_modules.av_odyssey.staircase import Noticeable
from lightning_modules.av_odyssey.talk import SmallAdapter, vectors_of
from lightning_modules.av_odyssey.words import prompt_of, reply_of
from lightning_modules.base import MethodModule, NothingToTrain, OptimizerFactory, Phase, Table
from lightning_modules.processes import from_all

log = logging.getLogger(__name__)

NOTES = {  # what a reader must know before comparing, by data.source
    "synthetic": "These questions were made on the spot in the shape of the benchmark's; the published figures are of the real ones, so "
                 "that the two do not compare.",
    "deaftest": "These sounds were made on the spot, unclipped; the published figures are of the paper's own 400 questions.",
}
FORMAT = 2  # part of every key: raise it when what is stored, or how it is found, changes


@dataclass(frozen=True)
class SmallSection:
    width: int = 128
    """width of the language model"""
    layers: int = 3
    """its layers"""
    heads: int = 4
    """its attention heads"""
    reply: Literal["content", "letter"] = "content"
    """what it learns to say: the word that tells the options apart and then the letter, or the letter alone"""

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be 1 or above, not {getattr(self, name)}")
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"width: must be an even multiple of heads = {self.heads}, not {self.width}")


@dataclass(frozen=True)
class AvOdysseyModuleConfig:
    adapter: Literal["small", "oracle", "replay", "qwen2_5_omni"] = "small"
    """what replies: the small model, signal processing that knows the answers to DeafTest, the file of data.replies, or Qwen2.5-Omni"""
    size: Literal["tiny"] = "tiny"
    """qwen2_5_omni without module.pretrained: a tiny model with random weights, which shows that all works and knows nothing"""
    pretrained: str | None = None
    """qwen2_5_omni: folder or Hub name of its weights and processor"""
    omni: OmniSection = field(default_factory=OmniSection)
    """how an omni model is asked"""
    small: SmallSection = field(default_factory=SmallSection)
    """the small model's language half"""
    ear: EarSection = field(default_factory=EarSection)
    """its ear, and how that is taught"""
    examples: int = 16
    """W&B: questions of an evaluation that it shows with their sounds and pictures, wrong ones first"""
    rule: Literal["official", "strict", "vlmevalkit"] = "official"
    """how letters are read in replies for val/accuracy; the tables have all rules"""

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise ValueError(f"examples: must be 0 or above, not {self.examples}")

    def without_effect(self) -> dict[str, str]:
        """Name what only other adapters have."""
        idle = {} if self.adapter == "small" else dict.fromkeys(("small", "ear"), f"adapter={self.adapter} learns nothing")
        if self.adapter != "qwen2_5_omni":
            idle |= dict.fromkeys(("size", "pretrained", "omni"), f"adapter={self.adapter} has no such model")
        return idle | ({"size": "module.pretrained names the weights"} if self.pretrained else {})


class AvOdysseyModule(MethodModule):
    """A model behind an adapter, examined at each validation; the small one is trained."""

    STRATEGIES = ("single", "ddp")
    UNIT = "words"

    def __init__(self, config: AvOdysseyModuleConfig, optimizer: OptimizerFactory) -> None:
        super().__init__(config, optimizer)
        self.model: SmallModel | None = None
        self.replier: Adapter | None = None  # what only replies
        self.vectors = np.empty(0, np.float32)  # of the sounds of all training questions, (N, 2, 2 ear)
        self.examination = Examination(None, "")
        self.noticeable: dict[str, Noticeable] = {}  # by task, of the last validation

    @property
    def data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def ear_folder(self, data: Any) -> Path:
        content = repr((FORMAT, asdict(self.config.ear), data.seed, data.config.profile)).encode()
        return Path(data.config.cache).expanduser() / "av_odyssey" / "ear" / hashlib.blake2b(content, digest_size=10).hexdigest()

    def phases(self, data: Any) -> Iterable[Phase]:
        """Give the teaching of the ear."""
        if self.config.adapter == "small":
            yield ear_phase(self.config.ear, data.seed, data.config.profile, self.ear_folder(data))

    def setup(self, stage: str) -> None:
        content = self.config.small.reply == "content"
        self.data.encode = lambda question: (prompt_of(question), reply_of(question, content))
        self.data.finished = self._begin

    def configure_model(self) -> None:
        """Build the small model; called by Lightning on every process, more than once."""
        if self.config.adapter == "small" and self.model is None:
            small = self.config.small
            self.model = SmallModel(self.config.ear.width, small.width, small.layers, small.heads)
            self.model.encoder.requires_grad_(False)
        elif self.config.adapter != "small" and self.replier is None:
            self.replier = self._only_replies()

    def _only_replies(self) -> Adapter:
        """Make what replies without having been trained here."""
        replies = self.data.config.replies
        if self.config.adapter == "qwen2_5_omni":
            omni = OmniAdapter.load(self.config.pretrained, self.config.omni)
            self.network = omni.model  # Lightning moves it to the device
            return omni
        if self.config.adapter != "replay":
            return Oracle()
        if replies is None:
            raise ValueError("data.replies: must name the file of replies that module.adapter=replay scores")
        return Replay(Path(replies).expanduser())

    def configure_optimizers(self) -> Any:
        return super().configure_optimizers() if self.model is not None else None

    def on_fit_start(self) -> None:
        """Take the trained ear, and hear all training questions once. Raises NothingToTrain for a model that only replies."""
        if self.model is None:
            raise NothingToTrain(f"module.adapter={self.config.adapter} learns nothing; fivefold evaluate method=av_odyssey examines it")
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.vectors = np.zeros((len(self.data.training), 2, 2 * self.config.ear.width), np.float32)
            return
        folder = self.ear_folder(self.data)
        load_ear(self.model.encoder, folder)
        self.vectors = np.load(build_once(self._vectors_folder(folder), self._hear) / "vectors.npy")

    def _vectors_folder(self, ear: Path) -> Path:
        content = repr((FORMAT, ear.name, self.data.training.name)).encode()
        return ear.parent.parent / "vectors" / hashlib.blake2b(content, digest_size=10).hexdigest()

    def _hear(self, folder: Path) -> None:
        assert self.model is not None
        self.model.encoder.eval()
        np.save(folder / "vectors.npy", vectors_of(self.model.encoder, self.data.training, mel_filters(), self.device))

    def on_train_epoch_start(self) -> None:
        assert self.model is not None
        self.model.encoder.eval()  # its norms stay as they were taught

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        assert self.model is not None
        clips = torch.from_numpy(self.vectors[batch["index"].cpu().numpy()]).to(self.device)
        loss = self.model.loss(batch["words"], batch["labels"], clips)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    # -- examination -------------------------------------------------------------------------------------------------------------

    @property
    def adapter(self) -> Adapter:
        """What replies now."""
        if self.model is not None:
            return SmallAdapter(self.model, self.device)
        assert self.replier is not None
        return self.replier

    def _begin(self, items: Sequence[Item]) -> set[str]:
        """Begin an examination, or go on with one; return the keys of what is answered."""
        if isinstance(self.replier, Replay):
            self.replier.check(item.id for item in items)
        self.examination = Examination(self.kept_in, self.adapter.identity)
        return self.examination.begin(items)

    def on_validation_epoch_start(self) -> None:
        self.asked = self.adapter
        self.checks = self.asked.checks()
        for row in [check.row for check in self.checks if not check.holds] if self.trainer.is_global_zero else []:
            log.warning("%s: measured %g, the limit is %g; %s", *row[:3], row[4])
        if self.kept_in is not None and self.trainer.is_global_zero:
            for task, reason in sorted(self.asked.cannot.items()):
                log.warning("task %s: %s; its score measures nothing", task, reason)
        if self.kept_in is None:  # a loader serves many validations, and each begins anew
            self._begin(self.data.exam.items)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if not batch.spare:
            self.examination.ask(self.asked, batch.items, batch.questions)

    def on_validation_epoch_end(self) -> None:
        exam, items = self.data.exam, self.data.exam.items
        if self.examination.folder is None:  # a trainer may have been told to ask only some
            asked = set().union(*from_all({answer.key for answer in self.examination.answers}))
            items = [item for item in items if self.examination.key(item) in asked]
        self._tell(self.examination.finish(items, exam.unusable, self.trainer.is_global_zero))

    def _tell(self, answers: list[Answer]) -> None:
        damage = self.data.exam.damage(self.data.config.damaged)
        report = Report.of(answers, damaged=damage.counted, cannot=self.asked.cannot)
        self.log("val/accuracy", report.shares(self.config.rule)["average", "micro"].value, prog_bar=True, sync_dist=True)
        for rule in report.rules:
            self.log(f"val/{rule}", report.shares(rule)["average", "micro"].value, sync_dist=True)
        self.log("val/invalid_rate", sum(one.letters["strict"] is None for one in report.graded) / len(report.graded), sync_dist=True)
        if self.data.config.source.startswith("deaftest"):
            for name, right in sorted(_by_profile_and_task(report, self.config.rule).items()):
                self.log(f"val/{name}", sum(right) / len(right), sync_dist=True)
        self.tables = {"answers": Table(QUESTION_COLUMNS, report.question_rows()), "scores": Table(SCORE_COLUMNS, report.score_rows()),
                       "checks": Table(CHECK_COLUMNS, [check.row for check in self.checks])}
        if self.data.config.adaptive:
            self._climb()
        if self.data.config.source == "hub":
            self.log("val/damaged_rate", damage.share, sync_dist=True)
            self.tables["damaged"] = Table(Damage.COLUMNS, damage.rows())
        if self.kept_in is not None and self.trainer.is_global_zero:
            self._leave(report, self.kept_in)

    def _leave(self, report: Report, folder: Path) -> None:
        """Leave beside the report what others read: comparisons, a page, exports, and for W&B some questions with their media."""
        data = self.data.config
        note = NOTES.get(data.source, "")
        page = Page(report, self.config.rule, f"{self.config.adapter}: {data.source}", self._facts(), self.checks, note)
        for title, beside in page.comparisons:
            name = f"published_{title.split()[0].lower()}"
            self.tables[name] = Table(beside.columns, beside.rows())
            self.tables[f"{name}_summary"] = Table(SUMMARY, beside.summary(), printed="tasks" not in name)
        questions, place = self.data.exam.questions, {item.id: item.index for item in self.data.exam.items}
        write_answers(folder, report)
        write_samples(folder, report, lambda name: questions[place[name]])
        whole(folder / NAME, lambda part: part.write_text(page.text()))
        rows = examples_of(report, self.config.rule, lambda name: questions[place[name]], self.config.examples)
        wrong = (one.answer for one in report.graded if not one.right(self.config.rule) and one.answer.status in ("ok", "truncated"))
        draw_failures(((questions[place[answer.id]], answer.reply) for answer in wrong), folder)
        self.tables["examples"] = Table(EXAMPLE_COLUMNS, rows, media=True)

    def _facts(self) -> dict[str, str]:
        return {"model": self.asked.identity, "questions": self.data.exam.source, "rule of val/accuracy": self.config.rule}

    def _climb(self) -> None:
        config = self.data.config
        self.noticeable = thresholds(self.asked, self.data.seed, config.split, self.config.rule, config.staircases)
        for task, found in self.noticeable.items():
            self.log(f"val/noticeable/{task}", found.value, sync_dist=True)
        self.tables["noticeable"] = Table(COLUMNS, rows_of(self.noticeable))
        if self.kept_in and self.trainer.is_global_zero:
            self.pictures(self.kept_in)

    def pictures(self, folder: Path) -> list[Path]:
        """Draw the shares of right answers over gaps into noticeable.png, where the profile adaptive was examined."""
        if not self.noticeable:
            return []
        named = {f"{task}, {UNITS[task]}": found for task, found in self.noticeable.items()}
        noticeable_figure(named, TARGET).savefig(folder / "noticeable.png")
        return [folder / "noticeable.png"]


def _by_profile_and_task(report: Report, rule: str) -> dict[str, list[bool]]:
    """Sort DeafTest's answers as in "hard/pitch"."""
    found: dict[str, list[bool]] = {}
    for one in report.graded:
        found.setdefault(f"{one.answer.attribute.removeprefix('DeafTest ')}/{one.answer.task}", []).append(one.right(rule))
    return found
