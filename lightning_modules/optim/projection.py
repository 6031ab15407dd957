"""The basis of a low-rank gradient: the leading singular vectors of the short side, found exactly or cheaply.

A gradient G (m x n) is looked at from its long side: `tall` is G itself when m >= n and its transpose otherwise, hi x lo with
hi >= lo. A basis B (lo x r) has orthonormal columns; tall @ B is the low-rank gradient.
"""

import hashlib
from typing import Literal

import torch
from torch import Tensor

BasisKind = Literal["svd", "gram", "randomized", "subspace"]

OVERSAMPLING = 16  # extra directions of the random sketch (Halko et al. 2011, section 4.2)


def tall_view(matrix: Tensor) -> Tensor:
    """View a matrix (m x n) with its long side first (hi x lo); a square one stays as it is."""
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT


def find_basis(gradient: Tensor, rank: int, kind: BasisKind, previous: Tensor | None, seed: int) -> Tensor:
    """Return the basis (lo x r) of the leading `rank` directions of a gradient (m x n), r = min(rank, lo).

    svd: exact. gram: exact up to the squared condition number, computed in float64. randomized: a seeded sketch with one power
    iteration. subspace: one power iteration from the `previous` basis, randomized where there is none. Float32 or float64.
    """
    tall = tall_view(gradient)
    rank = min(rank, tall.shape[1])
    if kind == "svd":
        return _svd(gradient, rank)
    if kind == "gram":
        return _gram(tall, rank)
    if kind == "subspace" and previous is not None:
        return _power(tall, previous)
    return _randomized(tall, rank, seed)


def _svd(gradient: Tensor, rank: int) -> Tensor:
    """Decompose G and not its transpose: signs then agree with the official package's, and these matter after a refresh."""
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    return vh[:rank].mT.contiguous() if gradient.shape[0] >= gradient.shape[1] else u[:, :rank].contiguous()


def _gram(tall: Tensor, rank: int) -> Tensor:
    wide = tall.double()
    _, vectors = torch.linalg.eigh(wide.mT @ wide)  # ascending
    return vectors[:, -rank:].flip(1).to(tall.dtype).contiguous()


def _randomized(tall: Tensor, rank: int, seed: int) -> Tensor:
    """Halko, Martinsson & Tropp 2011, Algorithms 4.4 and 5.1, on the side that is kept."""
    width = min(rank + OVERSAMPLING, tall.shape[1])
    sketch = torch.randn(tall.shape[1], width, generator=torch.Generator().manual_seed(seed), dtype=tall.dtype).to(tall.device)
    space = _power(tall, sketch)
    space = _power(tall, space)  # (lo, width), orthonormal
    coefficients = (tall @ space).double()  # (hi, width)
    _, vectors = torch.linalg.eigh(coefficients.mT @ coefficients)  # ascending
    return (space @ vectors[:, -rank:].flip(1).to(tall.dtype)).contiguous()


def _power(tall: Tensor, space: Tensor) -> Tensor:
    """Multiply `space` (lo x r) by G'G and orthonormalise; signs follow the columns that came in, so that moments keep their meaning."""
    q, triangle = torch.linalg.qr(tall.mT @ (tall @ space))
    return q * torch.where(triangle.diagonal() < 0, -1.0, 1.0).to(q.dtype)


def with_canonical_signs(basis: Tensor) -> Tensor:
    """Flip the columns of a basis so that the entry of largest size in each is positive: the same on every device and library."""
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))  # (1, r)
    return basis * torch.where(largest < 0, -1.0, 1.0).to(basis.dtype)


def seed_of(*place: object) -> int:
    """Turn a place (seed, parameter, step) into a seed that is the same in every process and after every resume."""
    return int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=7).digest(), "big")


def squared_row_norms(tall: Tensor) -> Tensor:
    """Return the squared norms (hi,) of the rows of a tall view (hi x lo), without a temporary of its size.

    Rows of a transposed view are columns in memory; summed a few at a time they cost a quarter of torch's own reduction on a CPU.
    """
    if tall.stride(1) == 1:
        return torch.linalg.vector_norm(tall, dim=1).square()
    total = tall.new_zeros(tall.shape[0])
    for columns in tall.split(max(1, min(128, tall.shape[1] // 32)), dim=1):
        total += columns.square().sum(1)
    return total
