"""Packed causal blocks of a token stream, and the order in which training sees them: one integer restores it."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.rows import DataError

IGNORED = -100  # label that the loss leaves out
PADDING = -1  # index of a block without tokens

Batch = dict[str, Tensor]


class PackedBlocks(Dataset):
    """Cut a stream of S tokens into blocks of T inputs with the T tokens that follow them.

    Neighbouring blocks share one token, so that each token but the first is predicted exactly once.
    With `keep_tail` a last short block is padded; without it, fewer than T tokens at the end are never predicted.
    """

    def __init__(self, tokens: np.ndarray, block_size: int, keep_tail: bool, padding_token: int = 0) -> None:
        self.tokens = tokens
        self.block_size = block_size
        self.padding_token = padding_token
        predicted = len(tokens) - 1
        self.count = -(-predicted // block_size) if keep_tail else predicted // block_size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        return {name: rows[0] for name, rows in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> Batch:
        """Collect blocks: input_ids and labels, both (B, T) int64. PADDING as an index gives a row of ignored labels."""
        size = self.block_size
        inputs = np.full((len(indices), size), self.padding_token, np.int64)
        labels = np.full((len(indices), size), IGNORED, np.int64)
        for row, index in enumerate(indices):
            if index != PADDING:
                block = self.tokens[index * size : (index + 1) * size + 1]  # (T + 1,), fewer at the end
                inputs[row, : len(block) - 1] = block[:-1]
                labels[row, : len(block) - 1] = block[1:]
        return {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}


class TrainingOrder:
    """A permutation of the blocks for each epoch, the same for any number of processes: a batch of B sequences on each of
    W processes is the next B·W blocks, of which each process takes its B. Fewer than B·W blocks at the end are left out.
    """

    def __init__(self, blocks: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.blocks, self.batch_size, self.seed, self.rank = blocks, batch_size, seed, rank
        self.step = batch_size * world_size
        if blocks < self.step:
            raise DataError(f"the training text gives {blocks} blocks, fewer than one batch of {self.step}; "
                            "lower data.batch_size or data.block_size, or give more text")
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.blocks)
        return self._permutation

    def start(self, epoch: int, offset: int) -> tuple[int, int]:
        """Move a position (epoch, blocks seen in it) to the next epoch if no whole batch is left."""
        return (epoch, offset) if offset + self.step <= self.blocks else (epoch + 1, 0)

    def walk(self, epoch: int, offset: int) -> Iterator[list[int]]:
        """Yield this process's batches of block indices from a position on, without end."""
        while True:
            epoch, offset = self.start(epoch, offset)
            first = offset + self.rank * self.batch_size
            yield self.permutation(epoch)[first : first + self.batch_size].tolist()
            offset += self.step


class TrainingLoader:
    """An endless sequence of batches that is handed out in epochs of `len(self)`, and knows where it is.

    Only batches that were handed out count, so a checkpoint is exact whatever the workers have prepared ahead.
    An epoch that the trainer cuts short (limit_train_batches) goes on in the next one instead of starting anew.
    """

    def __init__(self, blocks: Dataset, order: TrainingOrder, workers: int = 0) -> None:
        self.blocks, self.order, self.workers = blocks, order, workers
        self.epoch = self.offset = 0
        self._iterator: Any = None  # under this name, Lightning stops its workers at the end of a run

    def __len__(self) -> int:
        return self.order.blocks // self.order.step

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(len(self)):
            if self._iterator is None:
                self._iterator = self._start()
            batch = next(self._iterator)
            epoch, offset = self.order.start(self.epoch, self.offset)
            self.epoch, self.offset = epoch, offset + self.order.step
            yield batch

    def _start(self) -> Iterator[Batch]:
        return batches_from(self.blocks, self.workers, batch_sampler=self.order.walk(self.epoch, self.offset))

    def state_dict(self) -> dict[str, int]:
        """Where the sequence stands; `blocks` and `seed` say which sequence."""
        return {"epoch": self.epoch, "offset": self.offset, "blocks": self.order.blocks, "seed": self.order.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state` was taken; the batch size and the number of processes may differ, the blocks may not."""
        for name in ("blocks", "seed"):
            if state[name] != getattr(self.order, name):
                raise DataError(f"the checkpoint was made with other training data ({name} {state[name]}, now "
                                f"{getattr(self.order, name)}); restore the data section of that run, or start a new run")
        self.epoch, self.offset = state["epoch"], state["offset"]
        self._iterator = None


def held_out_loader(blocks: PackedBlocks, batch_size: int, rank: int = 0, world_size: int = 1) -> DataLoader:
    """Batches of this process's share of all blocks, in order.

    Where the blocks do not divide by the number of processes, rows of ignored labels fill up: all processes take equally many steps.
    """
    indices = [*range(len(blocks)), *[PADDING] * (-len(blocks) % world_size)][rank::world_size]
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    return DataLoader(blocks, batch_sampler=batches, collate_fn=_as_it_is, generator=torch.Generator())


def batches_from(dataset: Dataset, workers: int, **options: Any) -> Iterator[Any]:
    """Start a DataLoader whose batches come from the dataset as they are."""
    # a generator of its own: starting workers must not draw from the run's random numbers
    loader = DataLoader(dataset, num_workers=workers, collate_fn=_as_it_is, generator=torch.Generator(),
                        pin_memory=torch.cuda.is_available(), worker_init_fn=_leave_interrupts_to_the_run, **options)
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads of a tokenizer do not survive a fork
    try:
        return iter(loader)
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _leave_interrupts_to_the_run(worker: int) -> None:
    """Ignore Ctrl-C, which a terminal sends to all processes: the run needs batches to the end of its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    return batch
