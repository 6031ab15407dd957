"""Data for AV-Odyssey's method: DeafTest, made on the spot, to train on and to be examined by; the published files; and small questions."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.av_exam import Exam
from datamodules.av_questions import Question
from datamodules.av_store import differences, stored_questions
from datamodules.av_synthetic import SyntheticQuestions
from datamodules.blocks import TrainingLoader, TrainingOrder, place
from datamodules.deaftest import TASKS, DeafTest, Profile
from datamodules.deaftest_seen import SeenDeafTest
from datamodules.rows import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AvOdysseyDataConfig:
    source: Literal["deaftest", "deaftest_seen", "synthetic", "hub"] = "deaftest"
    """what is asked: DeafTest's questions; those with pictures, which image fits a sound and which sound an image; or small ones of all 26
    tasks and five mixes of media, all made on the spot; hub: the parquet files of AV_Odyssey_Bench, its LMMs_Eval index or
    Deaftest_dataset, downloaded into root"""
    root: str | None = None
    """folder with those parquet files, and with the media that an index names"""
    damaged: Literal["official", "wrong", "left_out", "refuse"] = "official"
    """how questions count whose media are cut off, silent, torn or missing: as an empty reply by each rule (for the official one an A), as
    wrong answers, not at all; or the evaluation is refused"""
    frames: int = 32
    """frames of a film that are shown at most, spread over it"""
    frames_a_second: float = 2.0
    """and how many a second where that is fewer"""
    items: int = 2000
    """training questions of each of DeafTest's four tasks"""
    profile: Literal["paper", "paper_clipped", "hard", "mixed", "varied", "noise", "timbre", "confound"] = "mixed"
    """how hard the training questions are; mixed: paper and hard in turns; varied: noise, timbre and confound as well. Where a model is
    examined as it comes, those it is examined by, each kind by itself"""
    profiles: list[str] = field(default_factory=list)
    """profiles that are examined; empty: paper and hard. Adaptive, beside another: no score, but the smallest gap that is heard, by
    staircases"""
    staircases: int = 8
    """staircases that climb side by side in each task of the profile adaptive"""
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
    workers: int = 0
    """processes that read the examined media ahead, for each process that asks; 0: media are read between two batches"""
    cache: str = "~/.cache/fivefold"
    """folder for what is found once: the trained ear, and what it hears in the training questions"""
    seed: int | None = None
    """draws the questions; none: the run's seed"""

    def __post_init__(self) -> None:
        for name in ("items", "questions", "batch_size", "eval_batch_size", "frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be 1 or above, not {getattr(self, name)}")
        if self.workers < 0:
            raise ValueError(f"workers: must be 0 or above, not {self.workers}")
        if self.frames_a_second <= 0:
            raise ValueError(f"frames_a_second: must be above 0, not {self.frames_a_second}")
        if self.source == "hub" and not self.root:
            raise ValueError("root: must name the folder of the parquet files where source=hub, not be empty")
        if self.staircases < 2:
            raise ValueError(f"staircases: must be 2 or above, for an interval, not {self.staircases}")
        known = ("paper", "paper_clipped", "hard", "mixed", "varied", "noise", "timbre", "confound", "adaptive")
        for profile in self.profiles:
            if profile not in known:
                raise ValueError(f"profiles: must be of {', '.join(known)}, not {profile}")
            if self.source == "deaftest_seen" and profile not in ("paper", "hard"):
                raise ValueError(f"profiles: must be of paper, hard where source=deaftest_seen, not {profile}")
            if self.profiles.count(profile) > 1:
                raise ValueError(f"profiles: must name each profile once, not {profile} twice")
            if profile in ("mixed", "varied") and len(self.profiles) > 1 + self.adaptive:
                raise ValueError(f"profiles: must not name {profile} beside others, some of whose questions it is made of")
        if self.adaptive and self.control != "none":
            raise ValueError(f"control: must be none where profiles names adaptive, which has no controls, not {self.control}")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"seed: must be 0 or above, not {self.seed}")
        if self.profiles == ["adaptive"]:
            raise ValueError("profiles: must name one that is scored beside adaptive, such as [hard,adaptive], not adaptive alone")

    def examined(self, as_it_comes: bool) -> list[str]:
        """Name the profiles that are examined, one after another. Raises ValueError for one that the source has not."""
        parts = {"mixed": ["paper", "hard"], "varied": ["paper", "hard", "noise", "timbre", "confound"]}
        found = self.profiles or (parts.get(self.profile, [self.profile]) if as_it_comes else ["paper", "hard"])
        if self.source == "deaftest_seen" and (other := set(found) - {"paper", "hard"}):
            raise ValueError(f"data.profile: must be paper, hard or mixed where data.source=deaftest_seen, not {self.profile}, which has "
                             f"{min(other)}")
        return found

    @property
    def adaptive(self) -> bool:
        """Tell whether gaps are asked that shrink until they are no longer heard."""
        return self.source == "deaftest" and "adaptive" in self.profiles

    def without_effect(self) -> dict[str, str]:
        """Name what only DeafTest has, or only files."""
        profiled = self.source in ("deaftest", "deaftest_seen")
        found = {} if profiled else {"profiles": f"source={self.source} has no profiles"}
        if self.source != "deaftest":
            found["control"] = "source=deaftest alone has controls"
        if not self.adaptive:
            found["staircases"] = "the profile adaptive is not examined"
        if self.source == "hub":
            return found | dict.fromkeys(("questions", "split"), "source=hub asks all questions of its files")
        return found | dict.fromkeys(("root", "damaged", "frames", "frames_a_second"), f"source={self.source} reads no files")


