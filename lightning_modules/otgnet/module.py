"""OTGNet: a temporal graph network that learns task after task, as classes open, and is examined on all of them after each.

A step takes one batch of events: logits at both ends of each, replayed events beside them, and a draw of what the gate has held back.

    encoder, heads   cross-entropy of the batch and of the replay, and the link loss
    code             I_club - beta I_mine at embeddings that the gate held back
    CLUB, MINE       their own likelihood and bound

What crosses from one to another is constant, so one summed backward pass keeps them apart, and DDP sees every gradient once. Memory is
the same on all processes: each passes its part of the batch, and the rows are summed up. Only the first optimizer counts as a step.
"""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from datamodules.rows import DataError
from datamodules.task_order import EventBatch, TaskLoader
from lightning_modules.base import MethodModule, OptimizerFactory, optimizer_steps
from lightning_modules.optim.adamw import AdamW, AdamWConfig
from lightning_modules.otgnet import report
from lightning_modules.otgnet.bottleneck import BottleneckSection, Queue
from lightning_modules.otgnet.continual import RetainSection, divergence, fisher, kept_means, learning
from lightning_modules.otgnet.encoding import unit_of_time
from lightning_modules.otgnet.exams import MEMORIES, Exams, accuracies
from lightning_modules.otgnet.gate import GateSection
from lightning_modules.otgnet.heads import tasks_of
from lightning_modules.otgnet.losses import class_shares, classification
from lightning_modules.otgnet.measures import Matrix, forward_transfer
from lightning_modules.otgnet.memory import Memory
from lightning_modules.otgnet.model import OpenModel
from lightning_modules.otgnet.network import HeldBack, NetworkSection, Passed
from lightning_modules.otgnet.progress import Progress
from lightning_modules.otgnet.replay import ReplaySection
from lightning_modules.otgnet.review import Review, choose
from lightning_modules.otgnet.view import View, look
from lightning_modules.otgnet.walk import Found, Reach
from lightning_modules.processes import from_all

log = logging.getLogger(__name__)

PARTS = ("code.code", "code.club", "code.mine")  # of the model, each with an optimizer of its own


@dataclass(frozen=True)
class OtgnetModuleConfig:
    network: NetworkSection = field(default_factory=NetworkSection)
    """encoder and classifier"""
    gate: GateSection = field(default_factory=GateSection)
    """what passes between classes"""
    bottleneck: BottleneckSection = field(default_factory=BottleneckSection)
    """how the class-agnostic code learns"""
    replay: ReplaySection = field(default_factory=ReplaySection)
    """what is kept of finished tasks, and how it is trained on again"""
    retain: RetainSection = field(default_factory=RetainSection)
    """what else holds on to finished tasks: EWC, LwF, iCaRL's nearest mean"""
    classes: Literal["open", "task", "both"] = "open"
    """what a label competes with in the loss: all open classes, those of its own task, or the mean of both losses"""
    balance: bool = True
    """raise logits by the log of their class's share in training, so that new classes do not crowd out replayed ones"""
    carry: bool = True
    """begin a task with the memory that the last one left; false: with a fresh one"""
    keep: Literal["best", "last"] = "best"
    """weights that a task ends with: of the pass with the best validation, or of the last"""
    select: Literal["class_il", "task_il"] = "class_il"
    """accuracy on the task's validation nodes that is best"""
    frozen_heads: bool = False
    """never train the heads"""
    compat: Literal["none", "official"] = "none"
    """official: the public code's choices. Heads are never trained and compete within a task only, empty slots take part in the attention,
    no votes, no balance, memory starts anew in each task, the code learns as fast as its estimators; triads are kept by the plain product
    of gradients, by parameter means and with the opposite sign; all of them are replayed in each step, without neighbours, with the link
    loss divided by its pairs. Labels of held-out nodes are not looked at even so, and a node is scored by its own last prediction"""

    def __post_init__(self) -> None:
        if self.retain.nearest_mean and self.replay.kind == "none":
            raise ValueError("retain.nearest_mean: must be false where replay.kind=none keeps no events whose mean could be taken")

    def settled(self) -> "OtgnetModuleConfig":
        """Return the settings with the preset in force."""
        if self.compat == "none":
            return self
        return replace(self, network=replace(self.network, masked=False, votes=0), classes="task", balance=False, carry=False, keep="best",
                       select="task_il", frozen_heads=True, bottleneck=replace(self.bottleneck, lr=0.005, estimator_lr=0.005),
                       replay=replace(self.replay, importance="gradient", helpful=False, product="mean", batch_size=0, history=False,
                                      link_mean="official", radius=0.21))

    def without_effect(self) -> dict[str, str]:
        """Name what the preset decides."""
        names = ("classes", "balance", "carry", "keep", "select", "frozen_heads")
        return dict.fromkeys(names, "compat=official decides it") if self.compat == "official" else {}


