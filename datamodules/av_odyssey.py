"""Data for AV-Odyssey's method: DeafTest, made on the spot, to train on and to be examined by; and small questions of all media."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.av_exam import Exam
from datamodules.av_questions import Question
from datamodules.av_synthetic import SyntheticQuestions
from datamodules.blocks import TrainingLoader, TrainingOrder, place
from datamodules.deaftest import TASKS, DeafTest, Profile


@dataclass(frozen=True)
class AvOdysseyDataConfig:
    source: Literal["deaftest", "synthetic"] = "deaftest"
    """what is asked: DeafTest's questions, or small ones of all 26 tasks and five mixes of media, made on the spot"""
    items: int = 2000
    """training questions of each of DeafTest's four tasks"""
    profile: Literal["paper", "paper_clipped", "hard", "mixed", "varied", "noise", "timbre", "confound"] = "mixed"
    """how hard the training questions are; mixed: paper and hard in turns; varied: noise, timbre and confound as well"""
    profiles: list[str] = field(default_factory=lambda: ["paper", "hard"])
    """profiles that are examined"""
    questions: int = 100
    """questions of each task and profile that are examined; of synthetic, of each task"""
    split: Literal["valid", "test"] = "valid"
    """which of the two sets is examined; no item of theirs is trained on"""
    replies: str | None = None
    """module.adapter=replay: file of the replies that are scored, a JSON object with id and reply on each line; an answers.jsonl is one"""
    control: Literal["none", "silent", "shuffled", "single_clip", "swapped"] = "none"
    """what is taken away from the examined sounds: all sound, the right sounds, the second of two; or the two are exchanged. Where there is
    one sound only, as in count, the last two change nothing"""
    batch_size: int = 64
    """training questions of each process in a batch"""
    eval_batch_size: int = 50
    """examined questions of each process in a batch"""
    cache: str = "~/.cache/fivefold"
    """folder for what is found once: the trained ear, and what it hears in the training questions"""
    seed: int | None = None
    """draws the questions; none: the run's seed"""

    def __post_init__(self) -> None:
        for name in ("items", "questions", "batch_size", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be 1 or above, not {getattr(self, name)}")
        known = ("paper", "paper_clipped", "hard", "mixed", "varied", "noise", "timbre", "confound")
        for profile in self.profiles:
            if profile not in known:
                raise ValueError(f"profiles: must be of {', '.join(known)}, not {profile}")
        if not self.profiles:
            raise ValueError("profiles: must name one profile or more, such as [paper,hard], not []")

    def without_effect(self) -> dict[str, str]:
        """Name what only DeafTest has."""
        return dict.fromkeys(("profiles", "control"), "source=synthetic has no profiles") if self.source == "synthetic" else {}


class AvOdysseyData(L.LightningDataModule):
    """Questions. Training batches are those of `Talk`; an examination is shared out by the module that holds it."""

    def __init__(self, config: AvOdysseyDataConfig) -> None:
        super().__init__()
        self.config = config
        self.encode: Any = None  # question -> (prompt, reply), word numbers: the module's, set in its setup
        self.finished: Any = None  # items -> keys of those that are answered already: the module's

    @property
    def seed(self) -> int:
        return self.config.seed if self.config.seed is not None else 1

    @cached_property
    def training(self) -> DeafTest:
        """The questions to learn from."""
        return DeafTest(self.seed, "train", self.config.items, self.config.profile)

    @cached_property
    def exam(self) -> Exam:
        """The questions to be examined by."""
        config = self.config
        if config.source == "synthetic":
            return Exam(SyntheticQuestions(self.seed, config.questions), f"synthetic {self.seed} {config.questions}")
        sets = [DeafTest(self.seed, config.split, config.questions, profile, config.control) for profile in config.profiles]  # type: ignore[arg-type]
        return Exam(Several(sets), "; ".join(one.name for one in sets))

    def train_dataloader(self) -> TrainingLoader:
        """Batches in a seeded order that a checkpoint restores exactly."""
        order = TrainingOrder(len(self.training), self.config.batch_size, self.seed, *place())
        return TrainingLoader(Talk(self.training, self.encode), order)

    def val_dataloader(self) -> DataLoader:
        """This process's share of the questions that are not answered yet."""
        return self.exam.loader(self.finished(self.exam.items), *place(), self.config.eval_batch_size)


class Several(Sequence[Question]):
    """Sets of questions one after another, each question under a name that says its set."""

    def __init__(self, sets: Sequence[DeafTest]) -> None:
        self.sets = sets
        self.ends = np.cumsum([len(one) for one in sets])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index):  # noqa: ANN001, ANN204
        """Return question `index` of all."""
        number = int(np.searchsorted(self.ends, index, side="right"))
        one = self.sets[number]
        question = one[index - int(self.ends[number]) + len(one)]
        return replace(question, id=f"{one.profile}_{question.id}")


