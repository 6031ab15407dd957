"""Pictures of a run: who taught over time, how accurate the networks were, and the graph coloured by who teaches."""

import csv
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from lightning_modules.freekd.structure import LocalEdges

COLOURS = ("#4a77ad", "#c1440e", "#5a9367", "#8a6bb1", "#b8912f", "#6b6b6b")
SHOWN = 400  # nodes in the drawing of a graph


def read_columns(metrics: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Read every metric of metrics.csv: the steps done when it was measured, and its values."""
    columns: dict[str, tuple[list[int], list[float]]] = {}
    with metrics.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    steps, values = columns.setdefault(name, ([], []))
                    steps.append(int(row["step"]) + 1)
                    values.append(float(value))
    return columns


def draw_directions(columns: dict[str, tuple[list[int], list[float]]], names: list[str], path: Path) -> Path | None:
    """Draw the share of nodes at which each network teaches, and the agent's doubt; nothing where no agent chose."""
    found = [(name, columns[f"train/share/{name}"]) for name in names if f"train/share/{name}" in columns]
    if not found:
        return None
    figure, axes = _axes("share of nodes taught by")
    for colour, (name, curve) in zip(COLOURS, found):
        axes.plot(*curve, color=colour, linewidth=1.4, label=name)
    if "train/entropy" in columns:
        axes.plot(*columns["train/entropy"], color="#999999", linewidth=1, linestyle=":", label="entropy of the choice (nats)")
    axes.set_ylim(-0.02, None)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path)
    return path


def draw_accuracy(columns: dict[str, tuple[list[int], list[float]]], names: list[str], path: Path) -> Path | None:
    """Draw the validation micro-F1 of every network, and of its twin that nobody teaches."""
    kinds = (("val/micro_f1", "-", ""), ("val/base_micro_f1", ":", " alone"))
    lines = [(f"{kind}/{name}", style, COLOURS[number % len(COLOURS)], name + note)
             for number, name in enumerate(names) for kind, style, note in kinds if f"{kind}/{name}" in columns]
    if not lines:
        return None
    figure, axes = _axes("validation micro-F1")
    for metric, style, colour, label in lines:
        axes.plot(*columns[metric], color=colour, linestyle=style, linewidth=1.4, label=label)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path)
    return path


def draw_teachers(edges: np.ndarray, teacher: np.ndarray, names: list[str], path: Path) -> Path:
    """Draw a part of the graph, nodes coloured by who teaches there; edges (2, E), teacher (n,)."""
    near = _near(edges, len(teacher), SHOWN)
    shown = nx.Graph()
    shown.add_nodes_from(near.tolist())
    shown.add_edges_from(edges[:, np.isin(edges, near).all(0) & (edges[0] != edges[1])].T.tolist())
    places = nx.spring_layout(shown, seed=0, iterations=60)
    figure = Figure(figsize=(6.4, 6.4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    nx.draw_networkx_edges(shown, places, ax=axes, width=0.4, edge_color="#bbbbbb")
    for number, name in enumerate(names):
        nodes = [node for node in shown if teacher[node] == number]
        nx.draw_networkx_nodes(shown, places, nodes, ax=axes, node_size=26, node_color=COLOURS[number % len(COLOURS)], label=name)
    axes.set_title(f"who teaches ({len(shown)} of {len(teacher)} nodes)", fontsize="small")
    axes.legend(frameon=False, fontsize="small")
    axes.set_axis_off()
    figure.savefig(path)
    return path


def _near(edges: np.ndarray, nodes: int, most: int) -> np.ndarray:
    """Take the node with the most neighbours and those around it, nearest first; edges (2, E)."""
    seen = np.zeros(nodes, dtype=bool)
    rings = [np.array([np.bincount(edges.ravel(), minlength=nodes).argmax()])]
    while len(rings[-1]) and sum(map(len, rings)) < most:
        seen[rings[-1]] = True
        touched = np.concatenate([edges[1, seen[edges[0]]], edges[0, seen[edges[1]]]])
        rings.append(np.unique(touched[~seen[touched]]))
    return np.concatenate(rings)[:most]


def _axes(label: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.4, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    return figure, axes


def draw(folder: Path, names: list[str], edges: LocalEdges, teacher: Tensor | None) -> list[Path]:
    """Draw what a run's metrics.csv holds, and the nodes B by `teacher` (|B|,) if there is one; return the pictures made."""
    made: list[Path | None] = []
    if (folder / "metrics.csv").is_file():
        columns = read_columns(folder / "metrics.csv")
        made = [draw_directions(columns, names, folder / "directions.png"), draw_accuracy(columns, names, folder / "accuracy.png")]
    if teacher is not None and len(edges.centre):
        ends = np.stack([edges.neighbour.cpu().numpy(), edges.centre.cpu().numpy()])
        made.append(draw_teachers(ends, teacher.cpu().numpy(), names, folder / "teachers.png"))
    return [picture for picture in made if picture is not None]
