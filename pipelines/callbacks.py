"""What every run does beside training: seeds, progress, throughput, a record of validations, a clean way to be interrupted."""

import hashlib
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar, RichProgressBar, ThroughputMonitor

METRICS_SHOWN = ("train/loss", "train/lr", "val/perplexity")


class SeedEachBatch(Callback):
    """Seed python, numpy and torch before each training batch from (seed, rank, batches so far).

    Dropout then depends on where a run stands and not on what ran before it, so a resumed run needs no saved
    generator state, and validating more often changes nothing.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        place = f"{self.seed} {trainer.global_rank} {trainer.fit_loop.total_batch_idx}"
        number = int.from_bytes(hashlib.blake2b(place.encode(), digest_size=8).digest(), "big") >> 1
        random.seed(number)
        np.random.seed(number % 2**32)
        torch.manual_seed(number)


class RunRecord(Callback):
    """Remember the last validation and the step it was made at."""

    def __init__(self) -> None:
        self.validated_step = -1
        self.metrics: dict[str, float] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.validated_step = trainer.global_step
        self.metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}


class Interrupt(Callback):
    """On the first Ctrl-C or SIGTERM finish the optimizer step, save a checkpoint and stop; a second Ctrl-C stops at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requested: int | None = None
        self.saved: Path | None = None
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._request)

    def _request(self, number: int, frame: Any) -> None:
        if self.requested is not None:
            raise KeyboardInterrupt
        self.requested = number
        sys.stderr.write("\ninterrupted: saving a checkpoint at the end of this step (once more: stop at once, without saving)\n")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.requested is None or self.saved or trainer.fit_loop._should_accumulate():
            return  # gradients of half an accumulation window are in no checkpoint, so wait for its end
        self.saved = self.folder / f"step={trainer.global_step:08d}.ckpt"
        if not self.saved.exists():
            trainer.save_checkpoint(self.saved)
        trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class Throughput(ThroughputMonitor):
    """Lightning's monitor, counting sequences and tokens, or whatever the batch's first tensor holds."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(batch_size_fn=lambda batch: _first(batch).shape[0], length_fn=lambda batch: _first(batch).numel(), **kwargs)


def _first(batch: Any) -> torch.Tensor:
    if isinstance(batch, torch.Tensor):
        return batch
    values = batch.values() if isinstance(batch, dict) else batch
    return next(v for v in values if isinstance(v, torch.Tensor))


def tokens_per_second(trainer: Trainer) -> float | None:
    """Return what ThroughputMonitor logged last, in tokens a second over all devices."""
    logged = trainer.logged_metrics
    value = logged.get("train/items_per_sec", logged.get("train/device/items_per_sec"))
    return None if value is None else float(value)


def progress_bar() -> ProgressBar:
    """A rich bar in a terminal, plain lines in a log file."""
    return TerminalBar() if sys.stdout.isatty() else LogLines()


class TerminalBar(RichProgressBar):
    """Rich progress bar with tokens a second and the learning rate."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        metrics["lr"] = f"{learning_rate(trainer):.2e}"
        speed = tokens_per_second(trainer)
        if speed:
            metrics["tokens/s"] = f"{speed:,.0f}"
        return metrics


def learning_rate(trainer: Trainer) -> float:
    """Return the learning rate of the first parameter group."""
    return float(trainer.optimizers[0].param_groups[0]["lr"]) if trainer.optimizers else 0.0


class LogLines(ProgressBar):
    """One line every `log_every_n_steps` optimizer steps, and one for each validation."""

    def __init__(self) -> None:
        super().__init__()
        self._started = time.monotonic()
        self._enabled = True

    def disable(self) -> None:
        """Stay silent; Lightning calls this on all processes but the first."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        due = step % trainer.log_every_n_steps == 0 or step == trainer.max_steps or step == 1
        if not self._enabled or trainer.fit_loop._should_accumulate() or not due:
            return
        loss = trainer.callback_metrics.get("train/loss")
        of = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
        line = f"step {step}{of}  lr {learning_rate(trainer):.2e}"
        if loss is not None:
            line += f"  loss {float(loss):.4f}"
        speed = tokens_per_second(trainer)
        if speed:
            line += f"  {speed:,.0f} tokens/s"
        print(line, flush=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._enabled or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        shown = "  ".join(f"{k} {float(v):.4f}" for k, v in sorted(trainer.callback_metrics.items()) if k.startswith("val/"))
        print(f"step {trainer.global_step}  {shown}", flush=True)
