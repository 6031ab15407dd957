"""Pictures of a run."""

import csv
from pathlib import Path

import numpy as np


def curve(metrics: Path, name: str) -> tuple[list[int], list[float]]:
    """Read one metric from metrics.csv: optimizer steps done when it was measured, and values."""
    if not metrics.is_file():
        return [], []
    with metrics.open(newline="") as file:
        rows = [(int(row["step"]) + 1, float(row[name])) for row in csv.DictReader(file) if row.get(name)]
    return [step for step, _ in rows], [value for _, value in rows]


def smoothed(values: list[float], points: int = 50) -> np.ndarray:
    """Average each value with its neighbours so that about `points` independent ones are left; fewer stay as they are."""
    reach = len(values) // (2 * points)
    sums = np.cumsum([0.0, *values])
    low = np.maximum(np.arange(len(values)) - reach, 0)
    high = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def draw_loss(metrics: Path, picture: Path) -> None:
    """Draw training and validation loss over optimizer steps; without any rows nothing is drawn."""
    train, val = curve(metrics, "train/loss"), curve(metrics, "val/loss")
    if not train[0] and not val[0]:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    if train[0]:
        axes.plot(*train, color="#7a9cc6", linewidth=0.8, alpha=0.35)
        means = smoothed(train[1])
        axes.plot(train[0], means, color="#4a77ad", linewidth=1.4, label=f"train, at last {means[-1]:.3f}")
    if val[0]:
        axes.plot(*val, color="#c1440e", marker="o", markersize=4, linewidth=1.5, label=f"validation, at last {val[1][-1]:.3f}")
    axes.set_title(picture.parent.name, fontsize="small")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(picture)


def draw_curves(curves: dict[str, dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]], picture: Path) -> bool:
    """Draw the course of each metric: a line a contender, its 95 % interval over seeds around it; False where there is nothing to draw.

    `curves` holds, by metric and contender, optimizer steps, means and half widths.
    """
    drawn = {metric: lines for metric, lines in curves.items() if lines}
    if not drawn:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.4 * len(drawn)), dpi=120, layout="constrained")
    for axes, (metric, lines) in zip(figure.subplots(len(drawn), squeeze=False)[:, 0], drawn.items(), strict=True):
        for name, (steps, means, halves) in lines.items():
            (line,) = axes.plot(steps, means, linewidth=1.4, label=name)
            axes.fill_between(steps, means - halves, means + halves, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set_ylabel(metric)
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(picture)
    return True