class OtgnetModule(MethodModule):
    """The model, its memory, and the accuracy on every task after every task."""

    STRATEGIES = ("single", "ddp")
    OPTIMIZERS = 4
    UNIT = "events"

    def __init__(self, config: OtgnetModuleConfig, optimizer: OptimizerFactory) -> None:
        super().__init__(config.settled(), optimizer)
        self.automatic_optimization = False
        self.model: OpenModel | None = None  # made in configure_model, when the data knows its classes
        self.shares: Tensor | None = None  # of each class among what is trained on in this task, (C,)
        self.review: Review | None = None  # of the tasks before this one
        self.teachers: list[OpenModel] = []  # the network as the last task has left it, where it is listened to; no part of this module
        self.exams: Any = None  # made when the device is known

    # -- building ----------------------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Make the model and a memory that has seen nothing; called by Lightning on every process, more than once."""
        if self.model is not None:
            return
        config, data = self.config, self.data
        self.seed = torch.initial_seed()  # the same on all processes
        unit = unit_of_time(data.stream.t[data.events(0, "train")])
        self.model = OpenModel(data.num_features, data.stream.tasks, data.num_classes, config.network, config.frozen_heads, unit)
        self.queue = Queue(config.bottleneck.queue, config.network.hidden)
        self.progress = Progress(self.fresh_memory())

    def fresh_memory(self) -> Memory:
        return Memory.fresh(self.data.num_nodes, self.config.network.hidden, self.seed % 2**31).to(self.device)

    def configure_optimizers(self) -> Any:
        """Give encoder and heads the optimizer of the run and its schedule; the code and its estimators have AdamW of their own."""
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        own = [[pair for pair in named if pair[0].startswith(f"model.{part}.")] for part in PARTS]
        others = {name for part in own for name, _ in part}
        first = self.optimizer([pair for pair in named if pair[0] not in others])
        schedule = self.optimizer.schedule(first, optimizer_steps(self.trainer))
        found: list[dict[str, Any]] = [{"optimizer": first, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}]
        rates = (self.config.bottleneck.lr, self.config.bottleneck.estimator_lr, self.config.bottleneck.estimator_lr)
        return found + [{"optimizer": AdamW(part, AdamWConfig(lr=lr))} for part, lr in zip(own, rates, strict=True)]

    def setup(self, stage: str) -> None:
        """Refuse a length that the stream does not have."""
        trainer = self.trainer
        if stage == "fit" and trainer.max_epochs != 1 and trainer.max_steps < 1:
            raise ValueError(f"trainer.max_epochs: must be 1, the whole stream once, not {trainer.max_epochs}; data.passes says how often "
                             "each task is passed over")

    def on_fit_start(self) -> None:
        self._settle()
        batches = self.data.train_dataloader()
        if self.trainer.max_steps > len(batches) and isinstance(batches, TaskLoader):  # those of overfit_batches come again
            raise ValueError(f"trainer.max_steps: must be at most {len(batches)}, where the stream ends, not {self.trainer.max_steps}")

    def on_validation_start(self) -> None:
        self._settle()

    def _settle(self) -> None:
        """Bring to the device what is no parameter."""
        self.reach = Reach(self.config.network.neighbours, self.config.network.votes, self.config.gate, self.data.config.batch_size)
        if self.exams is None or self.exams.device != self.device:
            self.exams = Exams(self.data, self.reach, self.device)
        self.queue.to(self.device)
        self.progress.to(self.device)

    @property
    def data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def learner(self) -> OpenModel:
        assert self.model is not None
        return self.model

    # -- training ----------------------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: EventBatch, batch_idx: int) -> None:
        """Begin a pass with the memory that the task began with."""
        if batch.first:
            self.progress.begin_pass(batch.task, batch.number, self.fresh_memory, self.config.carry)
            self.learner.means.zero_()
        if batch.first or self.shares is None:
            self._prepare(batch.task)

    def _prepare(self, task: int) -> None:
        """Lay out the review of earlier tasks, and find how often training sees each class."""
        section, progress = self.config.replay, self.progress
        events, known = self.exams.events(self.data.events(task, "train")), self.exams.around(task, "train", task).known
        shares = class_shares(known[torch.cat([events.src, events.dst])], self.data.num_classes)
        self.teachers = progress.retained.teachers(self.learner)
        self.review = Review(progress.replay, self.exams, progress.snapshots, task, section)
        if self.review:
            shares = (1 - section.weight) * shares + section.weight * self.review.shares(self.data.num_classes)
        self.shares = shares

    def training_step(self, batch: EventBatch, batch_idx: int) -> None:
        around = self.exams.around(batch.task, "train", batch.task)
        generator = torch.Generator().manual_seed((self.seed + self.trainer.global_step) % 2**63)  # the same on all processes
        view = look(batch.share(self.global_rank, self.trainer.world_size), around, self.progress.memory, self.reach.neighbours,
                    self.reach.votes, self.config.gate)
        passed, logits = self.learner(view, batch.task + 1)
        loss = self._mean_over_all(self._losses(logits, around.known[view.node]), around.known[torch.cat([batch.src, batch.dst])])
        if self.review:
            again, links = self._reviewed(self.review, batch.task, generator)
            loss = (1 - self.config.replay.weight) * loss + self.config.replay.weight * again + self.config.replay.links * links
        total = loss + self._held(view, passed, batch) + self._code_losses(batch, generator)
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True, batch_size=1)
        self._note("train/gated", view.gated_share)
        if self.trainer.world_size > 1:  # processes expect a gradient of every parameter
            total = total + 0.0 * torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum()
        self.manual_backward(total)
        self._update(learnt=len(self.queue) > 0, estimators=batch.number < self.config.bottleneck.estimator_passes)
        self._remember(batch, view, passed.rows.detach(), passed.gated)

    def _note(self, name: str, value: Tensor) -> None:
        """Log a figure of a step that loggers record; in all others it would only take time."""
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log(name, value, sync_dist=True, batch_size=1)

    def _reviewed(self, review: Review, task: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the mean classification loss of a draw of replayed events, the same on all processes, and their link loss."""
        view = review.look(generator)
        passed, logits = self.learner(view, task + 1)
        label = review.around.known[view.node]
        again = self._losses(logits, label).sum() / (label >= 0).sum().clamp(min=1)
        links = review.link_loss(view, passed.rows) if self.config.replay.links else torch.zeros_like(again)
        self._note("train/replay", again.detach())
        self._note("train/links", links.detach())
        return again, links

    def _held(self, view: View, passed: Passed, batch: EventBatch) -> Tensor:
        """Return what holds the network to what it was: this process's part of the mean divergence, and the pull of its weights."""
        section, held = self.config.retain, torch.zeros((), device=self.device)
        if section.ewc:
            held = held + section.ewc * self.progress.retained.pull(learning(self.learner))
            self._note("train/ewc", held.detach())
        for teacher in self.teachers:
            strayed = divergence(teacher, self.learner, view, passed.hidden, batch.task, section.temperature).sum()
            strayed = strayed * self.trainer.world_size / (2 * len(batch))
            self._note("train/strayed", strayed.detach())
            held = held + section.distil * strayed
        return held

    def _losses(self, logits: Tensor, label: Tensor) -> Tensor:
        return classification(logits, label, self.learner.heads, self.config.classes, self.shares if self.config.balance else None)

    def _mean_over_all(self, losses: Tensor, label: Tensor) -> Tensor:
        """Return this process's part of the mean over all labelled ends of the batch, so that gradients average to that of one process."""
        return losses.sum() * self.trainer.world_size / (label >= 0).sum().clamp(min=1)

    def _code_losses(self, batch: EventBatch, generator: torch.Generator) -> Tensor:
        """Return the losses of the code and its estimators over a draw from the queue."""
        if not len(self.queue):
            return torch.zeros((), device=self.device)
        x, label = self.queue.sample(self.config.bottleneck.sample, generator)
        opened = self.learner.heads.opened(batch.task + 1)
        bounds = self.learner.code.bounds(x, label, opened, self.config.bottleneck.beta, generator)
        self._note("train/club", bounds.club)
        self._note("train/mine", bounds.mine)
        return bounds.code + bounds.estimators

    def _update(self, learnt: bool, estimators: bool) -> None:
        """Step the optimizers that have something to learn; Lightning counts the first only."""
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        first, *others = optimizers
        for other, steps in zip(others, (learnt, learnt and estimators, learnt and estimators)):
            if steps:
                self.trainer.strategy.optimizer_step(other.optimizer, lambda: None)
            else:
                other.optimizer.zero_grad()
        first.step()
        self.lr_schedulers().step()  # type: ignore[union-attr]

    def _remember(self, batch: EventBatch, view: View, rows: Tensor, held: HeldBack) -> None:
        """Write the rows of all processes into memory, and queue what was held back."""
        node, key = torch.cat([batch.src, batch.dst]), torch.cat([2 * batch.event, 2 * batch.event + 1])
        if self.trainer.world_size > 1:
            place = torch.searchsorted(batch.event, view.key // 2) + len(batch) * (view.key % 2)
            rows = rows.new_zeros(len(node), rows.shape[1]).index_copy(0, place, rows)
            dist.all_reduce(rows)
        self.progress.memory.write(node, key, rows)
        parts = [held.to(self.device) for held in from_all(held)]
        order = HeldBack.ordered(parts)
        self.queue.add(order.x, order.label)

    # -- the end of a pass, and of a task ----------------------------------------------------------------------------------------

    def on_train_batch_end(self, outputs: Any, batch: EventBatch, batch_idx: int) -> None:
        if not batch.last:
            return
        found = self.exams.walk(self.learner, batch.task, "valid", self.progress.before_validation, batch.task)
        score = getattr(accuracies(found, self.learner.heads), self.config.select)
        self.log("train/valid", score, sync_dist=True, batch_size=1)
        self.progress.keep_if_best(score, self.learner.state_dict(), always=self.config.keep == "last")
        if batch.final:
            self._finish(batch.task)

    def _finish(self, task: int) -> None:
        """End a task with its best weights: keep its memory, choose what to replay, and test all tasks so far."""
        progress = self.progress
        assert progress.best is not None
        self.learner.load_state_dict(progress.best.weights)
        before, after = progress.beginning(task, self.fresh_memory, self.config.carry), progress.best.memory.copy()
        progress.replay.tasks.append(choose(self.learner, self.exams, task, before, after, self.config.replay, self.seed))
        progress.gated.append(self.exams.walk(self.learner, task, "valid", after, task).gated)
        progress.snapshots.append(after)
        if (ahead := self.exams.ahead(self.learner, progress.snapshots)) is not None:
            progress.ahead.append(ahead)
        self._retain(task, progress.best.weights)
        progress.finished = True
        for name, row in report.scores(self.tests(), self.learner.heads).items():
            progress.rows.setdefault(name, []).append(row)
            if name.endswith("snapshot"):
                log.info("after task %d, %-8s of tasks 0..%d: %s", task, name.partition("/")[0], task, "  ".join(f"{v:.1f}" for v in row))

    def _retain(self, task: int, weights: dict[str, Tensor]) -> None:
        """Note what the next tasks are to hold on to."""
        section, progress = self.config.retain, self.progress
        if section.ewc:
            generator = torch.Generator().manual_seed((self.seed + task) % 2**63)
            needed = fisher(self.learner, self.exams, task, progress.snapshots[task], section.fisher_events, generator)
            progress.retained.add(needed, learning(self.learner))
        if section.distil:
            progress.retained.weights = weights
        if section.nearest_mean:
            self.learner.means.copy_(kept_means(self.learner, self.exams, progress.replay.tasks, progress.snapshots))

    def tests(self) -> dict[str, list[Found]]:
        """Test every task so far with the present weights, by memory."""
        return {kind: self.exams.tests(self.learner, self.progress.snapshots, kind) for kind in MEMORIES}

    # -- validation --------------------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Walk through the present task's validation events; where a task has ended, test all tasks so far again."""
        task = self.progress.task
        found = self.exams.walk(self.learner, task, "valid", self.progress.before_validation, task)
        if len(found.node):
            scores = accuracies(found, self.learner.heads)
            self.log("val/loss", found.loss(), prog_bar=True, sync_dist=True, batch_size=1)
            self.log("val/task_il", scores.task_il, sync_dist=True, batch_size=1)
            self.log("val/class_il", scores.class_il, sync_dist=True, batch_size=1)
        if self.progress.finished:
            self._report(task)

    def _report(self, task: int) -> None:
        """Test again, with the weights as they are, and lay out what the run has come to."""
        tests, heads = self.tests(), self.learner.heads
        rows, voted = report.with_last(self.progress.rows, report.scores(tests, heads)), report.vote(self.exams, task)
        found = report.figures(rows, tests["snapshot"], voted, heads)
        found |= report.on_validation(self.exams.tests(self.learner, self.progress.snapshots, "current", "valid"), heads)
        counts = [len(self.data.classes_of(number)) for number in range(1, len(self.progress.ahead) + 1)]
        found["test/task_il/FWT"] = forward_transfer(self.progress.ahead, counts)
        for name, value in found.items():
            self.log(name, value, sync_dist=True, batch_size=1)
        self.tables = report.tables(rows, tests["snapshot"], voted, self.data.stream.names, heads)

    def pictures(self, folder: Path) -> list[Path]:
        """Draw the matrices, AP and AF over tasks, and the memory of the test nodes once the last finished task was learnt."""
        from lightning_modules.otgnet import pictures  # plotting takes long to import

        progress = self.progress
        if not progress.snapshots:
            return []
        tested, memory = [], progress.snapshots[-1].copy()
        for task in range(len(progress.snapshots)):
            tested.append(self.exams.walk(self.learner, task, "test", memory, len(progress.snapshots) - 1))
        old = sum(len(self.data.classes_of(task)) for task in range(len(progress.snapshots) - 1))
        nodes = torch.cat([f.node for f in tested])
        matrices: dict[str, Matrix] = {**progress.rows}
        return [pictures.draw_matrices(folder, matrices), pictures.draw_course(folder, matrices, progress.gated),
                pictures.draw_embeddings(folder, memory.rows[nodes], self.exams.label[nodes], self.data.stream.names, old)]

    # -- checkpoints -------------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is no weight."""
        checkpoint["otgnet"] = {"progress": self.progress.state_dict(), "queue": self.queue.state_dict(), "seed": self.seed}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back what is no weight; DataError if the checkpoint's stream opened classes in other tasks."""
        saved_tasks, tasks = tasks_of(checkpoint["state_dict"]), tasks_of(self.state_dict())
        if saved_tasks != tasks:
            raise DataError(f"data: the checkpoint's stream opens {saved_tasks} classes in its tasks, this one {tasks}; all heads "
                            "are made at the start, so restore that stream, or start a new run on this one")
        saved = checkpoint["otgnet"]
        self.progress, self.seed = Progress.of(saved["progress"]), saved["seed"]
        self.queue.load_state_dict(saved["queue"])
