"""Where a run stands in its stream: the task, the memory and what was kept of earlier tasks. Every change is saved with a checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_modules.otgnet.continual import Retained
from lightning_modules.otgnet.memory import Memory
from lightning_modules.otgnet.replay import Replay


@dataclass
class Best:
    """The weights and the memory after the pass with the best validation of a task so far."""

    score: float
    weights: dict[str, Tensor]
    memory: Memory


@dataclass
class Progress:
    """The state of a run beside weights and optimizers."""

    memory: Memory
    task: int = 0
    finished: bool = False  # whether the task was examined
    best: Best | None = None
    snapshots: list[Memory] = field(default_factory=list)  # after training and validation events of each finished task
    replay: Replay = field(default_factory=Replay)
    retained: Retained = field(default_factory=Retained)
    gated: list[float] = field(default_factory=list)  # share of gated neighbours in the validation of each finished task
    ahead: list[float] = field(default_factory=list)  # task-IL accuracy on the second task and later ones, just before each was learnt
    rows: dict[str, list[list[float]]] = field(default_factory=dict)  # "setting/memory" -> accuracy on tasks 0..T after each task T

    def begin_pass(self, task: int, number: int, fresh: Callable[[], Memory], carry: bool) -> None:
        """Go back to the memory that this task begins with: that of the task before, or a fresh one."""
        if number == 0:
            self.task, self.finished, self.best = task, False, None
        self.memory = self.beginning(task, fresh, carry)

    def beginning(self, task: int, fresh: Callable[[], Memory], carry: bool) -> Memory:
        """Return the memory with which each pass over a task begins: a fresh one, or what the last task left."""
        return self.snapshots[task - 1].copy() if carry and task > 0 else fresh()

    def keep_if_best(self, score: float, weights: dict[str, Tensor], always: bool) -> bool:
        """Keep weights and memory of a pass that validates better than all before it in this task."""
        if self.best is not None and not always and not score > self.best.score:
            return False
        kept = {name: value.detach().clone() for name, value in weights.items()}
        self.best = Best(score, kept, self.memory.copy())
        return True

    @property
    def before_validation(self) -> Memory:
        """A copy of the memory as the task's training events have left it, so far or at their best."""
        return (self.best.memory if self.finished and self.best else self.memory).copy()

    def to(self, device: torch.device) -> None:
        self.memory = self.memory.to(device)
        self.snapshots = [memory.to(device) for memory in self.snapshots]
        self.retained.to(device)
        if self.best:
            self.best.memory = self.best.memory.to(device)

    def state_dict(self) -> dict[str, Any]:
        best = self.best and {"score": self.best.score, "weights": self.best.weights, "memory": self.best.memory.state_dict()}
        return {"memory": self.memory.state_dict(), "task": self.task, "finished": self.finished, "best": best,
                "snapshots": [memory.state_dict() for memory in self.snapshots], "replay": self.replay.state_dict(),
                "retained": self.retained.state_dict(), "gated": self.gated, "ahead": self.ahead, "rows": self.rows}

    @staticmethod
    def of(state: dict[str, Any]) -> "Progress":
        """Make the progress that gave `state`."""
        best = state["best"] and Best(state["best"]["score"], state["best"]["weights"], Memory.of(state["best"]["memory"]))
        rows = {name: [[*row] for row in matrix] for name, matrix in state["rows"].items()}
        snapshots = [Memory.of(memory) for memory in state["snapshots"]]
        return Progress(Memory.of(state["memory"]), state["task"], state["finished"], best, snapshots, Replay.of(state["replay"]),
                        Retained(**state["retained"]), [*state["gated"]], [*state["ahead"]], rows)
