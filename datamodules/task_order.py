"""The order in which training sees a stream of tasks: passes over the events of one task, in time order, then the next task.

One epoch of Lightning is the whole run, so its length is known and a single integer says where a run stands. Events are never shuffled.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from datamodules.rows import DataError


@dataclass
class EventBatch:
    """Events that follow each other in time; all read the memory as it was before the first of them."""

    event: Tensor  # (B,) int64, place in the stream
    src: Tensor  # (B,) int64
    dst: Tensor  # (B,) int64
    t: Tensor  # (B,) int64
    task: int = 0
    number: int = 0  # of the pass over this task's events, from 0
    first: bool = False  # of its pass
    last: bool = False  # of its pass
    final: bool = False  # of its task

    def to(self, device: torch.device | str, **_: Any) -> "EventBatch":
        """Return the batch on a device."""
        return replace(self, event=self.event.to(device), src=self.src.to(device), dst=self.dst.to(device), t=self.t.to(device))

    def share(self, rank: int, processes: int) -> "EventBatch":
        """Return the consecutive part of the events that one of several processes takes; parts differ by one event at most."""
        size = len(self.event)
        return self.span(rank * size // processes, (rank + 1) * size // processes)

    def span(self, start: int, stop: int) -> "EventBatch":
        """Return the events from `start` up to `stop`, places in this batch."""
        part = slice(start, stop)
        return replace(self, event=self.event[part], src=self.src[part], dst=self.dst[part], t=self.t[part])

    @property
    def units(self) -> int:
        """What a run's speed counts: the events."""
        return len(self.event)

    def __len__(self) -> int:
        return len(self.event)


class TaskLoader:
    """Batches of a stream, `passes` times over each task's events; a checkpoint restores the position exactly.

    `events` lists each task's training events, ascending places in the stream.
    """

    def __init__(self, src: Tensor, dst: Tensor, t: Tensor, events: Sequence[Tensor], batch_size: int, passes: int) -> None:
        self.src, self.dst, self.t, self.events, self.batch_size, self.passes = src, dst, t, list(events), batch_size, passes
        self.position = 0  # batches handed out
        for task, own in enumerate(self.events):
            if not len(own):
                raise DataError(f"data: task {task} has no training events; lower data.valid and data.test, or merge its window")
        self.counts = [-(-len(own) // batch_size) for own in self.events]  # batches of one pass

    def __len__(self) -> int:
        return self.passes * sum(self.counts)

    def __iter__(self) -> Iterator[EventBatch]:
        while self.position < len(self):
            self.position += 1
            yield self.batch(self.position - 1)

    def batch(self, position: int) -> EventBatch:
        """Make the batch at a position of the run."""
        task, within = 0, position
        while within >= self.passes * self.counts[task]:
            within -= self.passes * self.counts[task]
            task += 1
        number, place = divmod(within, self.counts[task])
        event = self.events[task][place * self.batch_size:(place + 1) * self.batch_size]
        last = place == self.counts[task] - 1
        return EventBatch(event, self.src[event], self.dst[event], self.t[event], task, number, place == 0, last,
                          last and number == self.passes - 1)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "counts": self.counts, "passes": self.passes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; DataError if the batches of that run were others."""
        if state["passes"] != self.passes or state["counts"] != self.counts[:len(state["counts"])]:
            raise DataError(f"data.passes: the checkpoint was made with {state['passes']} passes of {state['counts']} batches, now "
                            f"{self.passes} of {self.counts}; restore the data section of that run, or start a new run")
        self.position = state["position"]


class Once:
    """A loader of one item, for a validation that walks a part of the stream itself."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[int]:
        return iter([0])
