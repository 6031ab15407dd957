"""What every run does beside training: seeds, learning rate, throughput, and a record of the last validation."""

import csv
import hashlib
import os
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ThroughputMonitor
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import RunningStage
from torch.utils._pytree import tree_leaves

from lightning_modules.base import Table
from pipelines.exhibits import exhibit
from pipelines.runs import PART


class SeedEachBatch(Callback):
    """Seed python, numpy and torch before each training batch from (seed, rank, batches so far).

    Dropout then depends on where a run stands and not on what ran before it, so a resumed run needs no saved
    generator state, and validating more often changes nothing.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Seed the first weights, too: preparing the data may have drawn numbers, and draws none when they are cached."""
        seed_at(self.seed, "weights")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed_at(self.seed, f"{trainer.global_rank} {trainer.fit_loop.total_batch_idx}")


def seed_at(seed: int, place: str) -> None:
    """Seed python, numpy and torch as a run of `seed` does at a place: "weights", or the rank and the batches so far."""
    number = int.from_bytes(hashlib.blake2b(f"{seed} {place}".encode(), digest_size=8).digest(), "big") >> 1
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


class RunRecord(Callback):
    """Validate at the last step, whatever the interval, and remember the last validation and its step."""

    def __init__(self) -> None:
        self.validated_step = -1
        self.metrics: dict[str, float] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        steps_done = 0 < trainer.max_steps <= trainer.global_step
        epochs_done = trainer.is_last_batch and 0 < (trainer.max_epochs or 0) <= trainer.current_epoch + 1
        if steps_done or epochs_done:
            trainer.should_stop = True  # Lightning validates before it stops

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.validated_step = trainer.global_step
        self.metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("val/", "test/"))}


class LearningRate(Callback):
    """Log the learning rate that a step is made with, that of each optimizer's first group, as train/lr or train/lr/NUMBER."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        several = len(trainer.optimizers) > 1
        for number, optimizer in enumerate(trainer.optimizers):
            pl_module.log(f"train/lr/{number}" if several else "train/lr", optimizer.param_groups[0]["lr"], prog_bar=True)


class Throughput(ThroughputMonitor):
    """Lightning's monitor for training: samples and items a second, and MFU where the device's peak is known.

    Items are what the module calls its UNIT. Without a known peak, floating-point operations are not counted.
    """

    def __init__(self, window_size: int) -> None:
        super().__init__(batch_size_fn=lambda batch: size_of(batch)[0], length_fn=lambda batch: size_of(batch)[1], window_size=window_size)
        self._module_has_flops = False

    def on_train_start(self, trainer: Trainer, *rest: Any) -> None:
        """Count the operations of a batch once, here: a model that cannot be counted trains all the same."""
        if self.available_flops:
            try:
                self._module_has_flops = bool(trainer.lightning_module.flops_per_batch)
            except Exception as error:
                warnings.warn(f"no MFU: the operations of a batch cannot be counted ({type(error).__name__}: {error})", stacklevel=2)
        super().on_train_start(trainer, *rest)

    def _compute(self, trainer: Trainer, iter_num: int | None = None) -> None:
        """Log rates only, under the step that they belong to; totals would start anew when a run is resumed."""
        if trainer.training and trainer._logger_connector.should_update_logs:
            found = self._throughputs[RunningStage.TRAINING].compute()
            rates = {f"train/{key}": value for key, value in found.items() if key.endswith(("_per_sec", "mfu"))}
            trainer._logger_connector.log_metrics(rates)  # type: ignore[arg-type]


def size_of(batch: Any) -> tuple[int, int]:
    """Count the samples and the items of a batch: by its own `units`, else by its first tensor, (B, ...), else as one."""
    if isinstance(units := getattr(batch, "units", None), int):
        return units, units
    first = next((leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor) and leaf.ndim), None)
    return (1, 1) if first is None else (first.shape[0], first.numel())


class Findings(Callback):
    """Write down what a module shows beside figures: its tables after each validation, its pictures at the end; W&B gets them too.

    An evaluation ends with its validation.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        for name, table in pl_module.tables.items():  # type: ignore[union-attr, operator]
            if not table.media:
                write_table(self.folder / "tables" / f"{name}.csv", table)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_table(name, columns=list(table.columns), data=[[exhibit(cell) for cell in row] for row in table.rows])
        if pl_module.kept_in is not None:
            self._draw(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for picture in pl_module.pictures(self.folder):  # type: ignore[operator]
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger) and picture.suffix == ".png":
                    logger.log_image(picture.stem, [str(picture)])


def write_table(path: Path, table: Table) -> None:
    """Write a table as a CSV file, whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(path.name + PART)
    with part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table.columns)
        writer.writerows(table.rows)
    os.replace(part, path)
