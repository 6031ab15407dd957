"""Checkpoints of models that one process cannot hold: a folder to which each process writes its own part. Nothing is gathered.

    step=00000500.ckpt/
      __0_0.distcp, __1_0.distcp, …   the tensors that each process keeps, written by torch.distributed.checkpoint
      .metadata                       in which file each row of each tensor lies
      rest.pt                         all else that a checkpoint holds, written last

The tensors are those of the one file that other checkpoints are, so that either can be made into the other: weights by name, and
optimizer states by the number of the parameter.
"""

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from lightning_modules.optim.adamw import AdamW, State
from pipelines.runs import PART, REST, put_in_place, sync

WEIGHTS, STATES = "weights/", "states/"  # begin the names of tensors


def save_parts(checkpoint: dict[str, Any], final: Path, is_first: bool) -> None:
    """Write a checkpoint that holds this process's part, together with all processes.

    The folder gets its name from the first process, when all parts are on disk. A failure of one process raises on all.
    """
    part = final.with_name(final.name + PART)
    try:
        with warnings.catch_warnings(action="ignore"):  # that there is one process only
            dcp.save(_tensors(checkpoint), storage_writer=dcp.FileSystemWriter(part))
        if is_first:
            with (part / REST).open("wb") as file:
                torch.save(_rest(checkpoint), file)
                file.flush()
                os.fsync(file.fileno())
            sync(part)
            put_in_place(part, final)
    finally:
        if is_first:
            shutil.rmtree(part, ignore_errors=True)


def _tensors(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Name all tensors of the weights and the optimizer states."""
    found = {WEIGHTS + name: value for name, value in checkpoint["state_dict"].items() if isinstance(value, Tensor)}
    for index, saved in enumerate(checkpoint["optimizer_states"]):
        for number, entry in saved["state"].items():
            found |= {f"{STATES}{index}/{number}/{key}": value for key, value in entry.items()}
    return found


def _rest(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint without those tensors."""
    others = {name: value for name, value in checkpoint["state_dict"].items() if not isinstance(value, Tensor)}
    return {**checkpoint, "state_dict": others, "optimizer_states": [{**saved, "state": {}} for saved in checkpoint["optimizer_states"]]}


class Parts(dcp.FileSystemReader):
    """Read from a folder what this process needs, whoever wrote it and however many they were; other processes are not asked."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder, self._metadata = folder, super().read_metadata()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return what was read when this was made."""
        return self._metadata

    def rest(self) -> dict[str, Any]:
        """Read the checkpoint without its tensors."""
        return torch.load(self.folder / REST, map_location="cpu", weights_only=True)

    def sizes(self, prefix: str) -> dict[str, Tensor]:
        """Describe the tensors whose names begin with `prefix`, by the rest of their names, as tensors on "meta"."""
        found = {name: facts for name, facts in self._metadata.state_dict_metadata.items() if name.startswith(prefix)}
        return {name[len(prefix):]: torch.empty(facts.size, dtype=facts.properties.dtype, device="meta")
                for name, facts in found.items() if isinstance(facts, TensorStorageMetadata)}

    def fill(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        """Read into tensors, or into the rows of DTensors that are here, what is saved under their names."""
        with warnings.catch_warnings(action="ignore"):  # that each process reads for itself
            dcp.load({prefix + name: tensor for name, tensor in tensors.items()}, storage_reader=self, no_dist=True)

    def all(self, prefix: str) -> dict[str, Tensor]:
        """Read whole all tensors whose names begin with `prefix`, by the rest of their names."""
        found = {name: torch.empty_like(size, device="cpu") for name, size in self.sizes(prefix).items()}
        self.fill(found, prefix)
        return found

    def weights(self) -> dict[str, Any]:
        """Read the whole weights."""
        return self.rest()["state_dict"] | self.all(WEIGHTS)

    def fill_weights(self, own: Mapping[str, Tensor], strict: bool) -> None:
        """Read the weights; RuntimeError for those of another model, or, if `strict`, of only a part of it."""
        saved = self.sizes(WEIGHTS)
        if different := sorted(saved.keys() - own.keys() or (saved.keys() ^ own.keys() if strict else ())):
            raise RuntimeError(f"the saved weights are of another model: {different[0]} is in only one of them")
        self.fill({name: own[name] for name in saved}, WEIGHTS)


class SavedStates(Mapping[int, State]):
    """The saved entries of one optimizer by number, each read when it is asked for, as far as this process keeps it."""

    def __init__(self, parts: Parts, index: int, optimizer: AdamW) -> None:
        self.parts, self.prefix, self.optimizer = parts, f"{STATES}{index}/", optimizer
        self.saved: dict[int, State] = {}
        for name, size in parts.sizes(self.prefix).items():
            number, _, key = name.partition("/")
            self.saved.setdefault(int(number), {})[key] = size

    def __getitem__(self, number: int) -> State:
        room = self.optimizer.room_for(self.optimizer.order[number], self.saved[number])
        self.parts.fill({key: value for key, value in room.items() if not value.is_meta}, f"{self.prefix}{number}/")
        return room

    def __iter__(self) -> Iterator[int]:
        return iter(self.saved)

    def __len__(self) -> int:
        return len(self.saved)


def load_whole(folder: Path) -> dict[str, Any]:
    """Read a whole checkpoint from its parts: what one file would hold."""
    parts = Parts(folder)
    checkpoint = parts.rest()
    checkpoint["state_dict"] = parts.weights()
    for name, value in parts.all(STATES).items():
        index, number, key = name.split("/", 2)
        checkpoint["optimizer_states"][int(index)]["state"].setdefault(int(number), {})[key] = value
    return checkpoint
