"""A device without memory left: what holds it is written down, beside what `fivefold estimate` says of the same run."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from pipelines.runs import SETTINGS

SECONDS = 300  # for the estimate
ENTRIES = 100_000  # allocations of which the snapshot tells where they were made


@dataclass(frozen=True)
class Held:
    """Bytes of a device: in tensors, kept for tensors by torch, not taken by anybody, and all."""

    tensors: int
    reserved: int
    free: int
    total: int


class OutOfMemory(Callback):
    """On CUDA's out-of-memory error, leave out-of-memory/snapshot-RANK.pickle and estimate.txt in the run folder, and say so in the error.

    With `history` the snapshot also tells where each block was allocated, which makes allocations slower. `measure` and `snapshot` are
    torch's, unless a test has no device.
    """

    def __init__(self, folder: Path, history: bool = False, measure: Callable[[], Held] | None = None,
                 snapshot: Callable[[str], None] | None = None) -> None:
        self.folder, self.history = folder, history
        self.measure, self.snapshot = measure or held_on_gpu, snapshot or torch.cuda.memory._dump_snapshot

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.history and torch.cuda.is_available():
            torch.cuda.memory._record_memory_history(max_entries=ENTRIES)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, torch.OutOfMemoryError):
            return
        place = self.folder / "out-of-memory"
        place.mkdir(parents=True, exist_ok=True)
        held = self.measure()
        file = place / f"snapshot-{trainer.global_rank}.pickle"
        self.snapshot(str(file))
        exception.add_note(f"this was step {trainer.global_step + 1}; {described(held)}; {file} shows each block at pytorch.org/memory_viz")
        if trainer.is_global_zero:
            exception.add_note(estimated(self.folder, held.total, place / "estimate.txt"))


def held_on_gpu() -> Held:
    """Ask torch and the driver about the current device."""
    free, total = torch.cuda.mem_get_info()
    return Held(torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), free, total)


def described(held: Held) -> str:
    """Say who has the memory; what neither torch nor nobody has belongs to CUDA and to other processes."""
    others = held.total - held.free - held.reserved
    return (f"of {_gb(held.total)} GB tensors held {_gb(held.tensors)}, torch kept {_gb(held.reserved - held.tensors)} more in pieces, "
            f"CUDA and other processes had {_gb(others)}, {_gb(held.free)} were free")


def estimated(folder: Path, total: int, file: Path) -> str:
    """Estimate the run of a folder in a process of its own, write that into `file`, and return its verdict or why there is none."""
    words = ["estimate", f"config={folder / SETTINGS}", f"device={total / 1e9:.1f}GB"]
    try:
        done = subprocess.run([sys.executable, "-P", "-m", "pipelines", *words], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"fivefold estimate took longer than {SECONDS} s"
    file.write_text(done.stdout + done.stderr)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["nothing"]
    return f"fivefold estimate says: {lines[-1].removeprefix('error: ')} (all of it in {file})"


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"
