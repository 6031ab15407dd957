"""How hard is each step of a rationale for the student before it learns? (Eq 8), from one forward over the training samples.

    d_ik = - Σ_{j in step k} ŵ_ij log P(r_ij | r_i<j, x_i; θ_s),    ŵ = softmax of the token weights inside the step

ŵ sums to 1 in each step, so that d is a weighted mean of the tokens' negative log-likelihoods, whatever the length of the step.
Teacher forcing gives the likelihood of every token of a sample in the same forward.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from datamodules.blocks import IGNORED
from datamodules.samples import Samples
from lightning_modules.kpod.loss import token_nll
from lightning_modules.processes import from_all, from_first

log = logging.getLogger(__name__)

REPORT_SECONDS = 10.0

Batch = dict[str, Tensor]
# samples by index -> collated batches in which no step is given; equally many samples make equally many batches
Batches = Callable[[list[int]], Iterable[Batch]]


def segment_softmax(values: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Return the softmax inside each segment, float64 (n,); `segments` (n,) are ints that never fall."""
    if not len(values):
        return np.empty(0)
    values, starts = values.astype(np.float64), _starts(segments)
    sizes = np.diff(starts, append=len(values))
    powers = np.exp(values - np.repeat(np.maximum.reduceat(values, starts), sizes))
    return powers / np.repeat(np.add.reduceat(powers, starts), sizes)


def step_difficulties(nll: np.ndarray, samples: Samples, weights: np.ndarray | None = None) -> np.ndarray:
    """Return d_ik of all steps, sample after sample, float64 (Σ n_i,): samples.counts says how many each sample has.

    `nll` and `weights` are flat over all tokens, (L,). Without weights ŵ is uniform, so that d is the plain mean of the step.
    """
    in_step = np.flatnonzero(samples.steps >= 0)
    segments = np.repeat(np.cumsum(samples.counts) - samples.counts, np.diff(samples.offsets))[in_step] + samples.steps[in_step]
    shares = segment_softmax(np.zeros(len(in_step)) if weights is None else weights[in_step], segments)
    products = shares * nll[in_step].astype(np.float64)
    return np.add.reduceat(products, _starts(segments)) if len(products) else products


def targets_of(batch: Batch, logits: Tensor, samples: Samples) -> dict[int, np.ndarray]:
    """Return for each sample of a batch in which no step is given the NLL of its targets: of the flat places from its first step on."""
    nll = token_nll(logits, batch["labels"].to(logits.device)).cpu().numpy()
    wanted = (batch["labels"] != IGNORED).cpu().numpy()
    found = {}
    for row, index in enumerate(batch["index"].tolist()):
        if index >= 0:  # else a row that only fills up
            found[index] = nll[row, wanted[row]]
            assert len(found[index]) == samples.active(index, 0), f"sample {index}: not all of its targets are in the batch"
    return found


def nll_of_all(samples: Samples, batches: Batches, forward: Callable[[Batch], Tensor], work: Path, rows: int = 1024) -> np.ndarray:
    """Return the NLL of every token, float32 (L,), 0 in prompts: `forward` turns a batch into logits (B, T, V).

    Every process has to call this. Samples are walked by length in chunks of `rows`, of which each process takes its share; all call
    `forward` equally often, as a student spread over processes needs. The first process keeps each finished chunk in `work`, so that an
    interrupted walk goes on where it was: with as many processes as before, to the same bits. The model is expected in
    eval mode, and gradients are not recorded.
    """
    order = np.argsort(np.diff(samples.offsets), kind="stable")
    chunks = [order[begin : begin + rows] for begin in range(0, len(order), rows)]
    walk = _Walk(samples, work, len(chunks))
    done = from_first([walk.read(number, chunk) is not None for number, chunk in enumerate(chunks)])
    for number, chunk in enumerate(chunks):
        if not done[number]:
            found = dict(pair for share in from_all(_share(chunk, samples, batches, forward)) for pair in share.items())
            if _rank() == 0:
                walk.write(number, np.concatenate([found[index] for index in chunk.tolist()]))
    return from_first(_placed(samples, chunks, walk) if _rank() == 0 else None)


class _Walk:
    """The chunks that are finished, each a file that appears whole or not at all."""

    def __init__(self, samples: Samples, work: Path, count: int) -> None:
        self.samples, self.work, self.count = samples, work, count
        self.reported = time.monotonic()
        work.mkdir(parents=True, exist_ok=True)

    def read(self, number: int, chunk: np.ndarray) -> np.ndarray | None:
        """Return the target NLL of the samples in `chunk`, one behind the other; None if they are not there."""
        try:
            values = np.load(self._path(number))
        except (OSError, ValueError, EOFError):
            return None
        return values if values.shape == (int(self.samples.active(chunk, 0).sum()),) else None

    def write(self, number: int, values: np.ndarray) -> None:
        temporary = self._path(number).with_suffix(".tmp")
        with temporary.open("wb") as stream:
            np.save(stream, values)
        os.replace(temporary, self._path(number))
        if time.monotonic() - self.reported > REPORT_SECONDS:
            self.reported = time.monotonic()
            log.info("difficulty: %d of %d parts of the samples done", number + 1, self.count)

    def _path(self, number: int) -> Path:
        return self.work / f"nll-{number:05d}.npy"


def _share(chunk: np.ndarray, samples: Samples, batches: Batches, forward: Callable[[Batch], Tensor]) -> dict[int, np.ndarray]:
    """Walk this process's share of a chunk, filled up with a sample of the first process's to the length of the longest share."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    own = chunk[_rank() :: world].tolist()
    filled = own + [int(chunk[0])] * (-(-len(chunk) // world) - len(own))
    found: dict[int, np.ndarray] = {}
    with torch.no_grad():
        for batch in batches(filled):
            found.update(targets_of(batch, forward(batch), samples))
    return {index: found[index] for index in own}


def _placed(samples: Samples, chunks: Sequence[np.ndarray], walk: _Walk) -> np.ndarray:
    """Put the values of all chunks at their places among the tokens."""
    flat = np.zeros(len(samples.ids), np.float32)
    for number, chunk in enumerate(chunks):
        values = walk.read(number, chunk)
        assert values is not None, f"part {number} of the difficulties is gone from {walk.work}"
        lengths = samples.active(chunk, 0)
        within = np.arange(len(values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        flat[np.repeat(samples.first(chunk, 0), lengths) + within] = values
    return flat


def _starts(segments: np.ndarray) -> np.ndarray:
    """Return where each run of equal numbers begins."""
    return np.flatnonzero(np.diff(segments, prepend=segments[0] - 1)) if len(segments) else np.empty(0, np.int64)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
