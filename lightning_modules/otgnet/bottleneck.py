"""The class-agnostic code z = f_phi(x): min I(Z;Y) - beta I(Z;X), by an upper bound (CLUB) and a lower one (MINE)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.constant import constant

TINY = 1e-6  # added to variances
ABSURD = 1000.0  # a bound beyond is not learnt from


@dataclass(frozen=True)
class BottleneckSection:
    beta: float = 0.3
    """weight of what is kept of the embedding, I(Z;X), against what is kept of the class, I(Z;Y)"""
    lr: float = 0.002
    """learning rate of the code's own AdamW; slower than the estimators, which have to follow it"""
    estimator_lr: float = 0.01
    """learning rate of each estimator's own AdamW"""
    estimator_passes: int = 10
    """passes over a task's events in which the two estimators learn; the code learns in all"""
    queue: int = 4096
    """embeddings that wait to be learnt from"""
    sample: int = 512
    """embeddings of the queue that a step learns from"""

    def __post_init__(self) -> None:
        for name in ("lr", "estimator_lr", "queue", "sample"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: must be above 0, not {getattr(self, name)}")
        for name in ("beta", "estimator_passes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be 0 or above, not {getattr(self, name)}")


def _layers(inputs: int, hidden: int, outputs: int, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs, bias))


class Club(nn.Module):
    """q(y|z) = N(mu(z), diag exp s(z)) over one-hot classes, and the bound on I(Z;Y) that it gives."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.mu, self.log_variance = _layers(width, width, num_classes), _layers(width, width, num_classes)

    def _squares(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, s = self.mu(z), self.log_variance(z).tanh()
        return (mu - y).square(), mu, s

    def bound(self, z: Tensor, y: Tensor, other: Tensor, opened: Tensor) -> Tensor:
        """Return I_club of codes z (n, d), one-hot y (n, C), `other` = y in another order, over the open classes (C,) bool."""
        near, mu, s = self._squares(z, y)
        gap = ((mu - other).square() - near) / (s.exp() + TINY)
        return 0.5 * (gap * opened).sum(-1).mean()

    def loss(self, z: Tensor, y: Tensor, opened: Tensor) -> Tensor:
        """Return the negative log-likelihood, up to constants, that makes the bound tight."""
        near, _, s = self._squares(z, y)
        return ((near / (s.exp() + TINY) + s) * opened).sum(-1).mean()


class Mine(nn.Module):
    """The Donsker-Varadhan bound on I(Z;X)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = _layers(2 * width, width, 1, bias=False)  # which would cancel out of the bound

    def bound(self, x: Tensor, z: Tensor, drawn: Tensor) -> Tensor:
        """Return I_mine of pairs x, z (n, d), held against x beside z[drawn], with places (n,) drawn anew.

        The first layer of [x; z] is the sum of two, so that what it makes of x serves both terms, and of z as well.
        """
        first, last = self.score[0], self.score[2]
        assert isinstance(first, nn.Linear)
        of_x, of_z = F.linear(x, first.weight[:, :x.shape[1]], first.bias), F.linear(z, first.weight[:, x.shape[1]:])
        joint = last(F.relu(of_x + of_z)).squeeze(-1)
        apart = last(F.relu(of_x + of_z[drawn])).squeeze(-1)
        return joint.mean() - (apart.logsumexp(0) - math.log(len(apart)))


@dataclass(frozen=True)
class Bounds:
    """The losses of a step: of the code, of the two estimators, and the bounds they come from."""

    code: Tensor
    estimators: Tensor
    club: Tensor
    mine: Tensor


class Bottleneck(nn.Module):
    """f_phi with its two estimators; each learns from its own loss only."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.code = _layers(width, width, width)
        self.club, self.mine = Club(width, num_classes), Mine(width)
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        """Return f_phi(x), (..., d), as a constant: classification trains neither the code nor what it reads."""
        with torch.no_grad():
            return self.code(x)

    def bounds(self, x: Tensor, label: Tensor, opened: Tensor, beta: float, generator: torch.Generator) -> Bounds:
        """Return all losses of embeddings x (n, d) with labels (n,)."""
        y = F.one_hot(label, self.num_classes).float()
        order = torch.randperm(len(x), generator=generator).to(x.device)
        drawn = torch.randint(len(x), (len(x),), generator=generator).to(x.device)
        z = self.code(x)
        with constant(self.club, self.mine):
            club, mine = self.club.bound(z, y, y[order], opened), self.mine.bound(x, z, drawn)
        code = club - beta * mine
        held = z.detach()
        estimators = self.club.loss(held, y, opened) - self.mine.bound(x, held, drawn)
        absurd = (code.detach().abs() > ABSURD) | ~code.detach().isfinite()
        return Bounds(torch.where(absurd, 0.0 * held.sum(), code), estimators, club.detach(), mine.detach())


class Queue:
    """A ring of embeddings (capacity, d) with their labels, the oldest of which make room."""

    def __init__(self, capacity: int, width: int) -> None:
        self.x, self.label = torch.zeros(capacity, width), torch.zeros(capacity, dtype=torch.int64)
        self.added = 0  # ever

    def __len__(self) -> int:
        return min(self.added, len(self.x))

    def add(self, x: Tensor, label: Tensor) -> None:
        """Queue embeddings (n, d), of more than fit the last."""
        x, label = x[-len(self.x):].detach(), label[-len(self.x):]
        place = (self.added + torch.arange(len(x), device=self.x.device)) % len(self.x)
        self.x[place], self.label[place] = x, label
        self.added += len(x)

    def sample(self, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw at most so many, without repetition."""
        place = torch.randperm(len(self), generator=generator)[:most].to(self.x.device)
        return self.x[place], self.label[place]

    def state_dict(self) -> dict[str, Any]:
        return {"x": self.x, "label": self.label, "added": self.added}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.x, self.label, self.added = state["x"].clone(), state["label"].clone(), state["added"]

    def to(self, device: torch.device) -> None:
        self.x, self.label = self.x.to(device), self.label.to(device)
