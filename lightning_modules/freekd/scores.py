"""Micro-F1 of several networks on validation and test nodes; a network's test figure is that of its best validation, and no other."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_modules.freekd.losses import answers, cross_entropies, log_probabilities

PARTS = ("valid", "test")


def counts(logits: Tensor, y: Tensor, multi_label: bool) -> Tensor:
    """Count true positives, false positives and false negatives, (..., 3), of logits (..., n, C) against labels (n,) or (n, C).

    For classes that exclude each other, micro-F1 = 2 tp / (2 tp + fp + fn) is the accuracy; a label of several counts from p = 1/2 on.
    """
    if multi_label:
        said, true = logits > 0, y > 0
        parts = [said & true, said & ~true, ~said & true]
        return torch.stack([part.sum((-1, -2)) for part in parts], -1).double()
    right = (logits.argmax(-1) == y).sum(-1).double()
    wrong = len(y) - right
    return torch.stack([right, wrong, wrong], -1)


class Scoreboard:
    """Scores of N networks over one validation, and the best so far by validation micro-F1, ties by the lower validation loss."""

    def __init__(self, networks: int, multi_label: bool) -> None:
        self.networks, self.multi_label = networks, multi_label
        self.best = torch.full((networks, 4), float("nan"), dtype=torch.float64)  # valid F1, valid loss, test F1, step
        self.start()

    def start(self) -> None:
        """Begin a validation."""
        self._counts = torch.zeros(len(PARTS), self.networks, 3, dtype=torch.float64)
        self._losses = torch.zeros(self.networks + 1, dtype=torch.float64)  # summed over validation nodes; last: how many

    def add(self, logits: Tensor, y: Tensor, masks: dict[str, Tensor]) -> None:
        """Count logits (N, n, C) at the nodes that `masks` give for "valid" and "test"."""
        for number, part in enumerate(PARTS):
            nodes = masks[part]
            self._counts[number] += counts(logits[:, nodes], y[nodes], self.multi_label).cpu()
        nodes = masks["valid"]
        ce = cross_entropies(log_probabilities(logits[:, nodes], self.multi_label), y[nodes])
        self._losses += torch.cat([ce.double().sum(1), ce.new_full((1,), len(answers(y[nodes]))).double()]).cpu()

    def finish(self, step: int, summed: Callable[[Tensor], Tensor], keep: bool) -> dict[str, Tensor]:
        """Return this validation's micro-F1 of both parts and its loss, (N,) each; `summed` adds up over processes.

        With `keep`, a network whose validation is the best so far has its test figure, and the step, put down.
        """
        totals, losses = summed(self._counts), summed(self._losses)
        f1 = 2 * totals[..., 0] / (2 * totals[..., 0] + totals[..., 1] + totals[..., 2]).clamp(min=1)
        loss = losses[:-1] / losses[-1].clamp(min=1)
        if keep:
            now = torch.stack([f1[0], loss, f1[1], torch.full_like(loss, float(step))], 1)
            better = self.best[:, 0].isnan() | (f1[0] > self.best[:, 0]) | ((f1[0] == self.best[:, 0]) & (loss < self.best[:, 1]))
            self.best = torch.where(better[:, None], now, self.best)
        return {"valid": f1[0], "test": f1[1], "loss": loss}

    def table(self, names: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        """Return columns and rows of the best of each network, and beside it that of its twin if there are as many more networks."""
        columns, rows = ("network", "validation", "test", "step"), self.best[:, [0, 2, 3]].tolist()
        own, twins = rows[: len(names)], rows[len(names) :]
        if not twins:
            return columns, [(name, *row) for name, row in zip(names, own, strict=True)]
        columns = (*columns, "base validation", "base test", "base step")  # type: ignore[assignment]
        return columns, [(name, *row, *twin) for name, row, twin in zip(names, own, twins, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"].cpu()
