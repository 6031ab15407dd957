"""Data for OTGNet: a generated stream whose classes open over time, or a recorded one, cut into tasks and parts."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lightning as L
import torch
from torch import Tensor

from datamodules.opening import opening
from datamodules.recency import RecentNeighbours
from datamodules.rows import DataError
from datamodules.task_order import Once, TaskLoader
from datamodules.temporal import TemporalStream
from datamodules.temporal_files import read_authors, read_folder, read_saved
from datamodules.temporal_tasks import PARTS, Division, Part, split_nodes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OtgnetDataConfig:
    source: Literal["generated", "folder", "authors", "pyg"] = "generated"
    """generated; folder: events.csv, nodes.csv, tasks.json, features.npy; authors: a csv of OTGNet's authors beside its npy; pyg: a
    TemporalData saved by torch, with label (N,) and x (N, F)"""
    root: str | None = None
    """the folder, the csv or the saved file"""
    protocol: Literal["otg", "evolving"] = "otg"
    """events of a task: those whose newer end has a class that the task opens, or all between open classes"""
    classes_per_task: int = 3
    """classes that a task opens where the source does not say: authors and pyg"""
    passes: int = 10
    """times that each task's training events are walked through"""
    batch_size: int = 300
    """events of a batch, of all processes together; they share one memory, so this is part of the model"""
    valid: float = 0.1
    """share of each class's nodes that validate"""
    test: float = 0.1
    """share of each class's nodes that test"""
    split_seed: int = 0
    """draws the parts, and the generated stream"""
    strict_time: bool = False
    """do not look at events of the very time of the one that asks, either; without, the order in the file decides"""

    def __post_init__(self) -> None:
        for name in ("passes", "batch_size", "classes_per_task"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, not {getattr(self, name)}")
        for name in ("valid", "test"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}: must be above 0 and below 1, not {getattr(self, name)}")
        if self.valid + self.test >= 1:
            raise ValueError(f"valid: with data.test it must leave nodes to train on, not {self.valid} + {self.test}")
        if self.split_seed < 0:
            raise ValueError(f"split_seed: must not be negative, not {self.split_seed}")

    def without_effect(self) -> dict[str, str]:
        """Name the keys that other sources read."""
        idle = {"root": "the stream is generated"} if self.source == "generated" else {}
        if self.source in ("generated", "folder"):
            idle |= {"classes_per_task": f"data.source={self.source} says which classes each task opens"}
        else:
            idle |= {"protocol": f"data.source={self.source} has no windows; an event belongs to the task of its later class"}
        return idle


class OtgnetData(L.LightningDataModule):
    """A stream cut into tasks. Training walks through them in order (`task_order.TaskLoader`); the module walks the held-out parts.

    `stream`: one that is in memory already, in place of the source that `config` names.
    """

    def __init__(self, config: OtgnetDataConfig, stream: TemporalStream | None = None) -> None:
        super().__init__()
        self.config = config
        self._given = stream
        self._division: Division | None = None

    def setup(self, stage: str | None = None) -> None:
        """Make or read the stream and draw the parts; raise DataError if it cannot be used."""
        if self._division is not None:
            return
        config = self.config
        stream = self._given or self._read()
        present = torch.zeros(stream.num_nodes, dtype=torch.bool)
        own = stream.task >= 0
        present[stream.src[own]] = present[stream.dst[own]] = True
        part = split_nodes(stream.label, present, config.valid, config.test, config.split_seed)
        self._division = Division(stream, part, config.strict_time)
        self._check()
        log.info("stream: %d events, %d of them in %d tasks; %d nodes take part: %d train, %d validate, %d test", len(stream.t),
                 int(own.sum()), self.num_tasks, int(present.sum()), *(int((part == number).sum()) for number in range(len(PARTS))))

    def _read(self) -> TemporalStream:
        config = self.config
        if config.source == "generated":
            return opening(config.split_seed, config.protocol)
        if config.root is None:
            raise DataError(f"data.root: must name the {config.source} data; write data.root=PATH, or data.source=generated")
        place = Path(config.root).expanduser()
        if not place.exists():
            raise DataError(f"data.root: {place} does not exist")
        if config.source == "folder":
            return read_folder(place, config.protocol)
        if config.source == "authors":
            return read_authors(place, config.classes_per_task)
        return read_saved(place, config.classes_per_task)

    def _check(self) -> None:
        """Refuse a stream with a task that nobody can be scored on."""
        for task in range(self.num_tasks):
            for part in ("valid", "test"):
                if not len(self.scored(task, part)):
                    raise DataError(f"data.{part}: no {part} node arrives in task {task}; raise the share, or merge the task's window with "
                                    "another")

    @property
    def division(self) -> Division:
        assert self._division is not None, "call setup() first"
        return self._division

    @property
    def stream(self) -> TemporalStream:
        return self.division.stream

    @property
    def num_tasks(self) -> int:
        return len(self.stream.tasks)

    @property
    def num_classes(self) -> int:
        return self.stream.num_classes

    @property
    def num_nodes(self) -> int:
        return self.stream.num_nodes

    @property
    def num_features(self) -> int:
        return self.stream.features.shape[1]

    @property
    def node_part(self) -> Tensor:
        """Part of each node, (N,) int8: -1 none, 0 train, 1 valid, 2 test."""
        return self.division.node_part

    def classes_of(self, task: int) -> list[int]:
        """The classes that a task opens."""
        return self.stream.tasks[task]

    def events(self, task: int, part: Part) -> Tensor:
        """Places of a task's events in one part, ascending."""
        return self.division.events(task, part)

    def visible(self, task: int, part: Part) -> RecentNeighbours:
        """What a part of a task may look back at."""
        return self.division.visible(task, part)

    def scored(self, task: int, part: Part) -> Tensor:
        """The nodes that are classified in a part of a task."""
        return self.division.scored(task, part)

    def gate_label(self, task: int) -> Tensor:
        """Labels (N,) that may be used in a task, -1 elsewhere."""
        return self.division.gate_label(task)

    def train_dataloader(self) -> TaskLoader:
        """The training events of all tasks, in order; a checkpoint restores the place exactly."""
        stream = self.stream
        events = [self.events(task, "train") for task in range(self.num_tasks)]
        return TaskLoader(stream.src, stream.dst, stream.t, events, self.config.batch_size, self.config.passes)

    def val_dataloader(self) -> Once:
        """One item: the module walks through the held-out events itself."""
        return Once()

    def test_dataloader(self) -> Once:
        """As for validation."""
        return Once()
