"""Streams of events between nodes whose classes open over time, and the task that each event belongs to.

Two protocols give an event a task. A window that opens classes is a task; `otg` keeps an event of a window if the newer of its ends has a
class that the window opens, `evolving` keeps it if the classes of both ends are open by then. Streams without windows open K classes at a
time, in the order of their numbers, and an event belongs to the task of its later class, as in OTGNet's public code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Protocol = Literal["otg", "evolving"]


@dataclass(frozen=True)
class TemporalStream:
    """Events (E,) in time order; nodes have one class for all times.

    `task` is the task of each event, -1 for one that belongs to none.
    """

    src: Tensor  # (E,) int64
    dst: Tensor  # (E,) int64
    t: Tensor  # (E,) int64, never falling
    features: Tensor  # (N, F) float32
    label: Tensor  # (N,) int64, -1 unknown
    tasks: list[list[int]]  # classes that each task opens
    task: Tensor  # (E,) int64
    names: list[str]  # of the classes

    @property
    def num_nodes(self) -> int:
        return len(self.label)

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def class_task(self) -> Tensor:
        """The task that opens each class, (C,) int64; the number of tasks for a class that none opens."""
        found = torch.full((self.num_classes,), len(self.tasks))
        for task, classes in enumerate(self.tasks):
            found[classes] = task
        return found


def windowed_tasks(src: np.ndarray, dst: np.ndarray, window: np.ndarray, label: np.ndarray, first: np.ndarray,
                   tasks: Sequence[Sequence[int]], protocol: Protocol) -> np.ndarray:
    """Return the task of each event from the window of its time, -1 for none, (E,) int64.

    `window` (E,) is -1 outside of all windows; `label` (N,) may hold -1; `first` (N,) is the time at which a node appears.
    """
    opens = np.full(max(label.max(initial=0), max(max(classes) for classes in tasks)) + 2, len(tasks))
    for task, classes in enumerate(tasks):
        opens[list(classes)] = task
    at_src, at_dst = opens[label[src]], opens[label[dst]]  # label -1 reads the last place, which never opens
    if protocol == "otg":
        newest = np.where(first[src] >= first[dst], at_src, at_dst)
        kept = (newest == window) & (np.maximum(at_src, at_dst) <= window)
    else:
        kept = np.maximum(at_src, at_dst) <= window
    return np.where(kept & (window >= 0), window, -1)


def counted_tasks(src: np.ndarray, dst: np.ndarray, label: np.ndarray, each: int) -> tuple[np.ndarray, list[list[int]]]:
    """Return the task of each event where every task opens `each` classes, in the order of their numbers, and the tasks' classes."""
    classes = int(label.max(initial=-1)) + 1
    tasks = [list(range(begin, min(begin + each, classes))) for begin in range(0, classes, each)]
    known = (label[src] >= 0) & (label[dst] >= 0)
    return np.where(known, np.maximum(label[src], label[dst]) // each, -1), tasks
