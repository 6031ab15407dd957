"""In-rationale progressive distillation as an order of training: which samples, how many of their steps are given, and by what to divide.

A stage is an epoch (Algorithm 1 of the KPOD paper). The table of given steps is finished before training, so nothing changes while workers
run: the sampler, which lives in the training process, says with each index how many steps are given.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from datamodules.blocks import TrainingLoader, TrainingOrder
from datamodules.rows import DataError
from datamodules.samples import ANSWER, Samples

Normaliser = Literal["tokens", "weights", "sum"]


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample of a batch."""

    index: int
    given: int  # steps that are input; the others and the answer are to be learned
    total: float  # what the loss is divided by: a sum over the whole accumulation window and all processes


@dataclass(frozen=True)
class Curriculum:
    """What training is taught: the weight of each token, and the number of given steps by stage.

    `weights` (L,) float32 in [0, 1], flat over the tokens of all samples (None: ones); `table` (T + 1, N) integers, row t for stage t
    (None: nothing is ever given). Epoch e, counted from 0, is stage e + 1; after stage T nothing is given. `normaliser` says what the
    loss of an accumulation window is divided by: its tokens to be learned, the sum of their weights, or nothing (sum).
    """

    samples: Samples
    weights: np.ndarray | None = None
    table: np.ndarray | None = None
    normaliser: Normaliser = "tokens"

    def __post_init__(self) -> None:
        if self.weights is not None:
            assert self.weights.shape == self.samples.ids.shape, f"{self.weights.shape} weights of {self.samples.ids.shape} tokens"
            assert np.isfinite(self.weights).all()
        if self.table is not None:
            assert self.table.ndim == 2, self.table.shape
            assert self.table.shape[1] == len(self.samples), f"a table of {self.table.shape[1]} for {len(self.samples)} samples"
            assert ((self.table >= 0) & (self.table <= self.samples.counts)).all()

    def given(self, epoch: int, index: Any) -> Any:
        """Return how many steps of sample `index` (a number or an array) are input in an epoch."""
        if self.table is None or epoch + 1 >= len(self.table):
            return np.zeros_like(index)
        return self.table[epoch + 1][index].astype(np.int64)

    def mass(self, epoch: int, indices: np.ndarray) -> float:
        """Return what these samples add to the divisor of an epoch's loss."""
        if self.normaliser == "sum":
            return 0.0
        given = self.given(epoch, indices)
        if self.normaliser == "tokens" or self.weights is None:
            return float(self.samples.active(indices, given).sum())
        ends = self.samples.offsets[np.asarray(indices) + 1]
        return float((self._sums[ends] - self._sums[self.samples.first(indices, given)]).sum())

    @cached_property
    def _sums(self) -> np.ndarray:
        """Sum of the weights before each token, (L + 1,) float64; an answer's tokens weigh 1."""
        assert self.weights is not None
        return np.concatenate([[0.0], np.cumsum(np.where(self.samples.steps == ANSWER, 1.0, self.weights), dtype=np.float64)])

    @cached_property
    def key(self) -> str:
        """Hash all of it."""
        content = hashlib.blake2b(f"{self.samples.key} {self.normaliser}".encode(), digest_size=10)
        for array in (self.weights, self.table):
            content.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
        return content.hexdigest()


class CurriculumOrder(TrainingOrder):
    """The order of training, whose batches are lists of Draw.

    The permutation is the same on every process, so each knows without asking what all of them learn in a window of `accumulate`
    batches. The last window of an epoch may be shorter; `epoch_batches` is where the trainer ends an epoch, if before the last batch.
    """

    def __init__(self, curriculum: Curriculum, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, accumulate: int = 1,
                 epoch_batches: int | None = None) -> None:
        samples = len(curriculum.samples)
        if samples < batch_size * world_size:
            raise DataError(f"there are {samples} training samples, fewer than one batch of {batch_size * world_size}; "
                            "lower data.batch_size, or give more rows")
        super().__init__(samples, batch_size, seed, rank, world_size)
        self.curriculum, self.accumulate = curriculum, accumulate
        self.batches = samples // self.step
        self.epoch_batches = min(self.batches, epoch_batches or self.batches)
        self._window, self._total = -1, 0.0

    def walk(self, epoch: int, offset: int) -> Iterator[list[Draw]]:  # type: ignore[override]  # the loader hands on what it gets
        """Yield this process's batches from a position on, without end."""
        while True:
            epoch, offset = self.start(epoch, offset)
            first = offset + self.rank * self.batch_size
            indices = self.permutation(epoch)[first : first + self.batch_size]
            total = self.total(self.number(epoch, offset))
            yield [Draw(int(index), int(given), total) for index, given in zip(indices, self.curriculum.given(epoch, indices))]
            offset += self.step

    def number(self, epoch: int, offset: int) -> int:
        """Count the batches before a position."""
        return epoch * self.batches + offset // self.step

    def window(self, number: int) -> range:
        """Return the batches, by number, that are accumulated with batch `number` into one step of the optimizer."""
        begin = number - number % self.epoch_batches  # of the trainer's epoch
        first = number - (number - begin) % self.accumulate
        return range(first, min(first + self.accumulate, begin + self.epoch_batches))

    def total(self, number: int) -> float:
        """Return the divisor of the loss in the window of batch `number`, over all processes."""
        window = self.window(number)
        if window.start != self._window:
            self._window, self._total = window.start, sum(map(self._mass, window)) or 1.0
        return self._total

    def _mass(self, number: int) -> float:
        epoch, place = divmod(number, self.batches)
        return self.curriculum.mass(epoch, self.permutation(epoch)[place * self.step : (place + 1) * self.step])


class CurriculumLoader(TrainingLoader):
    """A training loader whose checkpoint belongs to one curriculum, and to the beginning of an accumulation window."""

    order: CurriculumOrder

    def state_dict(self) -> dict[str, Any]:
        """Where the sequence stands, and in which."""
        return {**super().state_dict(), "curriculum": self.order.curriculum.key}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; raise DataError if the samples, weights or table were others."""
        super().load_state_dict(state)
        if state["curriculum"] != self.order.curriculum.key:
            raise DataError(f"the checkpoint was made with other samples, weights or schedule (curriculum {state['curriculum']}, now "
                            f"{self.order.curriculum.key}); restore the data and module sections of that run, or start a new run")
        epoch, offset = self.order.start(self.epoch, self.offset)
        if offset % self.order.step or self.order.window(number := self.order.number(epoch, offset)).start != number:
            raise DataError("the checkpoint stands within a step of this run: data.batch_size, trainer.devices and "
                            "trainer.accumulate_grad_batches must be those of that run, or start from the end of an epoch")
