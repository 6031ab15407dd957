"""Validation and test of each task: which events are walked through, from which memory, and how well the nodes are classified."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datamodules.task_order import EventBatch
from lightning_modules.otgnet.heads import Heads
from lightning_modules.otgnet.memory import Memory
from lightning_modules.otgnet.model import OpenModel
from lightning_modules.otgnet.view import Surroundings
from lightning_modules.otgnet.walk import Found, Reach, walk

SETTINGS = ("task_il", "class_il")
MEMORIES = ("snapshot", "current")


@dataclass(frozen=True)
class Accuracies:
    """Percent of right nodes: among the classes of a node's own task, and among all open classes."""

    task_il: float
    class_il: float


def accuracies(found: Found, heads: Heads) -> Accuracies:
    """Score the last prediction of each node in both settings; NaN where nothing was scored."""
    within = heads.within_task(found.logits, found.label).argmax(-1)
    return Accuracies(*(100.0 * float((said == found.label).float().mean()) for said in (within, found.logits.argmax(-1))))


class Exams:
    """Walks through parts of one stream; what is on the datamodule `data` is moved to the device once."""

    def __init__(self, data: Any, reach: Reach, device: torch.device) -> None:
        self.data, self.reach, self.device = data, reach, device
        stream = data.stream
        self.src, self.dst, self.t = (part.to(device) for part in (stream.src, stream.dst, stream.t))
        self.features, self.label = stream.features.to(device), stream.label.to(device)
        self._around: dict[tuple[int, str, int], Surroundings] = {}

    def around(self, task: int, part: str, seen: int) -> Surroundings:
        """Return what is visible in a part of a task, with the training labels of tasks up to `seen`."""
        key = (task, part, seen)
        if key not in self._around:
            known = self.data.gate_label(seen).to(self.device)
            self._around[key] = Surroundings(self.data.visible(task, part), self.t, self.features, known, self.data.num_classes)
        return self._around[key]

    def events(self, event: Tensor) -> EventBatch:
        """Return the events at places (B,) of the stream."""
        event = event.to(self.device)
        return EventBatch(event, self.src[event], self.dst[event], self.t[event])

    def walk(self, model: OpenModel, task: int, part: str, memory: Memory, seen: int) -> Found:
        """Walk through the "valid" or "test" events of a task, writing into `memory`, when tasks up to `seen` have been learnt.

        The classes of a later task compete as well where that is the one examined.
        """
        scored = self.data.scored(task, part).to(self.device)
        return walk(model, self.around(task, part, seen), memory, self.events(self.data.events(task, part)), scored, self.label,
                    max(seen, task) + 1, self.reach)

    def ahead(self, model: OpenModel, snapshots: list[Memory]) -> float | None:
        """Return the task-IL accuracy on the test nodes of the task that comes next, of which nothing was learnt; None: there is none."""
        seen = len(snapshots) - 1
        if seen + 1 == len(self.data.stream.tasks):
            return None
        return accuracies(self.walk(model, seen + 1, "test", snapshots[seen].copy(), seen), model.heads).task_il

    def visible_events(self, task: int, part: str) -> Tensor:
        """List the places (V,) of the events that a part of a task may look back at."""
        return self.data.visible(task, part).event.unique()

    def tests(self, model: OpenModel, snapshots: list[Memory], kind: str, part: str = "test") -> list[Found]:
        """Test all tasks that have been learnt: each from the memory that was kept of its own end, or all from the newest one."""
        seen = len(snapshots) - 1
        return [self.walk(model, task, part, snapshots[task if kind == "snapshot" else seen].copy(), seen) for task in range(seen + 1)]
