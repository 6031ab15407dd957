"""Who is trained on, who validates and who tests in a stream of tasks, and which events each part may see.

A node is in one part for good, drawn inside its class. Training sees no event of a held-out node; validation sees none of a test node:
the nodes that are scored are new to the network (OTGNet's inductive setting).
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from datamodules.recency import RecentNeighbours
from datamodules.temporal import TemporalStream

Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = ("train", "valid", "test")


def split_nodes(label: Tensor, present: Tensor, valid: float, test: float, seed: int) -> Tensor:
    """Draw a part for each node of a known class that is `present` (N,) bool: 0 train, 1 valid, 2 test, else -1; (N,) int8.

    Of each class the shares `valid` and `test`, rounded, are held out.
    """
    generator = torch.Generator().manual_seed(seed)
    part = torch.full((len(label),), -1, dtype=torch.int8)
    for kind in range(int(label.max()) + 1):
        own = (present & (label == kind)).nonzero().view(-1)
        own = own[torch.randperm(len(own), generator=generator)]
        tests, valids = round(test * len(own)), round(valid * len(own))
        part[own] = 0
        part[own[:tests]] = 2
        part[own[tests:tests + valids]] = 1
    return part


@dataclass
class Division:
    """A stream with the part of each node (N,) int8: -1, 0 train, 1 valid, 2 test."""

    stream: TemporalStream
    node_part: Tensor
    strict_time: bool = False
    _kept: dict[object, object] = field(default_factory=dict, repr=False)

    @property
    def event_part(self) -> Tensor:
        """The part of each event (E,) int8, the later one of its ends; -1 for an event of no task."""
        stream, part = self.stream, self.node_part
        return torch.where(stream.task >= 0, torch.maximum(part[stream.src], part[stream.dst]), -1).to(torch.int8)

    @property
    def arrival(self) -> Tensor:
        """The task of each node's first event, (N,) int64; the number of tasks for a node that has none."""
        stream = self.stream
        found = torch.full((stream.num_nodes,), len(stream.tasks))
        own = stream.task >= 0
        for ends in (stream.src, stream.dst):
            found.scatter_reduce_(0, ends[own], stream.task[own], "amin")
        return found

    def events(self, task: int, part: Part) -> Tensor:
        """Return the places (n,) of a task's events that belong to a part, ascending."""
        return ((self.stream.task == task) & (self.event_part == PARTS.index(part))).nonzero().view(-1)

    def visible(self, task: int, part: Part) -> RecentNeighbours:
        """Return the events that a part may look back at: of all tasks up to this one, none with an end in a later part."""
        key = (task, part)
        if key not in self._kept:
            stream = self.stream
            seen = ((stream.task >= 0) & (stream.task <= task) & (self.event_part <= PARTS.index(part))).nonzero().view(-1)
            self._kept[key] = RecentNeighbours(stream.src, stream.dst, stream.t, seen, nodes=stream.num_nodes, strict_time=self.strict_time)
        found = self._kept[key]
        assert isinstance(found, RecentNeighbours)
        return found

    def scored(self, task: int, part: Part) -> Tensor:
        """Return the nodes of a part that arrive in a task with a class that it opens, ascending."""
        opened_by = self.stream.class_task[self.stream.label.clamp(min=0)]
        own = (self.node_part == PARTS.index(part)) & (self.arrival == task) & (opened_by == task)
        ends = self.events(task, part)
        met = torch.zeros(self.stream.num_nodes, dtype=torch.bool)
        met[self.stream.src[ends]] = met[self.stream.dst[ends]] = True
        return (own & met).nonzero().view(-1)

    def gate_label(self, task: int) -> Tensor:
        """Return the labels that may be used in a task, (N,) int64: of training nodes whose class is open, else -1."""
        label = self.stream.label
        opened = self.stream.class_task[label.clamp(min=0)] <= task
        return torch.where((self.node_part == 0) & (label >= 0) & opened, label, -1)