class Talk(Dataset):
    """Prompts with their replies by number: words (B, T) int64, labels (B, T) int64 with -100 at the prompt, index (B,) int64."""

    def __init__(self, questions: Sequence[Question], encode: Any) -> None:
        self.questions, self.encode = questions, encode
        self._known: dict[int, tuple[list[int], list[int]]] = {}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        for index in indices:
            if index not in self._known:
                self._known[index] = self.encode(self.questions[index])
        rows = [self._known[index] for index in indices]
        length = max(len(prompt) + len(reply) for prompt, reply in rows)
        words, labels = torch.zeros(len(rows), length, dtype=torch.int64), torch.full((len(rows), length), -100)
        for row, (prompt, reply) in enumerate(rows):
            words[row, : len(prompt) + len(reply)] = torch.tensor([*prompt, *reply])
            labels[row, len(prompt) : len(prompt) + len(reply)] = torch.tensor(reply)
        return {"words": words, "labels": labels, "index": torch.tensor(list(indices))}


class Clips(Dataset):
    """Some sounds of questions, `places` by number of question and tag.

    `read` turns a sound and its truth into tensors, once in each process, which keeps them; `stack` makes a batch of them.
    """

    def __init__(self, questions: Sequence[Question], places: Sequence[tuple[int, str]], read: Any, stack: Any) -> None:
        self.questions, self.places, self.read, self.stack = questions, places, read, stack
        self._known: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.places)

    def __getitems__(self, numbers: Sequence[int]) -> Any:
        for number in numbers:
            if number not in self._known:
                index, tag = self.places[number]
                question = self.questions[index]
                self._known[number] = self.read(question.media[tag], question.truth[tag])
        return self.stack([self._known[number] for number in numbers])


def every_clip(items: int, counts: int) -> list[tuple[int, str]]:
    """Name both sounds of DeafTest's first `items` questions of each pair, and the one of its first `counts` to count in, by question."""
    each = [counts, *[items] * (len(TASKS) - 1)]
    return [(number * len(TASKS) + task, f"audio{place}") for number in range(max(items, counts)) for task in range(len(TASKS))
            if number < each[task] for place in ((1, 2) if task else (1,))]


class EarData(L.LightningDataModule):
    """Single sounds, to learn to hear from; the sounds of a hundred questions more are held out."""

    def __init__(self, seed: int, profile: Profile, items: int, counts: int, batch_size: int, read: Any, stack: Any) -> None:
        super().__init__()
        self.batch_size, self.seed = batch_size, seed
        self.training = Clips(DeafTest(seed, "train", max(items, counts), profile), every_clip(items, counts), read, stack)
        self.held_out = Clips(DeafTest(seed, "valid", 25, "hard"), every_clip(25, 25), read, stack)

    def train_dataloader(self) -> TrainingLoader:
        """Batches in a seeded order that a checkpoint restores exactly."""
        return TrainingLoader(self.training, TrainingOrder(len(self.training), self.batch_size, self.seed, *place()))

    def val_dataloader(self) -> DataLoader:
        """All held-out sounds, on every process."""
        numbers = [*range(len(self.held_out))]
        batches = [numbers[start : start + self.batch_size] for start in range(0, len(numbers), self.batch_size)]
        return DataLoader(self.held_out, batch_sampler=batches, collate_fn=_as_it_is, generator=torch.Generator())


def _as_it_is(batch: Any) -> Any:
    return batch
