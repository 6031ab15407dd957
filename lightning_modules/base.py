"""What all methods share: where they may run and how their optimizer and schedule come from the config."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_modules.optim.schedule import make_schedule
from lightning_modules.optim.zero import cut_in_force


@dataclass(frozen=True)
class OptimizerFactory:
    """The optimizer that the user chose, not yet tied to parameters; a method may call it once for each network."""

    kind: type[Optimizer]
    config: Any  # the dataclass of `kind`; its `schedule` field is a ScheduleConfig

    def __call__(self, named_parameters: Iterable[tuple[str, Parameter]]) -> Optimizer:
        return self.kind(named_parameters, self.config)

    def schedule(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """Make the learning-rate schedule of `optimizer`; `total_steps` counts optimizer steps."""
        return make_schedule(optimizer, self.config.schedule, total_steps)


@dataclass(frozen=True)
class Rehearsal:
    """What a method needs to be built and to take one step where no data can be read."""

    data: Any  # stands in for the datamodule
    batch: Any  # of one process, on the CPU
    notes: tuple[str, ...] = ()  # what had to be assumed, in words for the user


@dataclass(frozen=True)
class Exportable:
    """A trained network in the terms of transformers and peft, with the tokenizer that it was trained with."""

    model: Any  # PreTrainedModel, or PeftModel around one
    tokenizer: Any  # PreTrainedTokenizerBase


@dataclass(frozen=True)
class OwnFolder:
    """What `fivefold export` writes for a method whose networks are none of transformers': `save` fills an empty folder."""

    kind: str  # in a word, such as networks
    save: Callable[[Path], None]


@dataclass(frozen=True)
class Phase:
    """A training that has to come before a method's own, such as that of a network which weighs the data.

    `folder` is named after everything that decides the outcome, so that a finished phase is never trained again, whichever run asks
    for it, and one that was interrupted goes on. The module leaves `DONE` there when its outcome is whole.
    """

    DONE = "meta.json"

    name: str
    folder: Path
    module: "MethodModule"
    data: LightningDataModule
    epochs: int

    @property
    def done(self) -> bool:
        return (self.folder / self.DONE).is_file()


class NothingToTrain(Exception):
    """Raised by a module that was asked to stop before its training; the message says what it has made instead."""


@dataclass(frozen=True)
class Table:
    """Rows that a validation shows beside its figures, such as questions with their answers.

    One that is `printed` is read on the terminal, too, at the end of an evaluation; one of `media` has cells that only W&B shows.
    """

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    printed: bool = False
    media: bool = False


class MethodModule(LightningModule):
    """A method: its networks and losses. Subclasses take `(config, optimizer)`.

    `STRATEGIES` names the strategies on which the method is exact, `OPTIMIZERS` says how many optimizers it has; `compose` refuses what
    does not fit. `UNIT` is what its speed is counted in: the numbers of a batch's first tensor, or, of a batch that has it, `units`.
    """

    STRATEGIES: tuple[str, ...] = ("single",)
    OPTIMIZERS = 1
    UNIT = "tokens"
    kept_in: Path | None = None  # folder in which an evaluation keeps what it has found so far; the launcher sets it

    def __init__(self, config: Any, optimizer: OptimizerFactory) -> None:
        super().__init__()
        self.config = config
        self.optimizer = optimizer
        self.tables: dict[str, Table] = {}  # of the last validation, on the first process; the launcher writes them down
        self.incomplete = ""  # what an evaluation lacks that it may find when it goes on, in words for the user

    def phases(self, data: Any) -> Iterable[Phase]:
        """Give the trainings that come before this one, in their order; `data` is set up."""
        return ()

    def pictures(self, folder: Path) -> list[Path]:
        """Draw what training has shown into the run's folder; called on the first process when a run ends."""
        return []

    @property
    def holds_parts(self) -> bool:
        """Tell whether `shard` leaves to this process a part of each weight; a network without memory then never needs all of it."""
        return self.device_mesh is not None or cut_in_force() is not None

    def shard(self, network: nn.Module, blocks: Iterable[nn.Module]) -> nn.Module:
        """Spread a network's weights: by rows under FSDP2, each of `blocks` gathered on its own; in chunks under ZeRO 3; else leave it."""
        if self.device_mesh is not None:
            mesh = self.device_mesh["data_parallel"]
            for block in blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(network, mesh=mesh)
        elif cut := cut_in_force():
            cut(network)
        return network

    def rehearsal(self, data: Any, vocab_size: int | None) -> Rehearsal | None:
        """Return what the estimate of memory needs, from the data's config alone; None: this method cannot be estimated.

        `vocab_size` is what the user says; None: find out or assume.
        """
        return None

    def exportable(self) -> Exportable | OwnFolder | None:
        """Return what `fivefold export` writes, once the network is built and its weights are loaded; None: nothing."""
        return None

    def configure_optimizers(self) -> Any:
        """Give Lightning one optimizer over all trainable parameters, its schedule stepping with it."""
        trainable = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        optimizer = self.optimizer(trainable)
        schedule = self.optimizer.schedule(optimizer, optimizer_steps(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "train/lr"}}


def optimizer_steps(trainer: Trainer) -> int:
    """Count the optimizer steps of a whole run: the smaller of max_steps and what max_epochs make.

    `trainer.estimated_stepping_batches` is not asked, because it sets the loaders up too early: a resumed run then starts their
    order anew without a word (Lightning issue 20550). Here the training loader is made once more, for its length only.
    """
    limits: list[int] = []
    if trainer.max_steps != -1:
        limits.append(trainer.max_steps)
    if trainer.max_epochs not in (None, -1):
        limits.append(trainer.max_epochs * math.ceil(_epoch_batches(trainer) / trainer.accumulate_grad_batches))
    if not limits:
        raise ValueError("trainer.max_steps: the schedule needs an end; give it, or trainer.max_epochs")
    return min(limits)


def _epoch_batches(trainer: Trainer) -> int:
    """Count the batches of one epoch on one process; `limit_train_batches` is a number, or a share of them."""
    limit = trainer.limit_train_batches
    loaders = CombinedLoader(trainer.datamodule.train_dataloader()).flattened  # type: ignore[attr-defined]
    try:
        length = max(len(loader) for loader in loaders)
    except TypeError:  # a stream
        if isinstance(limit, int):
            return limit
        raise ValueError("trainer.max_epochs: this training data has no length; give trainer.max_steps instead") from None
    return min(length, limit) if isinstance(limit, int) else int(length * limit)
