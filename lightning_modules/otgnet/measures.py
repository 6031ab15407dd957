"""Figures of a run over tasks, from its matrix of accuracies: row T holds the accuracy on tasks 0..T once T was learnt."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

Matrix = Sequence[Sequence[float]]


def average_performance(matrix: Matrix) -> float:
    """AP: the mean accuracy on all tasks after the last."""
    return sum(matrix[-1]) / len(matrix[-1])


def average_forgetting(matrix: Matrix) -> float:
    """AF: how far the accuracy on a task has fallen from its best, on average over all tasks but the last; 0 with one task."""
    last = matrix[-1]
    falls = [max(row[task] for row in matrix[task:]) - last[task] for task in range(len(last) - 1)]
    return sum(falls) / len(falls) if falls else 0.0


def learning_accuracy(matrix: Matrix) -> float:
    """Return the mean accuracy on each task just after it was learnt: how well new classes are learnt."""
    return sum(row[-1] for row in matrix) / len(matrix)


def forward_transfer(ahead: Sequence[float], classes: Sequence[int]) -> float:
    """FWT: how far the accuracy on a task, measured just before it is learnt, lies above chance among its classes; 0 with one task.

    After Lopez-Paz and Ranzato (2017), whose reference is a network without training; `ahead` are those accuracies from the second task on.
    """
    gains = [accuracy - 100.0 / count for accuracy, count in zip(ahead, classes, strict=True)]
    return sum(gains) / len(gains) if gains else 0.0


def macro_f1(predicted: Tensor, label: Tensor, num_classes: int) -> float:
    """Return the mean F1 of the classes that occur among predictions or labels (n,), in percent."""
    if not len(label):
        return float("nan")
    each = multiclass_f1_score(predicted, label, num_classes, average=None)
    occurs = (torch.bincount(label, minlength=num_classes) + torch.bincount(predicted, minlength=num_classes)) > 0
    return 100.0 * float(each[occurs].mean())


def class_accuracy(predicted: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Return the share of each class's nodes that are right, in percent (C,); NaN for a class that does not occur."""
    each = 100.0 * multiclass_accuracy(predicted, label, num_classes, average=None)
    return torch.where(torch.bincount(label, minlength=num_classes) > 0, each, torch.nan)
