"""How a run shows that it moves: a rich bar in a terminal, plain lines in a log file."""

import sys
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

TELL_SECONDS = 30.0  # between two lines of an evaluation
REFRESH_SECONDS = 0.25  # reading a metric waits for the device, so the bar does it rarely


def progress_bar() -> ProgressBar:
    """Choose by where the output goes."""
    return TerminalBar() if sys.stdout.isatty() else LogLines()


def figures(trainer: Trainer) -> str:
    """Write the training metrics of the last step that are meant for a progress bar, and the speed."""
    shown = {name.removeprefix("train/"): float(value) for name, value in trainer.progress_bar_metrics.items() if name.startswith("train/")}
    parts = [f"{name} {value:.4f}" for name, value in shown.items() if not name.startswith("lr")]
    parts += [f"{name} {value:.2e}" for name, value in shown.items() if name.startswith("lr")]
    logged = trainer.logged_metrics
    speed = logged.get("train/items_per_sec", logged.get("train/device/items_per_sec"))
    unit = getattr(trainer.lightning_module, "UNIT", "items")
    return "  ".join(parts if speed is None else [*parts, f"{float(speed):,.0f} {unit}/s"])


def validation_figures(trainer: Trainer) -> str:
    """Write the metrics of the last validation."""
    return "  ".join(f"{name} {float(value):.4f}" for name, value in sorted(trainer.callback_metrics.items()) if name.startswith("val/"))


def steps_in_all(trainer: Trainer) -> int | None:
    """Count the optimizer steps of the whole run; None without an end. Only for use when training has started."""
    steps = trainer.estimated_stepping_batches
    return None if steps == float("inf") else int(steps)


class LogLines(ProgressBar):
    """One line every `log_every_n_steps` optimizer steps, and one for each validation; of an evaluation, one now and then."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._began = (0.0, 0)  # time and step
        self._total: int | None = None
        self._told = 0.0  # time of the last line about an evaluation

    def disable(self) -> None:
        """Stay silent; Lightning calls this on all processes but the first."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = (time.monotonic(), trainer.global_step)
        self._total = steps_in_all(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        due = step % trainer.log_every_n_steps == 0 or step in (1, self._total)  # type: ignore[attr-defined]
        if self._enabled and due and not trainer.fit_loop._should_accumulate():
            print(f"step {step}{f'/{self._total}' if self._total else ''}  {figures(trainer)}{self._left(step)}", flush=True)

    def _left(self, step: int) -> str:
        """Say how long the rest will take at the pace so far."""
        began, first = self._began
        if not self._total or step - first < 2 or step >= self._total:
            return ""
        seconds = (time.monotonic() - began) / (step - first) * (self._total - step)
        return f"  {timedelta(seconds=round(seconds))} left"

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._began = (time.monotonic(), 0)
            self._told = time.monotonic()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
                                dataloader_idx: int = 0) -> None:
        if self._enabled and trainer.state.fn != "fit" and time.monotonic() - self._told > TELL_SECONDS:
            self._told, self._total = time.monotonic(), int(sum(trainer.num_val_batches))
            print(f"validating: batch {batch_idx + 1}/{self._total}{self._left(batch_idx + 1)}", flush=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._enabled and trainer.state.fn == "fit" and not trainer.sanity_checking:
            print(f"step {trainer.global_step}  {validation_figures(trainer)}", flush=True)


class TerminalBar(ProgressBar):
    """One bar over all optimizer steps of the run; the figures of each validation stay above it.

    Lightning's RichProgressBar counts the batches of an epoch, which say little where an epoch is never finished.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._refreshed = 0.0
        self.progress: Progress | None = None

    def disable(self) -> None:
        """Stay silent; Lightning calls this on all processes but the first."""
        self._enabled = False

    def _show(self, what: str, total: float | None, completed: int = 0) -> None:
        if self._enabled and self.progress is None:
            self.progress = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
            )
            self.progress.add_task(what, total=total, completed=completed, figures="")
            self.progress.start()

    def _update(self, **values: Any) -> None:
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], **values)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show("training", steps_in_all(trainer), trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if time.monotonic() - self._refreshed > REFRESH_SECONDS:
            self._refreshed = time.monotonic()
            self._update(figures=figures(trainer))
        self._update(completed=trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._update(description="validating")
        else:
            self._show("validating", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
                                dataloader_idx: int = 0) -> None:
        if trainer.state.fn != "fit":
            self._update(advance=1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.progress is not None and trainer.state.fn == "fit":
            self.progress.console.print(f"step {trainer.global_step}  {validation_figures(trainer)}", highlight=False)
            self._update(description="training")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._update(figures=figures(trainer))
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
        self.progress = None
