"""Pictures of a run."""

import csv
from pathlib import Path


def curve(metrics: Path, name: str) -> tuple[list[int], list[float]]:
    """Read one metric from metrics.csv: the steps and the values."""
    if not metrics.is_file():
        return [], []
    with metrics.open(newline="") as file:
        rows = [(int(row["step"]) + 1, float(row[name])) for row in csv.DictReader(file) if row.get(name)]
    return [step for step, _ in rows], [value for _, value in rows]


def draw_loss(metrics: Path, picture: Path) -> None:
    """Draw training and validation loss over optimizer steps; without any rows nothing is drawn."""
    train, val = curve(metrics, "train/loss"), curve(metrics, "val/loss")
    if not train[0] and not val[0]:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*train, color="#7a9cc6", linewidth=1.2, label="train")
    axes.plot(*val, color="#c1440e", marker="o", markersize=4, linewidth=1.5, label="validation")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(picture)
