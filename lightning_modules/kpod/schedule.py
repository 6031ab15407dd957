"""The progressive schedule: how many steps of each rationale are given at each stage, worked out before training as one table.

At stage t (one epoch) question i is shown its first c_i(t) steps and has to generate the others. Their difficulty is
h_i = Σ_{j > c_i(t)} d_ij (Eq 9); the sum over questions, H(t), keeps to a budget that grows from C0 to all there is, B = Σ d_ij (Eq 10):

    D(t) = C0 + (B - C0) (t / T)^(p + 1)

A stage chooses questions by `solver.solve` within D(t) - H(t-1), and gives each of them Δs steps fewer (Eq 11). Nothing of this depends on
training, so that stage t of any run is row t of the table; after stage T no step is given.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lightning_modules.kpod.solver import solve

TOLERANCE = 1e-6  # of B: at t = T the budget equals what is left up to rounding
UNFINISHED = 0.1  # share of questions that may jump to no given step after stage T without a warning


@dataclass(frozen=True)
class ScheduleSection:
    stages: int | None = None
    """epochs until every rationale is generated in full (T); none: half of the epochs"""
    start: float = 0.3
    """share of all difficulty that the first budget allows (C0/B)"""
    power: float = 0.5
    """how the budget grows: as (t/T) to the power of this + 1 (p)"""
    beta: float = 12.0
    """weight of variety beside difficulty; 0: questions are taken in a random order, without looking at clusters"""
    clusters: int = 5
    """clusters of similar questions (K)"""
    step: int = 1
    """steps that a chosen question has to generate more at one stage (Δs)"""
    raise_step: bool = True
    """raise `step` where 95 % of the questions could not lose all given steps within the stages"""
    first: Literal["greedy", "last"] = "greedy"
    """before the first stage: greedy rounds use up the first budget, or each question generates its last step"""
    glove: str | None = None
    """text file of GloVe word vectors to cluster the questions by; none: the student's own embeddings"""
    sentences: str | None = None
    """hub name or folder of a sentence-transformers model to cluster the questions by"""

    def __post_init__(self) -> None:
        if self.stages is not None and self.stages < 1:
            raise ValueError(f"stages: must be 1 or above, or none for half of the epochs, not {self.stages}")
        if not 0 <= self.start <= 1:
            raise ValueError(f"start: must lie in 0..1, not {self.start}")
        if not (math.isfinite(self.power) and self.power > -1):
            raise ValueError(f"power: must be a number above -1, not {self.power}")
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise ValueError(f"beta: must be 0 or a number above, not {self.beta}")
        if not 1 <= self.clusters <= 255:
            raise ValueError(f"clusters: must lie in 1..255, not {self.clusters}")
        if self.step < 1:
            raise ValueError(f"step: must be 1 or above, not {self.step}")
        if self.glove and self.sentences:
            raise ValueError("glove: must not be given together with sentences; choose one of them")

    def without_effect(self) -> dict[str, str]:
        """Name what only clusters need."""
        return {} if self.beta else dict.fromkeys(("clusters", "glove", "sentences"), "beta=0 takes questions without looking at clusters")


@dataclass(frozen=True)
class Schedule:
    """Steps given at each stage, and how the difficulty kept to its budget. Stage 0 is the state before training."""

    table: np.ndarray  # (T+1, N) int16: c_i(t)
    budget: np.ndarray  # (T+1,) float64: D(t); the last one is B
    difficulty: np.ndarray  # (T+1,) float64: H(t)
    chosen: np.ndarray  # (T+1, K) int64: |S(t) ∩ C_k|; row 0: questions that the filling has moved
    step: int  # Δs, as raised

    @property
    def stages(self) -> int:
        return len(self.table) - 1

    @property
    def unfinished(self) -> float:
        """Share of questions that are still given steps at stage T, and none after it."""
        return float((self.table[-1] > 0).mean())

    def facts(self) -> dict[str, object]:
        """Return what describes the schedule, for a record in JSON."""
        return {"stages": self.stages, "step": self.step, "B": float(self.budget[-1]), "C0": float(self.budget[0]),
                "D": self.budget.tolist(), "H": self.difficulty.tolist(), "chosen": self.chosen.sum(1).tolist(),
                "chosen_by_cluster": self.chosen.tolist(), "unfinished": self.unfinished}

    def save(self, folder: Path) -> None:
        np.savez(folder / "schedule.npz", table=self.table, budget=self.budget, difficulty=self.difficulty, chosen=self.chosen,
                 step=self.step)

    @classmethod
    def load(cls, folder: Path) -> "Schedule":
        with np.load(folder / "schedule.npz") as stored:
            return cls(stored["table"], stored["budget"], stored["difficulty"], stored["chosen"], int(stored["step"]))


