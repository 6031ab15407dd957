"""Scores of questions by task and attribute, three averages by name, and what guessing would get.

Published figures mix averages: micro weighs every question alike, macro-26 every task, macro-7 every attribute, however few questions
it has. Only averages of one name compare.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lightning_modules.intervals import wilson

ATTRIBUTES = ("Timbre", "Tone", "Melody", "Space", "Time", "Hallucination", "Intricacy")
Z = 1.959963984540054  # the normal quantile of 95 %


@dataclass(frozen=True)
class Score:
    """Whether one question was answered rightly, and where it belongs."""

    task_id: int
    task: str
    attribute: str
    right: bool


@dataclass(frozen=True)
class Share:
    """Right answers among questions, with the 95 % interval: Wilson's of a share, the normal one of a mean of shares."""

    right: float
    count: int
    value: float
    low: float
    high: float


def share(right: int, count: int) -> Share:
    """Return a share with Wilson's interval."""
    return Share(right, count, right / count, *wilson(right, count))


def mean_of(shares: Sequence[Share]) -> Share:
    """Return the mean of shares that weigh alike; its variance is the sum of theirs over their number squared.

    The variance of each is taken at the share with two right and two wrong answers more (Agresti and Coull 1998), so that a share of 0 or
    1 out of few questions is not taken for certain.
    """
    value = sum(one.value for one in shares) / len(shares)
    nearer = [(one.right + 2) / (one.count + 4) for one in shares]
    half = Z * math.sqrt(sum(p * (1 - p) / one.count for p, one in zip(nearer, shares, strict=True))) / len(shares)
    count = sum(one.count for one in shares)
    return Share(value * count, count, value, max(value - half, 0.0), min(value + half, 1.0))


def by_task(scores: Iterable[Score]) -> dict[tuple[int, str], Share]:
    """Score each task, in the order of their numbers."""
    return dict(sorted(_grouped(scores, lambda score: (score.task_id, score.task)).items()))


def by_attribute(scores: Iterable[Score]) -> dict[str, Share]:
    """Score each attribute over its questions, in the benchmark's order; others follow."""
    found = _grouped(scores, lambda score: score.attribute)
    order = [name for name in ATTRIBUTES if name in found] + sorted(set(found) - set(ATTRIBUTES))
    return {name: found[name] for name in order}


def averages(scores: Sequence[Score]) -> dict[str, Share]:
    """Return micro, macro-K over the K tasks, and macro-K over the K attributes: of the whole benchmark macro-26 and macro-7.

    With as many tasks as attributes, the two have one name, and that of the tasks is returned.
    """
    tasks, attributes = by_task(scores), by_attribute(scores)
    found = {"micro": share(sum(score.right for score in scores), len(scores))}
    found[f"macro_{len(attributes)}"] = mean_of(list(attributes.values()))
    found[f"macro_{len(tasks)}"] = mean_of(list(tasks.values()))
    return found


def scores_of_shares(table: Mapping[tuple[int, str], tuple[int, float]], attribute_of: Mapping[int, str]) -> list[Score]:
    """Turn published accuracies (task -> questions, percent) back into right and wrong questions, rounded to whole ones."""
    found = []
    for (task_id, task), (questions, percent) in table.items():
        right = round(questions * percent / 100)
        found += [Score(task_id, task, attribute_of[task_id], place < right) for place in range(questions)]
    return found


def guessing(answers: Sequence[str], options: Sequence[int]) -> dict[str, float]:
    """Return what answering always A gets right, and what choosing among the options at random is expected to."""
    always_a = sum(answer == "A" for answer in answers) / len(answers)
    return {"always_a": always_a, "random": sum(1 / count for count in options) / len(options)}


def _grouped(scores: Iterable[Score], key: Callable[[Score], object]) -> dict:
    groups: dict[object, list[bool]] = defaultdict(list)
    for score in scores:
        groups[key(score)].append(score.right)
    return {name: share(sum(right), len(right)) for name, right in groups.items()}
