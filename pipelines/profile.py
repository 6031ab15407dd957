"""Where the time of a step goes: some steps under PyTorch's profiler, as a table and as a trace for chrome://tracing or ui.perfetto.dev."""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

SKIP, STEPS, ROWS = 3, 5, 15  # batches before the first that is measured, batches measured, operations listed
PHASES = ("forward", "backward", "optimizer and logging")


class StepProfile(Callback):
    """Profile STEPS training batches after SKIP others; leave profile/trace-RANK.json and profile/table-RANK.txt in the run folder.

    The phases of a step stand in both: forward up to the first backward pass, backward, and the rest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "profile"
        self.seen = self.measured = 0
        self._profiler: Any = None
        self._phase: Any = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen += 1
        if self.seen == SKIP + 1:
            devices = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._profiler = profile(activities=devices, record_shapes=True, profile_memory=True, acc_events=True)
            self._profiler.start()
        self._enter(PHASES[0])

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        self._enter(PHASES[1])

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter(PHASES[2])

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._enter(None)
        if self._profiler is not None:
            self.measured += 1
            if self.measured == STEPS:
                self._finish(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._enter(None)
        self._finish(trainer)

    def _enter(self, phase: str | None) -> None:
        if self._phase is not None:
            self._phase.__exit__(None, None, None)
        self._phase = record_function(phase) if phase and self._profiler is not None else None
        if self._phase is not None:
            self._phase.__enter__()

    def _finish(self, trainer: Trainer) -> None:
        """Write both files; nothing if no batch was measured."""
        if self._profiler is None:
            return
        self._profiler.stop()
        profiler, self._profiler = self._profiler, None
        if not self.measured:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        rank = trainer.global_rank
        profiler.export_chrome_trace(str(self.folder / f"trace-{rank}.json"))
        tables = [phase_table(profiler.key_averages(), self.measured), operation_table(profiler.key_averages(), self.measured)]
        with (self.folder / f"table-{rank}.txt").open("w") as file:
            Console(file=file, width=120).print(*tables)
        if rank == 0:
            Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 120).print(*tables)
            print(f"profile: {self.folder}/table-0.txt, and trace-0.json for ui.perfetto.dev", flush=True)


def phase_table(events: Any, steps: int) -> Table:
    """Lay out the milliseconds of a batch by phase, on the host's clock."""
    table = _table(f"phases, mean of {steps} batches", "phase", "ms")
    spent = {event.key: event.cpu_time_total for event in events if event.key in PHASES}
    for phase in PHASES:
        table.add_row(phase, f"{spent.get(phase, 0) / steps / 1e3:.3f}")
    return table


def operation_table(events: Any, steps: int) -> Table:
    """Lay out the operations that take most time of their own, on the GPU if any ran there, else on the CPU."""
    rows = operations(events)
    where = "GPU" if any(event.self_device_time_total for event in events) else "CPU"
    table = _table(f"operations, by their own time on the {where}", "operation", "a batch", "ms", "share", "MB taken")
    total = sum(time for _, _, time, _ in rows) or 1.0
    for name, calls, time, memory in rows[:ROWS]:
        table.add_row(name, f"{calls / steps:g}", f"{time / steps / 1e3:.3f}", f"{100 * time / total:.1f} %", f"{memory / steps / 1e6:.2f}")
    return table


def operations(events: Any) -> list[tuple[str, int, float, int]]:
    """List operations, dearest first: name, calls, own microseconds on the device that did the work, own bytes there."""
    gpu = any(event.self_device_time_total for event in events)
    listed = [(e.key, e.count, float(e.self_device_time_total if gpu else e.self_cpu_time_total),
               int(e.self_device_memory_usage if gpu else e.self_cpu_memory_usage)) for e in events if e.key not in PHASES]
    return sorted(listed, key=lambda row: -row[2])


def _table(title: str, *headings: str) -> Table:
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    return table