class AvOdysseyData(L.LightningDataModule):
    """Questions. Training batches are those of `Talk`; an examination is shared out by the module that holds it."""

    def __init__(self, config: AvOdysseyDataConfig) -> None:
        super().__init__()
        self.config = config
        self.taught: Any = None  # questions -> batches of them by number, such as Talk: the module's, set in its setup
        self.finished: Any = None  # items -> keys of those that are answered already: the module's
        self.as_it_comes = False  # whether a model is examined that is not trained here: the module's
        self.in_step = False  # whether all processes have to be given as many batches: the module's

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
        if config.source == "hub":
            return self._files()
        sets: list[Any] = [
            SeenDeafTest(self.seed, config.split, config.questions, profile) if config.source == "deaftest_seen" else  # type: ignore[arg-type]
            DeafTest(self.seed, config.split, config.questions, profile, config.control)  # type: ignore[arg-type]
            for profile in config.examined(self.as_it_comes) if profile != "adaptive"]
        return Exam(Several(sets), "; ".join(one.name for one in sets))

    def _files(self) -> Exam:
        """Open the published files. Raises DataError where they cannot be used, or are damaged and may not be."""
        config = self.config
        questions = stored_questions(str(config.root), Path(config.cache), config.frames, config.frames_a_second)
        if place()[0] == 0 and (told := differences(questions.entries)):
            log.warning("data.root=%s: %s", config.root, told)
        reasons = questions.reasons
        if reasons and config.damaged == "refuse":
            first = next(iter(reasons))
            raise DataError(f"data.damaged=refuse: {len(reasons)} of {len(questions)} questions cannot be asked, the first, "
                            f"{questions[first].id}, because {reasons[first]}")
        return Exam(questions, f"files {config.frames} {config.frames_a_second}", reasons)

    def train_dataloader(self) -> TrainingLoader:
        """Batches in a seeded order that a checkpoint restores exactly."""
        order = TrainingOrder(len(self.training), self.config.batch_size, self.seed, *place())
        return TrainingLoader(self.taught(self.training), order)

    def val_dataloader(self) -> DataLoader:
        """This process's share of the questions that are not answered yet."""
        return self.exam.loader(self.finished(self.exam.items), *place(), self.config.eval_batch_size, self.in_step,
                                self.config.workers)


class Several(Sequence[Question]):
    """Sets of questions one after another, each question under a name that says its set."""

    def __init__(self, sets: Sequence[Any]) -> None:
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
