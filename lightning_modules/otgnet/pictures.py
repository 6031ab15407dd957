"""Pictures of a run over tasks: the matrix of accuracies, AP and AF, and old and new classes in the space of the embeddings."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from lightning_modules.otgnet.measures import Matrix, average_forgetting, average_performance


def draw_matrices(folder: Path, matrices: dict[str, Matrix]) -> Path:
    """Draw each matrix as a heat map, one beside the other: rows are what was learnt, columns what is tested."""
    figure = Figure(figsize=(1.2 + 3.4 * len(matrices), 3.6), layout="constrained")
    axes = figure.subplots(1, len(matrices), squeeze=False)
    for axis, (name, matrix) in zip(axes[0], matrices.items()):
        size = len(matrix)
        full = torch.full((size, size), torch.nan)
        for row, values in enumerate(matrix):
            full[row, :len(values)] = torch.tensor(values)
        image = axis.imshow(full, vmin=0, vmax=100, cmap="viridis")
        for row, values in enumerate(matrix):
            for column, value in enumerate(values):
                axis.text(column, row, f"{value:.0f}", ha="center", va="center", color="black" if value > 60 else "white", fontsize=8)
        axis.set(title=f"{name}\nAP {average_performance(matrix):.1f}, AF {average_forgetting(matrix):.1f}", xlabel="tested on task",
                 ylabel="after task", xticks=range(size), yticks=range(size))
        axis.title.set_fontsize(9)
    figure.colorbar(image, ax=axes[0].tolist(), label="accuracy, %")
    return _saved(figure, folder / "matrix.png")


def draw_course(folder: Path, matrices: dict[str, Matrix], gated: Sequence[float] = ()) -> Path:
    """Draw AP and AF as they stood after each task, and the share of neighbours that was gated in each."""
    figure = Figure(figsize=(11 if gated else 8, 3), layout="constrained")
    axes = figure.subplots(1, 3 if gated else 2)
    for name, matrix in matrices.items():
        tasks = range(1, len(matrix) + 1)
        for axis, measure in zip(axes, (average_performance, average_forgetting)):
            axis.plot(tasks, [measure(matrix[:number]) for number in tasks], marker="o", label=name)
    for axis, title in zip(axes, ("average performance, %", "average forgetting, points")):
        axis.set(title=title, xlabel="tasks learnt")
    axes[0].legend(fontsize=7)
    if gated:
        axes[2].bar(range(len(gated)), [100 * share for share in gated])
        axes[2].set(title="neighbours of another class, %", xlabel="task")
    return _saved(figure, folder / "course.png")


def draw_embeddings(folder: Path, rows: Tensor, label: Tensor, names: Sequence[str], old: int) -> Path:
    """Draw nodes by the first two principal components of their rows (n, d), by class; the first `old` classes hollow."""
    centred = (rows - rows.mean(0)).float().cpu()
    _, _, axes = torch.pca_lowrank(centred, q=2, center=False) if len(rows) > 2 else (None, None, torch.eye(rows.shape[1])[:, :2])
    place = centred @ axes
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axis = figure.subplots()
    for kind in label.unique().tolist():
        own = place[label.cpu() == kind]
        colour = colormaps["tab20"](kind % 20)
        axis.scatter(own[:, 0], own[:, 1], s=8, edgecolors=[colour], facecolors="none" if kind < old else [colour], label=names[kind],
                     linewidths=0.7)
    axis.set(title="memory of test nodes; classes of earlier tasks are hollow", xticks=[], yticks=[])
    axis.legend(fontsize=6, markerscale=1.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return _saved(figure, folder / "embeddings.png")


def _saved(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path
