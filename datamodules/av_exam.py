"""The questions of an examination, and the loader that hands each process its share of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch.utils.data import DataLoader, Dataset

from datamodules.av_plan import Item, item_of, plan
from datamodules.av_questions import Question


class Batch:
    """Questions of one mix with their items; a `spare` one only keeps processes in step, and its answers count nowhere."""

    def __init__(self, items: list[Item], questions: list[Question], spare: bool = False) -> None:
        self.items, self.questions, self.spare = items, questions, spare


@dataclass(frozen=True)
class Damage:
    """Questions that cannot be asked, by id, with their task and the reason; of how many, and how they count."""

    found: Mapping[str, tuple[str, str]]
    questions: int
    counted: str

    COLUMNS = ("id", "task", "reason", "counted")

    @property
    def share(self) -> float:
        """Return the share of the questions that cannot be asked."""
        return len(self.found) / self.questions

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return a row of COLUMNS a question."""
        return [(name, task, reason, self.counted) for name, (task, reason) in self.found.items()]


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

    def damage(self, counted: str) -> Damage:
        """Tell of what cannot be asked, and how it is counted."""
        lost = [self.questions[index] for index in self.reasons]
        found = {question.id: (question.task, reason) for question, reason in zip(lost, self.reasons.values(), strict=True)}
        return Damage(found, len(self.questions), counted)

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
        return Batch(items, [_read(self.questions[item.index]) for item in items], spare)


def _read(question: Question) -> Question:
    """Read the media here, in the loader's process; what cannot be read says so where it is asked for."""
    try:
        return replace(question, media={tag: question.media[tag] for tag in question.media})
    except Exception:  # of whatever decoder; the examination meets it again and writes it down
        return question
