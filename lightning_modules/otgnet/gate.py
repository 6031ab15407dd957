"""Where classes differ, only what is class-agnostic passes: which class each node is taken for, and what is gated."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class GateSection:
    where: Literal["both", "neighbours", "events", "none"] = "both"
    """what passes as its class-agnostic code: neighbours of another class, the messages of an event between classes, or neither"""
    unknown: Literal["vote", "prediction", "same"] = "vote"
    """class of a node without a training label: its labelled neighbours' majority so far, else the last prediction; the last
    prediction; or whatever passes all"""

    def without_effect(self) -> dict[str, str]:
        """Name what an open gate leaves idle."""
        return {"unknown": "where=none gates nothing"} if self.where == "none" else {}


def count_votes(label: Tensor, num_classes: int) -> Tensor:
    """Count the classes of neighbours, label (Q, n) with -1 for none: (Q, C) float."""
    votes = torch.zeros(len(label), num_classes, device=label.device)
    return votes.scatter_add_(1, label.clamp(min=0), (label >= 0).float())


def taken_class(known: Tensor, predicted: Tensor, votes: Tensor | None, unknown: str) -> Tensor:
    """Return the class each node is taken for (Q,), -1 for none, from labels and predictions (Q,), -1 for none, and votes (Q, C).

    `votes` None: there are no neighbours to ask.
    """
    guess = torch.full_like(known, -1) if unknown == "same" else predicted
    if unknown == "vote" and votes is not None:
        guess = torch.where(votes.sum(-1) > 0, votes.argmax(-1), guess)
    return torch.where(known >= 0, known, guess)


def differ(one: Tensor, other: Tensor) -> Tensor:
    """Tell where both classes are known and are not the same."""
    return (one >= 0) & (other >= 0) & (one != other)
