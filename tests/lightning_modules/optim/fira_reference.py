"""Fira as published, slow and in float64: every m x n matrix is formed, nothing is fused, nothing is shared with the code under test.

A matrix is always looked at with its short side as rows (square ones are transposed, as the official code projects them on the right),
so that `P` is lo x r, `R`, `M`, `V` are r x hi, and "column" in the paper is a column here.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Settings:
    """The numbers of Algorithm 1; `gamma=None` leaves the limiter out."""

    rank: int
    gap: int
    alpha: float = 0.25
    variant: str = "official"
    scaling: str = "column"
    residual: bool = True
    only_scaling: bool = False
    gamma: float | None = 1.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 0.0


class Adam:
    """Adam's direction without bias correction, eps outside the root of the raw second moment (Hugging Face's placement)."""

    def __init__(self, betas: tuple[float, float], eps: float) -> None:
        self.betas, self.eps = betas, eps
        self.count, self.first, self.second = 0, 0.0, 0.0

    def direction(self, gradient: Tensor) -> Tensor:
        b1, b2 = self.betas
        self.count += 1
        self.first = b1 * self.first + (1 - b1) * gradient
        self.second = b2 * self.second + (1 - b2) * gradient**2
        return self.first / (self.second.sqrt() + self.eps)

    @property
    def correction(self) -> float:
        """c_t = sqrt(1 - b2^t) / (1 - b1^t), t counted from 1."""
        b1, b2 = self.betas
        return math.sqrt(1 - b2**self.count) / (1 - b1**self.count)


def leading_vectors(matrix: Tensor, rank: int) -> Tensor:
    """First `rank` left singular vectors, the entry of largest magnitude of each made positive."""
    vectors = torch.linalg.svd(matrix, full_matrices=False).U[:, :rank]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * largest.sign()


class ReferenceFira:
    """One projected matrix. `step` returns the new weight; the last step's terms stay readable as attributes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.adam = Adam(settings.betas, settings.eps)
        self.basis: Tensor | None = None
        self.previous_norm = 0.0

    def step(self, weight: Tensor, gradient: Tensor, lr: float) -> Tensor:
        tall = gradient.shape[0] >= gradient.shape[1]
        update = self.update(gradient.T.double() if tall else gradient.double())
        weight = weight.double() - lr * (update.T if tall else update)
        return weight - lr * self.settings.weight_decay * weight

    def update(self, G: Tensor) -> Tensor:
        s = self.settings
        if self.basis is None or self.adam.count % s.gap == 0:
            self.basis = leading_vectors(G, min(s.rank, G.shape[0]))
        P = self.basis
        R = P.T @ G
        N = self.adam.direction(R)
        c = self.adam.correction
        self.phi = self.scaling_factors(N, R)
        if not s.residual:
            return c * s.alpha * (P @ N)
        if s.only_scaling:  # no separate low-rank term, so neither alpha nor a residual
            return c * self.limited(G * self.phi)
        if s.variant == "official":
            return c * (s.alpha * (P @ N) + self.limited((G - s.alpha * (P @ R)) * self.phi))
        # Algorithm 1 corrects N, hence phi and the norm that the limiter sees are corrected too
        return s.alpha * (P @ (c * N) + self.limited((G - P @ R) * (c * self.phi)))

    def scaling_factors(self, N: Tensor, R: Tensor) -> Tensor:
        """Return Eq. 9 for every column (1 x hi), or Eq. 10's one number (1 x 1)."""
        if self.settings.scaling == "matrix":
            return (N.norm() / (R.norm() + 1e-8)).reshape(1, 1)
        return N.norm(dim=0, keepdim=True) / (R.norm(dim=0, keepdim=True) + 1e-8)

    def limited(self, S: Tensor) -> Tensor:
        """Let the norm of S grow by at most gamma a step; a norm of zero is no yardstick (fira.md 0.3)."""
        norm = float(S.norm())
        if norm == 0:
            return S
        if self.settings.gamma is not None and self.previous_norm > 0:
            growth = max(norm / (self.previous_norm + 1e-8), self.settings.gamma) / self.settings.gamma
            S, norm = S / growth, norm / growth
        self.previous_norm = norm
        return S


class ReferenceAdam:
    """One parameter that is not projected: Adam, then decoupled decay of the already updated weight."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.adam = Adam(settings.betas, settings.eps)

    def step(self, weight: Tensor, gradient: Tensor, lr: float) -> Tensor:
        direction = self.adam.direction(gradient.double())
        weight = weight.double() - lr * self.adam.correction * direction
        return weight - lr * self.settings.weight_decay * weight
