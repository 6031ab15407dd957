"""What a dry run prints once everything is built: model, parameter groups, batch arithmetic."""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table
from torch import nn

from lightning_modules.base import optimizer_steps
from lightning_modules.optim.groups import describe
from pipelines.schema import RunConfig


class PreviewDone(Exception):
    """Raised when a dry run has printed what it wanted to, to leave `Trainer.fit` before the first step."""


class Preview(Callback):
    """Print the plan of a run and stop when all is built: before the module's own `on_fit_start`, which may take long."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._model(pl_module)
        for number, optimizer in enumerate(trainer.optimizers):
            self._optimizer(number, getattr(optimizer, "optimizer", optimizer))
        self.console.print(batch_arithmetic(self.config, trainer))
        self.console.print("dry run: nothing was trained or written")
        raise PreviewDone

    def _model(self, module: LightningModule) -> None:
        table = _table("module", "class", "parameters", "trainable")
        for name, child in [*_children(module), ("all", module)]:
            counts = [sum(p.numel() for p in child.parameters() if p.requires_grad or not only) for only in (False, True)]
            if counts[0]:
                table.add_row(name, type(child).__name__, *(f"{count:,}" for count in counts))
        self.console.print(table, "")

    def _optimizer(self, number: int, optimizer: Any) -> None:
        table = _table(f"optimizer {number}: {type(optimizer).__name__}", "update", "count", "shape", "state", "AdamW's")
        rows = summary_rows(optimizer)
        for name, update, shape, count, state, adamw in rows:
            table.add_row(name, update, str(count), shape, bytes_text(state), bytes_text(adamw))
        total, plain = sum(row[4] for row in rows), sum(row[5] for row in rows)
        saved = round(100 * (1 - total / plain), 1) + 0.0 if plain else 0.0  # + 0.0 makes -0.0 a plain zero
        self.console.print(table)
        self.console.print(f"optimizer state: {bytes_text(total)}; AdamW's would be {bytes_text(plain)}: {saved:.1f} % saved\n")


def _table(*headings: str) -> Table:
    """Lay out words to the left and, from the third column on, numbers to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place < 2 else "right", overflow="fold")
    return table


def _children(module: nn.Module, depth: int = 2, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """List sub-modules down to a depth, with dotted names."""
    if depth == 0:
        return []
    return [pair for name, child in module.named_children()
            for pair in [(prefix + name, child), *_children(child, depth - 1, f"{prefix}{name}.")]]


def bytes_text(count: int) -> str:
    """Write a number of bytes in the unit that suits it."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.2f} {units[0]}"


def batch_arithmetic(config: RunConfig, trainer: Trainer) -> str:
    """Say how many sequences and tokens an optimizer step and the run hold, as far as the data tell."""
    t, data, steps = config.trainer, trainer.datamodule, optimizer_steps(trainer)  # type: ignore[attr-defined]
    per, length = getattr(data, "batch_size", None), getattr(data, "block_size", None)
    if per is None:
        return f"{steps:,} optimizer steps"
    sequences = per * t.devices * t.num_nodes * t.accumulate_grad_batches
    line = (f"batch: {per} sequences x {t.devices * t.num_nodes} processes x {t.accumulate_grad_batches} accumulated "
            f"= {sequences:,} sequences an optimizer step")
    if length is None:
        return f"{line}, {steps:,} steps"
    return f"{line}\ntokens: {sequences:,} x {length} = {sequences * length:,} a step x {steps:,} steps = {sequences * length * steps:,}"


def summary_rows(optimizer: Any) -> list[tuple[str, str, str, int, int, int]]:
    """Gather parameters of the same name but for numbers: name, update, shape, count, state bytes, AdamW's state bytes."""
    rows: dict[tuple[str, str, str], list[int]] = {}
    for row in describe(optimizer):
        name = ".".join("*" if part.isdigit() else part for part in row.name.split("."))
        update = f"projected, rank {row.rank}" if row.projected else "full rank"
        sums = rows.setdefault((name, update, "x".join(map(str, row.shape))), [0, 0, 0])
        for place, value in enumerate((1, row.state_bytes, row.adamw_bytes)):
            sums[place] += value
    return [(*key, *sums) for key, sums in rows.items()]  # type: ignore[misc]
