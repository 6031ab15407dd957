"""Batches of samples and prompts as tensors, for decoder-only and for encoder-decoder students."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.blocks import IGNORED, PADDING, Batch
from datamodules.curriculum import Curriculum, Draw
from datamodules.samples import Layout

Placement = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class Form:
    """How token sequences become tensors.

    `placement` says where the given steps of an encoder-decoder student go: behind the prompt in the encoder's text, or before the others
    in the decoder, where their labels are ignored. The decoder begins with the padding token, as T5's does.
    """

    layout: Layout
    eos: int
    pad: int
    placement: Placement = "encoder"


class TrainingBatches(Dataset):
    """The samples of a curriculum by draws: `__getitems__` gives a batch.

    All: labels (B, T) int64 for the outputs at the same places, IGNORED where nothing is to be learned; weights (B, T) float32, the token's
    weight in the rationale, 1 in the answer, 0 elsewhere; places (M,) int64, where in the flattened labels something is to be learned;
    index (B,) int64; total () float32 (see Draw).
    causal: input_ids and attention_mask (B, T), padded on the right. seq2seq: input_ids and attention_mask (B, S) of the encoder, and
    decoder_input_ids (B, T).
    """

    def __init__(self, curriculum: Curriculum, form: Form) -> None:
        self.curriculum, self.form = curriculum, form

    def __getitems__(self, draws: Sequence[Draw]) -> Batch:
        """Collate a batch; PADDING as an index gives a row of ignored labels."""
        rows = [self._causal(draw) if self.form.layout == "causal" else self._seq2seq(draw) for draw in draws]
        pad, decoder = self.form.pad, self.form.layout == "seq2seq"
        inputs, labels, weights, *encoder = zip(*rows)
        batch = _padded(encoder[0] if decoder else inputs, pad)
        if decoder:
            batch["decoder_input_ids"] = _stack(inputs, pad, np.int64)
        batch["labels"], batch["weights"] = _stack(labels, IGNORED, np.int64), _stack(weights, 0, np.float32)
        batch["places"] = (batch["labels"].flatten() != IGNORED).nonzero().squeeze(1)  # here, on the CPU: no step waits for a device
        batch["index"] = torch.tensor([draw.index for draw in draws])
        batch["total"] = torch.tensor(draws[0].total, dtype=torch.float32)
        return batch

    def _causal(self, draw: Draw) -> tuple[np.ndarray, ...]:
        """Return inputs, labels and weights, (n - 1,) each: the label at a place is the token after its input."""
        ids, labels, weights = self._target(draw, from_step=None)
        return ids[:-1], labels[1:], weights[1:]

    def _seq2seq(self, draw: Draw) -> tuple[np.ndarray, ...]:
        """Return the decoder's inputs, its labels and weights (m,), and the encoder's inputs."""
        samples, form = self.curriculum.samples, self.form
        from_step = draw.given if form.placement == "encoder" else 0
        ids, labels, weights = self._target(draw, from_step)
        begin = samples.span(max(draw.index, 0)).start
        text = samples.ids[begin : samples.first(max(draw.index, 0), from_step)]
        return np.concatenate([[form.pad], ids[:-1]]), labels, weights, np.concatenate([text, [form.eos]])

    def _target(self, draw: Draw, from_step: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the ids, labels and weights of a sample from a step on, or from its first token on; each token's own, not shifted."""
        samples, index = self.curriculum.samples, max(draw.index, 0)
        span = samples.span(index)
        start = span.start if from_step is None else int(samples.first(index, from_step))
        learned = span.stop if draw.index == PADDING else int(samples.first(index, draw.given))
        answer = int(samples.first(index, samples.counts[index]))
        ids = samples.ids[start : span.stop].astype(np.int64)
        place = np.arange(start, span.stop)
        taught = self.curriculum.weights
        weights = np.ones(len(ids), np.float32) if taught is None else taught[start : span.stop].astype(np.float32)
        weights = np.where(place >= answer, np.float32(1), weights)
        return ids, np.where(place >= learned, ids, IGNORED), np.where(place >= learned, weights, np.float32(0))


class Prompts(Dataset):
    """Questions for generation by index: input_ids and attention_mask (B, T), index (B,); PADDING as an index repeats the first question.

    causal: padded on the left, so that all rows go on at the same place. seq2seq: with an end of text, padded on the right.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], form: Form) -> None:
        self.prompts, self.form = prompts, form

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        closing = [self.form.eos] if self.form.layout == "seq2seq" else []
        rows = [np.array([*self.prompts[max(index, 0)], *closing]) for index in indices]
        return {**_padded(rows, self.form.pad, left=self.form.layout == "causal"), "index": torch.tensor(list(indices))}


class FullBatches(Dataset):
    """Samples by index with nothing given: a batch of TrainingBatches whose total is of this batch alone."""

    def __init__(self, batches: TrainingBatches) -> None:
        self.batches = batches

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        samples = self.batches.curriculum.samples
        total = float(sum(int(samples.active(index, 0)) for index in indices if index != PADDING))
        return self.batches.__getitems__([Draw(int(index), 0, total) for index in indices])


def shared_out(lengths: Sequence[int] | np.ndarray, batch_size: int, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """Cut this process's share of items into batches of similar length; all processes get equally many rows, filled with PADDING."""
    order = np.argsort(np.asarray(lengths), kind="stable").tolist()
    indices = [*order, *[PADDING] * (-len(order) % world_size)][rank::world_size]
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]


def loader_of(dataset: Dataset, batches: list[list[int]]) -> DataLoader:
    """Load given batches in their order; nothing is drawn from the run's random numbers."""
    return DataLoader(dataset, batch_sampler=batches, collate_fn=_as_it_is, generator=torch.Generator())


def full_batches(dataset: FullBatches, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
    """Yield batches of exactly these samples in their order."""
    for start in range(0, len(indices), batch_size):
        yield dataset.__getitems__(indices[start : start + batch_size])


def _padded(rows: Sequence[np.ndarray], pad: int, left: bool = False) -> Batch:
    """Stack token sequences, with the mask that tells them from padding whatever the padding token is."""
    ones = [np.ones(len(row)) for row in rows]
    return {"input_ids": _stack(rows, pad, np.int64, left), "attention_mask": _stack(ones, 0, np.int64, left)}


def _stack(rows: Sequence[np.ndarray], fill: int, dtype: Any, left: bool = False) -> Tensor:
    table: np.ndarray = np.full((len(rows), max(map(len, rows))), fill, dtype)
    for line, row in zip(table, rows):
        line[slice(len(line) - len(row), None) if left else slice(len(row))] = row
    return torch.from_numpy(table)


def _as_it_is(batch: Any) -> Any:
    return batch
