"""Blocks of a text that is never written to disk: read, shuffled, tokenised and packed as training goes, and restored exactly."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from datamodules.blocks import Batch, batches_from
from datamodules.cache import encoded
from datamodules.hub import ROWS_AT_A_TIME, batches, height, texts
from datamodules.rows import DataError, RowFormat
from datamodules.text import Share

State = dict[str, Any]  # plain values only, so that a checkpoint loads with weights_only=True


@dataclass(frozen=True)
class TextStream:
    """What is streamed and how it becomes tokens: the same on every process."""

    rows_of: Any  # the whole split, a datasets.IterableDataset
    label: str  # names the split in messages
    rows: RowFormat
    share: Share
    tokenizer: PreTrainedTokenizerBase
    block_size: int
    window: int  # rows shuffled among each other; 1: the dataset's own order
    seed: int
    identity: dict[str, Any]  # keys of the data section that decide the documents and their order

    def part(self, turn: int, lane: int, lanes: int) -> Any:
        """Open one of `lanes` disjoint parts of the rows for a turn through the dataset.

        Files are dealt out where their number divides by `lanes`; otherwise every part reads all files and keeps
        one row in `lanes`. With a window above 1 the order of the files changes with the seed and the turn.
        """
        from datasets.distributed import split_dataset_by_node

        part = split_dataset_by_node(self.rows_of, rank=lane, world_size=lanes)
        if self.window > 1:  # datasets shuffles files by the number of the epoch, and not at all in epoch 0
            digest = hashlib.blake2b(f"{self.seed} {turn}".encode(), digest_size=3).digest()
            part.set_epoch(1 + int.from_bytes(digest, "big"))
        return part


class Lane:
    """One part of a stream as endless blocks: turn after turn through the dataset, window after window.

    The documents of a window are shuffled by a permutation that (seed, turn, lane, window) decides. `state` says where the
    current window starts in the dataset, which tokens were left over before it, and how many of its blocks were taken:
    going on from a state reads that window again, so nothing but these few numbers has to be stored.
    """

    def __init__(self, stream: TextStream, lane: int, lanes: int, state: State | None = None) -> None:
        self.stream, self.lane, self.lanes = stream, lane, lanes
        start = {"turn": 0, "window": 0, "rows": 0, "position": None, "rest": [stream.tokenizer.eos_token_id], "taken": 0}
        self.state: State = dict(state) if state else start

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield (T + 1,) tokens, neighbours sharing one; raise DataError at a bad row, or if this part has no text at all."""
        while True:
            fresh, found = self.state["window"] == 0, False
            for tokens in self._windows():
                found = found or len(tokens) > len(self.state["rest"])
                yield from self._cut(tokens)
            if fresh and not found:
                raise DataError(f"{self._label}: holds no text to train on; lower data.workers, or give more text")
            self.state |= {"turn": self.state["turn"] + 1, "window": 0, "rows": 0, "position": None}

    def _windows(self) -> Iterator[np.ndarray]:
        """Yield what is to be cut next: the tokens left over and those of a window; move the state past it afterwards."""
        stream, state, size = self.stream, self.state, self.stream.block_size
        part = stream.part(state["turn"], self.lane, self.lanes)
        if state["position"]:
            part.load_state_dict(state["position"])
        for table in batches(part, stream.window if stream.window > 1 else ROWS_AT_A_TIME, self._label, state["rows"]):
            position = part.state_dict()
            tokens = np.array([*state["rest"], *self._tokens(table)], np.int64)
            yield tokens
            state |= {"window": state["window"] + 1, "rows": state["rows"] + height(table), "position": position,
                      "rest": tokens[(len(tokens) - 1) // size * size :].tolist(), "taken": 0}

    def _tokens(self, table: dict[str, list]) -> Iterator[int]:
        stream, state = self.stream, self.state
        documents = list(texts(table, stream.rows, stream.share, self._label, state["rows"]))
        if stream.window > 1:
            order = np.random.default_rng([stream.seed, state["turn"], self.lane, state["window"]]).permutation(len(documents))
            documents = [documents[index] for index in order]
        for ids, _ in encoded(documents, stream.tokenizer):
            yield from ids

    def _cut(self, tokens: np.ndarray) -> Iterator[np.ndarray]:
        size = self.stream.block_size
        for index in range(self.state["taken"], (len(tokens) - 1) // size):
            self.state["taken"] = index + 1
            yield tokens[index * size : (index + 1) * size + 1]

    @property
    def _label(self) -> str:
        part = f", part {self.lane + 1} of {self.lanes}" if self.lanes > 1 else ""
        return f"{self.stream.label}{part}"


class _LaneBatches(IterableDataset):
    """Batches with the lane's state after each; a worker reads the lane at its own place in `lanes`."""

    def __init__(self, lanes: list[Lane], batch_size: int) -> None:
        self.lanes, self.batch_size = lanes, batch_size

    def __iter__(self) -> Iterator[tuple[Batch, State]]:
        worker = get_worker_info()
        lane = self.lanes[worker.id if worker else 0]
        blocks = lane.blocks()
        while True:
            rows = torch.from_numpy(np.stack([next(blocks) for _ in range(self.batch_size)]))  # (B, T + 1)
            yield {"input_ids": rows[:, :-1].contiguous(), "labels": rows[:, 1:].contiguous()}, dict(lane.state)


class StreamLoader:
    """An endless stream that is handed out in epochs of `epoch_batches`, and knows where it is.

    Each worker of each process reads a lane of its own; a process takes its batches from its workers in turn. A batch
    carries the state of its lane, and only batches that were handed out count, so a checkpoint is exact whatever the
    workers have prepared ahead. The lanes, and so the batches, depend on the number of workers and processes.
    """

    def __init__(self, stream: TextStream, batch_size: int, epoch_batches: int, workers: int = 0, rank: int = 0,
                 world_size: int = 1) -> None:
        self.stream, self.batch_size, self.epoch_batches, self.workers = stream, batch_size, epoch_batches, workers
        self.rank, self.world_size = rank, world_size
        self.identity = {**stream.identity, "workers": workers}
        self.states: list[State | None] = [None] * max(workers, 1)
        self.next = 0  # the worker whose turn it is
        self._iterator: Any = None  # under this name, Lightning stops its workers at the end of a run

    def __len__(self) -> int:
        return self.epoch_batches

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(len(self)):
            if self._iterator is None:
                self._iterator = self._start()
            batch, state = next(self._iterator)
            self.states[self.next] = state
            self.next = (self.next + 1) % len(self.states)
            yield batch

    def _start(self) -> Iterator[tuple[Batch, State]]:
        count = len(self.states)
        order = [(self.next + place) % count for place in range(count)]  # worker 0 is asked first
        lanes = [Lane(self.stream, self.rank * count + index, self.world_size * count, self.states[index]) for index in order]
        return batches_from(_LaneBatches(lanes, self.batch_size), self.workers, batch_size=None)

    def state_dict(self) -> State:
        """Where all processes stand; every process has to call it at the same time."""
        mine = {"lanes": list(self.states), "next": self.next}
        everyone: list[Any] = [mine]
        if self.world_size > 1:
            everyone = [None] * self.world_size
            dist.all_gather_object(everyone, mine)
        return {"identity": self.identity, "processes": everyone}

    def load_state_dict(self, state: State) -> None:
        """Go on where `state` was taken; the batch size may differ, the text and the number of its readers may not."""
        for key, value in state["identity"].items():
            if value != self.identity.get(key):
                raise DataError(f"data.{key}: {self.identity.get(key)} here, but the checkpoint's stream was read with {value}; "
                                f"set data.{key}={value}, or start a new run")
        if len(state["processes"]) != self.world_size:
            raise DataError(f"the checkpoint's stream was read by {len(state['processes'])} processes, not by {self.world_size}; "
                            "resume on as many, or start a new run")
        self.states, self.next = list(state["processes"][self.rank]["lanes"]), state["processes"][self.rank]["next"]
        self._iterator = None
