"""What a dry run prints once everything is built: model, parameter groups, batch arithmetic."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_summary import ModelSummary
from rich.console import Console
from rich.table import Table

from pipelines.schema import RunConfig


class PreviewDone(Exception):
    """Raised when a dry run has printed what it wanted to, to leave `Trainer.fit` before the first step."""


class Preview(Callback):
    """Print the plan of a run and stop before the first training batch."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.console = Console(soft_wrap=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.console.print(ModelSummary(pl_module, max_depth=2), highlight=False)
        for number, optimizer in enumerate(trainer.optimizers):
            self._optimizer(number, getattr(optimizer, "optimizer", optimizer))
        self._batches(trainer)
        raise PreviewDone

    def _optimizer(self, number: int, optimizer: Any) -> None:
        table = Table(title=f"optimizer {number}: {type(optimizer).__name__}", title_justify="left")
        for heading in ("parameters", "count", "update", "state MB", "AdamW state MB"):
            table.add_column(heading, justify="left" if heading in ("parameters", "update") else "right")
        total = adam = 0
        for name, count, update, state, plain in summary_rows(optimizer):
            table.add_row(name, f"{count:,}", update, f"{state / 1e6:.2f}", f"{plain / 1e6:.2f}")
            total, adam = total + state, adam + plain
        self.console.print(table)
        saved = 100 * (1 - total / adam) if adam else 0
        self.console.print(f"optimizer state {total / 1e6:,.2f} MB; AdamW's would be {adam / 1e6:,.2f} MB: {saved:.1f} % saved")

    def _batches(self, trainer: Trainer) -> None:
        t = self.config.trainer
        data = trainer.datamodule  # type: ignore[attr-defined]
        per = getattr(data, "batch_size", None)
        if per is None:
            return
        world, accumulate = t.devices * t.num_nodes, t.accumulate_grad_batches
        sequences = per * world * accumulate
        line = f"batch: {per} per process x {world} processes x {accumulate} accumulated = {sequences} sequences"
        length = getattr(data, "block_size", None)
        if length:
            line += f" x {length} tokens = {sequences * length:,} tokens an optimizer step"
        steps = int(trainer.estimated_stepping_batches)
        self.console.print(f"{line}; {steps:,} steps" + (f" = {steps * sequences * length:,} tokens" if length else ""))


def summary_rows(optimizer: Any) -> list[tuple[str, int, str, int, int]]:
    """Gather parameters of the same shape and treatment: name pattern, count, update, state bytes, AdamW's state bytes."""
    from lightning_modules.optim.groups import describe

    rows: dict[tuple[str, str], list[int]] = {}
    for row in describe(optimizer):
        update = f"low rank {row.rank}" if row.projected else "full rank"
        pattern = ".".join("*" if part.isdigit() else part for part in row.name.split("."))
        sums = rows.setdefault((f"{pattern} {'x'.join(map(str, row.shape))}", update), [0, 0, 0])
        for place, value in enumerate((1, row.state_bytes, row.adamw_bytes)):
            sums[place] += value
    return [(name, n, update, state, plain) for (name, update), (n, state, plain) in rows.items()]