def stages_of(section: ScheduleSection, epochs: int | None) -> int:
    """Return T for a training of `epochs`; None or -1: the number of epochs is not known."""
    known = epochs if epochs is not None and epochs > 0 else None
    if section.stages is None:
        if known is None:
            raise ValueError("module.schedule.stages: half of the epochs is the default; give it, or trainer.max_epochs")
        return max(1, known // 2)
    if known is not None and section.stages > known:
        warnings.warn(f"module.schedule.stages: {section.stages} stages do not fit into {known} epochs; training ends while "
                      "steps are still given", stacklevel=2)
    return section.stages


def budgets(total: float, start: float, power: float, stages: int) -> np.ndarray:
    """Return D(t) for t = 0..T (Eq 10), (T+1,); D(0) = start * total, D(T) = total."""
    first = start * total
    return first + (total - first) * (np.arange(stages + 1) / stages) ** (power + 1)


def raised_step(counts: np.ndarray, section: ScheduleSection, stages: int) -> int:
    """Return the smallest Δs, not below the configured one, with which 95 % of the questions can lose all given steps in T stages."""
    if not section.raise_step or not len(counts):
        return section.step
    most = int(np.percentile(counts, 95, method="inverted_cdf"))
    return max(section.step, -(-most // stages))


def make_schedule(difficulties: np.ndarray, counts: np.ndarray, clusters: np.ndarray, section: ScheduleSection, stages: int,
                  seed: int = 0) -> Schedule:
    """Work out the table for `stages` stages.

    `difficulties` (Σ n_i,) float64 are those of all steps, question after question; `counts` (N,) says how many each has;
    `clusters` (N,) is the cluster of each question. Warns where more than a tenth of the questions are left unfinished.
    """
    if not (np.isfinite(difficulties).all() and (difficulties >= 0).all()):
        raise ValueError("the difficulty of a step must be a finite number, 0 or above; the student's loss is not")
    budget = budgets(float(difficulties.sum()), section.start, section.power, stages)
    walk = _Walk(difficulties, counts, clusters, section, raised_step(counts, section, stages), seed)
    walk.begin(budget[0])
    for allowed in budget[1:]:
        walk.advance(allowed)
    schedule = Schedule(np.stack(walk.table), budget, np.array(walk.difficulty), np.stack(walk.chosen), walk.step)
    _warn(schedule)
    return schedule


class _Walk:
    """The state that stages hand on: c_i and H; `table`, `difficulty` and `chosen` grow by one entry a stage."""

    def __init__(self, difficulties: np.ndarray, counts: np.ndarray, clusters: np.ndarray, section: ScheduleSection, step: int,
                 seed: int) -> None:
        self.difficulties, self.clusters, self.section, self.step = difficulties, clusters.astype(np.int64), section, step
        self.starts = np.cumsum(counts) - counts
        self.given = counts.astype(np.int64)
        self.spent, self.slack = 0.0, TOLERANCE * float(difficulties.sum())
        # without variety all densities are equal, and a seeded order of the questions takes their place
        self.ties = np.arange(len(counts)) if section.beta else np.random.default_rng(seed).permutation(len(counts))
        self.table: list[np.ndarray] = []
        self.difficulty: list[float] = []
        self.chosen: list[np.ndarray] = []

    def begin(self, allowed: float) -> None:
        """Find c_i(0): from the answer alone, either generate one step each, or as much as the first budget allows."""
        counts = self.given
        if self.section.first == "last":
            waiting = np.flatnonzero(counts)
            self.spent, self.given = float(self._costs(1)[waiting].sum()), np.maximum(counts - 1, 0)
        else:
            while len(self._choose(allowed)):
                pass
        self._record(np.flatnonzero(self.given < counts))

    def advance(self, allowed: float) -> None:
        """Make one stage: each chosen question loses Δs given steps."""
        self._record(self._choose(allowed))

    def _choose(self, allowed: float) -> np.ndarray:
        """Move the questions that the solver picks, and return them."""
        waiting = np.flatnonzero(self.given)
        costs = self._costs(self.step)[waiting]
        picked = solve(costs, self.clusters[waiting], allowed - self.spent + self.slack, self.section.beta, self.ties[waiting])
        moved = waiting[picked]
        self.spent += float(np.sort(costs[picked]).sum())
        self.given = self.given.copy()
        self.given[moved] = np.maximum(self.given[moved] - self.step, 0)
        return moved

    def _costs(self, step: int) -> np.ndarray:
        """Return a_i (N,): the difficulty of the last `step` given steps of each question, 0 where none is given."""
        costs = np.zeros(len(self.given))
        for back in range(1, step + 1):
            has = self.given >= back
            costs[has] += self.difficulties[(self.starts + self.given - back)[has]]
        return costs

    def _record(self, moved: np.ndarray) -> None:
        self.table.append(self.given.astype(np.int16))
        self.difficulty.append(self.spent)
        self.chosen.append(np.bincount(self.clusters[moved], minlength=int(self.clusters.max(initial=0)) + 1))


def _warn(schedule: Schedule) -> None:
    if schedule.difficulty[0] > schedule.budget[0] * (1 + TOLERANCE):
        share = schedule.difficulty[0] / schedule.budget[-1]
        warnings.warn(f"module.schedule.first: the last steps alone are {share:.0%} of all difficulty, more than the first budget; "
                      "first=greedy keeps to it, or raise module.schedule.start", stacklevel=3)
    if schedule.unfinished > UNFINISHED:
        warnings.warn(f"module.schedule: {schedule.unfinished:.0%} of the questions are still given steps at stage "
                      f"{schedule.stages}, the last, and none after it; raise module.schedule.stages, or "
                      f"module.schedule.step above {schedule.step}", stacklevel=3)
