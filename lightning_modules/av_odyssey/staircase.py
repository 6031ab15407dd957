"""Just-noticeable differences: how small a gap may be and still be heard, by staircases (Levitt 1971, J. Acoust. Soc. Am. 49, 467).

A staircase narrows the gap after `down` right answers in a row and widens it after each wrong one. It comes to rest where both are equally
likely, which is where the share of right answers is 2 ** (-1 / down): 79.4 % after three. Gaps go by factors, as hearing does. Several
staircases climb side by side, so that a model is asked in batches and an interval can be told.

Whoever hears with a logistic curve of slope 4 gets, with the settings below, a threshold 4 % too high on average and an interval that holds
the true one in 90 of 100 listenings (200 simulated); finer steps and more turns come closer.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.stats import t


@dataclass(frozen=True)
class Stairs:
    """Which gaps are asked, in the unit of the task (dB, semitones, share of the shorter length), and when that ends."""

    low: float
    high: float  # where each staircase starts
    down: int = 3
    coarse: float = 2.0  # the factor until the direction has turned twice
    fine: float = 2**0.25  # the factor from then on
    reversals: int = 10  # turns with the fine factor, of which the threshold is the mean
    trials: int = 200  # at most, of each staircase
    enough: int = 12  # right answers in a row to the smallest gap, after which no more are asked

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ValueError(f"low: must be above 0 and below high, not {self.low} with high {self.high}")
        for name in ("coarse", "fine"):
            if getattr(self, name) <= 1:
                raise ValueError(f"{name}: must be above 1, not {getattr(self, name)}")
        for name in ("down", "reversals", "trials", "enough"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, not {getattr(self, name)}")

    @property
    def target(self) -> float:
        """The share of right answers at the gap that is looked for."""
        return 2 ** (-1 / self.down)


@dataclass
class Track:
    """One staircase: the gap that it asks next, and what it asked."""

    stairs: Stairs
    gap: float
    streak: int = 0
    lowest: int = 0  # right answers in a row to the smallest gap
    direction: int = 0
    turns: list[float] = field(default_factory=list)
    asked: list[tuple[float, bool]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Tell whether it turned often enough, asked all that it may, or stands firmly on the lowest stair."""
        turned, asked = len(self.turns) >= self.stairs.reversals + 2, len(self.asked) >= self.stairs.trials
        return turned or asked or self.lowest >= self.stairs.enough

    def answered(self, right: bool) -> None:
        """Take an answer to the present gap and move to the next."""
        self.asked.append((self.gap, right))
        self.lowest = self.lowest + 1 if right and self.gap == self.stairs.low else 0
        self.streak = self.streak + 1 if right else 0
        if right and self.streak < self.stairs.down:
            return
        self.streak = 0
        direction = -1 if right else 1
        if self.direction and direction != self.direction:
            self.turns.append(self.gap)
        self.direction = direction
        factor = self.stairs.coarse if len(self.turns) < 2 else self.stairs.fine
        self.gap = min(max(self.gap * factor**direction, self.stairs.low), self.stairs.high)

    @property
    def threshold(self) -> float:
        """The geometric mean of the turns with the fine factor; where it never turned so, or ended lowest, the gap at which it stands."""
        turns = self.turns[2:] if self.lowest < self.stairs.enough else []
        return math.exp(sum(map(math.log, turns)) / len(turns)) if turns else self.gap


@dataclass(frozen=True)
class Noticeable:
    """A just-noticeable difference and its nominal 95 % interval over staircases; `bound` says beyond which end of the gaps it may lie."""

    value: float
    low: float
    high: float
    bound: Literal["measured", "at_most", "at_least"]
    curve: tuple[tuple[float, int, int], ...]  # gap, right answers, answers; ascending

    def __str__(self) -> str:
        if self.bound != "measured":
            return f"{self.bound.replace('_', ' ')} {self.value:.3g}"
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


def noticeable(ask: Callable[[Sequence[float]], Sequence[bool]], stairs: Stairs, tracks: int = 8) -> Noticeable:
    """Climb `tracks` staircases at once: `ask` puts one new question for each gap and tells which were answered rightly."""
    if tracks < 2:
        raise ValueError(f"tracks: must be at least 2, for an interval, not {tracks}")
    climbing = [Track(stairs, stairs.high) for _ in range(tracks)]
    while running := [track for track in climbing if not track.done]:
        for track, right in zip(running, ask([track.gap for track in running]), strict=True):
            track.answered(bool(right))
    return _summed(climbing, stairs)


def _summed(tracks: Sequence[Track], stairs: Stairs) -> Noticeable:
    logs = np.log([track.threshold for track in tracks])
    half = t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    value, low, high = (float(np.exp(x)) for x in (logs.mean(), logs.mean() - half, logs.mean() + half))
    curve = _curve(tracks)
    if value <= stairs.low * stairs.fine and _share_at(curve, stairs.low) >= stairs.target:
        return Noticeable(stairs.low, stairs.low, stairs.low, "at_most", curve)
    if _share_at(curve, stairs.high) < stairs.target:
        return Noticeable(stairs.high, stairs.high, stairs.high, "at_least", curve)
    return Noticeable(value, low, high, "measured", curve)


def _share_at(curve: Sequence[tuple[float, int, int]], gap: float) -> float:
    """Return the share of right answers at a gap, 0 where it was never asked; every staircase starts at the widest."""
    return next((right / count for asked, right, count in curve if math.isclose(asked, gap, rel_tol=1e-6)), 0.0)


def _curve(tracks: Sequence[Track]) -> tuple[tuple[float, int, int], ...]:
    answers = [(round(gap, 9), right) for track in tracks for gap, right in track.asked]  # rounded: a gap has one name, however reached
    counts, rights = Counter(gap for gap, _ in answers), Counter(gap for gap, right in answers if right)
    return tuple((gap, rights[gap], counts[gap]) for gap in sorted(counts))
