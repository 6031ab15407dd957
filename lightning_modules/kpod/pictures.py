"""Pictures of the curriculum: what a schedule gives and asks for at each stage, and the accuracy that followed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lightning_modules.kpod.schedule import Schedule

BLUE, RED, GREY = "#4a77ad", "#c1440e", "#8a8a8a"


def draw_schedule(schedule: Schedule, picture: Path) -> None:
    """Draw budget and difficulty as shares of all difficulty, steps given, and questions that are generated in full, over the stages."""
    figure = Figure(figsize=(10.5, 3.4), dpi=120, layout="constrained")
    budget, steps, finished = figure.subplots(1, 3)
    stages = np.arange(schedule.stages + 1)
    total = schedule.budget[-1] or 1.0
    budget.plot(stages, schedule.budget / total, color=GREY, linestyle="--", label="budget D(t)/B")
    budget.plot(stages, schedule.difficulty / total, color=BLUE, marker="o", markersize=3.5, label="difficulty H(t)/B")
    _shares(budget, "difficulty to be generated")
    budget.legend(frameon=False)
    steps.plot(stages, schedule.table.mean(1), color=BLUE, marker="o", markersize=3.5)
    steps.set_ylim(bottom=0)
    steps.set_title("steps given, mean", fontsize="medium")
    finished.plot(stages, (schedule.table == 0).mean(1), color=BLUE, marker="o", markersize=3.5)
    _shares(finished, "questions with no step given")
    for axes in (budget, steps, finished):
        _frame(axes, "stage")
    figure.savefig(picture)


def draw_accuracy(points: Sequence[tuple[int, float]], picture: Path, stages: int = 0) -> None:
    """Draw accuracy (0..1) by stage, from pairs of both; without any nothing is drawn. A line marks `stages`, the last with steps given."""
    if not points:
        return
    figure = Figure(figsize=(6.4, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    best = max(accuracy for _, accuracy in points)
    axes.plot(*zip(*sorted(points), strict=True), color=RED, marker="o", markersize=4, label=f"accuracy, at best {best:.1%}")
    if stages:
        axes.axvline(stages, color=GREY, linestyle="--", linewidth=1, label="last stage with steps given")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("answers that are right")
    axes.legend(frameon=False)
    _frame(axes, "stage")
    figure.savefig(picture)


def _shares(axes: Axes, title: str) -> None:
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title(title, fontsize="medium")


def _frame(axes: Axes, name: str) -> None:
    axes.set_xlabel(name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
