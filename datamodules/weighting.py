"""Data for learning which rationale tokens matter: question and rationale in, answer out, in an order that one integer restores."""

from collections.abc import Iterator, Sequence

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from datamodules.blocks import IGNORED, PADDING, Batch, TrainingLoader, TrainingOrder, place
from datamodules.collation import loader_of, shared_out
from datamodules.rows import DataError
from datamodules.samples import ANSWER, Samples
from datamodules.tokenization import encode, load_tokenizer

NO_TOKEN = -2  # step of what fills a row up; PROMPT and the steps from 0 are tokens
MOST_HELD_OUT = 512  # samples: enough for a mean answer loss
KINDS = ("digits", "operators", "words")  # of tokens, by number
OPERATORS = frozenset("+-*/=×÷−%^")


class WeightingData(L.LightningDataModule):
    """Batches of input_ids (B, T) int64, prompt and rationale, all rationales beginning in the same column; steps (B, T) int64: PROMPT, the
    step from 0, NO_TOKEN before and behind both; labels (B, S) int64, the answer's tokens, IGNORED behind them; index (B,) int64 of the
    sample, PADDING in a row that only fills up.

    A share of the samples is held out of training, for figures that mean something; they get weights as all others do. `predictor` names
    the model whose own tokenizer the answers are for; None: they are in the tokens of the samples.
    """

    def __init__(self, samples: Samples, tokenizer: PreTrainedTokenizerBase, batch_size: int, held_out: float = 0.05, seed: int = 1,
                 predictor: str | None = None) -> None:
        super().__init__()
        if not samples.counts.all():
            raise DataError(f"training row {samples.rows[int(samples.counts.argmin())].id} has no rationale, so it has no tokens to weigh; "
                            "leave it out, or set module.weights=off")
        self.samples, self.tokenizer, self.batch_size, self.seed = samples, tokenizer, batch_size, seed
        answers = own_answers(samples) if predictor is None else other_answers(samples, load_tokenizer(predictor))
        self.rows = WeightingRows(samples, answers)
        shuffled = np.random.default_rng([seed, len(samples)]).permutation(len(samples))
        count = min(max(round(held_out * len(samples)), 1), MOST_HELD_OUT)
        self.held_out, self.training = np.sort(shuffled[:count]), np.sort(shuffled[count:])

    def train_dataloader(self) -> TrainingLoader:
        """Batches in a seeded order that a checkpoint restores exactly."""
        rank, world_size = place()
        if len(self.training) < self.batch_size * world_size:
            raise DataError(f"there are {len(self.training)} samples to learn token weights from, fewer than one batch of "
                            f"{self.batch_size * world_size}; lower module.weighting.batch_size, or give more rows")
        order = TrainingOrder(len(self.training), self.batch_size, self.seed, rank, world_size)
        return TrainingLoader(Chosen(self.rows, self.training), order)

    def val_dataloader(self) -> DataLoader:
        """This process's share of the held-out samples."""
        return loader_of(Chosen(self.rows, self.held_out), shared_out(self._lengths(self.held_out), self.batch_size, *place()))

    def everything(self, batch_size: int) -> Iterator[Batch]:
        """Yield every sample once, those of similar length together."""
        for indices in shared_out(self._lengths(np.arange(len(self.samples))), batch_size):
            yield self.rows.__getitems__(indices)

    def kinds(self, size: int) -> Tensor:
        """Return the kind of each of `size` tokens, (V,) int64, as its place in KINDS; those that are in no sample count as words."""
        found = torch.full((size,), KINDS.index("words"))
        for token in np.unique(self.samples.ids).tolist():
            found[token] = kind_of(str(self.tokenizer.decode([token])))
        return found

    def _lengths(self, indices: np.ndarray) -> np.ndarray:
        return np.diff(self.samples.offsets)[indices]


class WeightingRows(Dataset):
    """Samples by index as the batches of WeightingData; PADDING as an index repeats the first sample under that index."""

    def __init__(self, samples: Samples, answers: Sequence[Tensor]) -> None:
        self.samples, self.answers = samples, answers

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        samples, rows = self.samples, np.maximum(indices, 0)
        begins, middles, ends = samples.offsets[rows], samples.first(rows, 0), samples.first(rows, samples.counts[rows])
        return {"input_ids": self._around(samples.ids, begins, middles, ends, 0),
                "steps": self._around(samples.steps, begins, middles, ends, NO_TOKEN),
                "labels": pad_sequence([self.answers[row] for row in rows.tolist()], True, IGNORED), "index": torch.tensor(list(indices))}

    @staticmethod
    def _around(values: np.ndarray, begins: np.ndarray, middles: np.ndarray, ends: np.ndarray, fill: int) -> Tensor:
        """Stack stretches of `values` with their middles in one column, (B, T) int64."""
        column = int((middles - begins).max())
        table = np.full((len(begins), column + int((ends - middles).max())), fill, np.int64)
        for row, begin, middle, end in zip(table, begins, middles, ends):
            row[column - (middle - begin) : column + (end - middle)] = values[begin:end]
        return torch.from_numpy(table)


class Chosen(Dataset):
    """Some of the rows under numbers from 0."""

    def __init__(self, rows: WeightingRows, indices: np.ndarray) -> None:
        self.rows, self.indices = rows, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        return self.rows.__getitems__([PADDING if number == PADDING else int(self.indices[number]) for number in numbers])


def own_answers(samples: Samples) -> list[Tensor]:
    """Return each sample's answer as it is tokenised there, (S,) int64, without the opening words that all answer sentences share."""
    answers = [samples.ids[samples.span(index)][samples.steps[samples.span(index)] == ANSWER] for index in range(len(samples))]
    shortest = min(map(len, answers)) - 1  # the end of the text is left in any case
    heads = np.stack([answer[:shortest] for answer in answers])
    same = (heads == heads[0]).all(0)
    shared = int(same.argmin()) if not same.all() else shortest
    return [torch.from_numpy(answer[shared:].astype(np.int64)) for answer in answers]


def other_answers(samples: Samples, tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """Tokenise the answers alone with another tokenizer, (S,) int64 each with its end of text."""
    return [torch.tensor([*ids, tokenizer.eos_token_id]) for ids in encode(tokenizer, [row.answer for row in samples.rows])]


def kind_of(piece: str) -> int:
    """Return the place in KINDS of a token's text: digits if it has any, operators if it is nothing else, else words."""
    text = piece.strip()
    if any(character.isdigit() for character in text):
        return KINDS.index("digits")
    return KINDS.index("operators" if text and OPERATORS.issuperset(text) else "words")
