"""A classifier whose classes open task by task."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLOSED = float("-inf")


def tasks_of(weights: dict[str, Tensor]) -> list[int]:
    """Tell from a model's weights how many classes each task opens."""
    found = {int(name.rpartition(".")[2]): len(value) for name, value in weights.items() if ".heads.weight." in name}
    return [found[task] for task in sorted(found)]


class Heads(nn.Module):
    """One weight matrix a task; classes of tasks that have not opened have logit -inf, and their weights a gradient of exactly 0.

    All are made at the start from the stream's list of tasks, so that optimizers and checkpoints know them.
    """

    def __init__(self, width: int, tasks: Sequence[Sequence[int]], num_classes: int, frozen: bool = False) -> None:
        super().__init__()
        layers = [nn.Linear(width, len(classes)) for classes in tasks]
        self.weight = nn.ParameterList([layer.weight for layer in layers])
        self.bias = nn.ParameterList([layer.bias for layer in layers])
        if frozen:
            self.requires_grad_(False)
        self.num_classes = num_classes
        task_of = torch.full((num_classes,), len(tasks), dtype=torch.int64)  # a class that no task opens never does
        for task, classes in enumerate(tasks):
            task_of[list(classes)] = task
        self.register_buffer("task_of", task_of, persistent=False)
        self.register_buffer("columns", torch.tensor([c for classes in tasks for c in classes]), persistent=False)

    def forward(self, x: Tensor, opened: int) -> Tensor:
        """Return logits (n, C) of hidden features (n, width), by class id, where the first `opened` tasks are open."""
        weight, bias = self.by_class()
        return F.linear(x, weight, bias).masked_fill(~self.opened(opened), CLOSED)

    def by_class(self) -> tuple[Tensor, Tensor]:
        """Return all weights (C, width) and biases (C,) by class id, zero for a class that no task opens."""
        assert isinstance(self.columns, Tensor)
        weight, bias = torch.cat(list(self.weight)), torch.cat(list(self.bias))
        return (weight.new_zeros(self.num_classes, weight.shape[1]).index_copy(0, self.columns, weight),
                bias.new_zeros(self.num_classes).index_copy(0, self.columns, bias))

    def opened(self, tasks: int) -> Tensor:
        """Tell which classes are open after the first `tasks` tasks, (C,) bool."""
        assert isinstance(self.task_of, Tensor)
        return self.task_of < tasks

    def within_task(self, logits: Tensor, label: Tensor) -> Tensor:
        """Close all classes but those of each label's own task: logits (n, C), label (n,)."""
        assert isinstance(self.task_of, Tensor)
        return logits.masked_fill(self.task_of[None] != self.task_of[label][:, None], CLOSED)
