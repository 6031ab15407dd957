"""The questions of an examination, and the loader that hands each process its share of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from torch.utils.data import DataLoader, Dataset

from datamodules.av_media import Damaged
from datamodules.av_plan import Item, item_of, plan
from datamodules.av_questions import Audio, Medium, Picture, Question, Video, kind_of

Unread = Mapping[int, tuple[str, str]]  # by place in a batch, error or damaged, and the reason


class Batch:
    """Questions of one mix with their items; a `spare` one only keeps processes in step, and its answers count nowhere.

    A question whose media could not be read is in `unread`, and has others of their kinds instead: it can be asked to keep in step, too.
    """

    def __init__(self, items: list[Item], questions: list[Question], spare: bool = False, unread: Unread | None = None) -> None:
        self.items, self.questions, self.spare, self.unread = items, questions, spare, unread or {}


class Exam:
    """A set of questions, of which those in `reasons` (by place) cannot be asked; `source` tells this set from any other."""

    def __init__(self, questions: Sequence[Question], source: str, reasons: Mapping[int, str] | None = None) -> None:
        self.questions, self.source, self.reasons = questions, source, dict(reasons or {})

    @cached_property
    def items(self) -> list[Item]:
        """All questions of the set, with their keys and costs."""
        return [item_of(index, self.questions[index], self.source) for index in range(len(self.questions))]

    @property
    def unusable(self) -> dict[str, tuple[Question, str]]:
        """The questions that cannot be asked and why, by key."""
        return {self.items[index].key: (self.questions[index], reason) for index, reason in self.reasons.items()}

    def loader(self, finished: Iterable[str], rank: int, processes: int, size: int, in_step: bool = False, workers: int = 0) -> DataLoader:
        """Load this process's share of what is not finished; `in_step` gives all as many batches, all with the same kinds of media.

        Where all is finished each process has one batch of nothing: Lightning would not validate, and no report would be made.
        """
        shares = plan(self.items, {*finished, *self.unusable}, processes, size)
        batches = stepwise(shares)[rank] if in_step else [(batch, False) for batch in shares[rank]]
        if not any(shares):
            batches = [([], True)]
        return DataLoader(_Batches(self.questions, batches), batch_size=None, shuffle=False, num_workers=workers)


def stepwise(shares: Sequence[Sequence[list[Item]]]) -> list[list[tuple[list[Item], bool]]]:
    """Give all processes as many batches as any has of those with pictures, and then of those without; True marks a spare one.

    Processes that gather each other's weights have to call the same parts of a model at each step, and only pictures need the eye.
    """
    found: list[list[tuple[list[Item], bool]]] = [[] for _ in shares]
    for seen in (True, False):
        parts = [[batch for batch in share if ("img" in batch[0].mix or "video" in batch[0].mix) == seen] for share in shares]
        spare = next((part[0] for part in parts if part), [])
        for own, part in zip(found, parts, strict=True):
            own += [(batch, False) for batch in part] + [(spare, True)] * (max(map(len, parts)) - len(part))
    return found


class _Batches(Dataset):
    def __init__(self, questions: Sequence[Question], batches: list[tuple[list[Item], bool]]) -> None:
        self.questions, self.batches = questions, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, place: int) -> Batch:
        items, spare = self.batches[place]
        questions, unread = [], {}
        for number, item in enumerate(items):
            question = self.questions[item.index]
            try:
                media = {tag: question.media[tag] for tag in question.media}
            except Exception as error:  # of whatever decoder
                media = {tag: blank(tag) for tag in question.media}
                reason = str(error) if isinstance(error, Damaged) else f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
                unread[number] = ("damaged" if isinstance(error, Damaged) else "error", reason)
            questions.append(replace(question, media=media))
        return Batch(items, questions, spare, unread)


def blank(tag: str) -> Medium:
    """Make a medium of a tag's kind that says nothing."""
    if (kind := kind_of(tag)) == "audio":
        return Audio(np.zeros((1, 16000), np.float32), 16000)
    pixels = np.zeros((224, 224, 3), np.uint8)
    return Picture(pixels) if kind == "img" else Video(pixels[None], 1.0)

