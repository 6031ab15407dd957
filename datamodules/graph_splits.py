"""Which nodes train, validate and test: a stored split, the full one of FastGCN, or a random one with equally many of each class."""

import torch
from torch import Tensor

from datamodules.rows import DataError

Masks = tuple[Tensor, Tensor, Tensor]  # train, valid, test, each (n,) bool


def stored_split(masks: dict[str, Tensor], index: int, y: Tensor) -> Masks:
    """Take split `index` of a set; nodes without a label (-1) are in none. Raise DataError if there is no such split."""
    picked = []
    for name in ("train", "valid", "test"):
        if name not in masks:
            raise DataError(f"data.split: this set comes without a {name} mask; take data.split=random")
        mask = masks[name]
        if mask.ndim == 2 and not index < mask.shape[1]:
            raise DataError(f"data.split_index: must lie in 0..{mask.shape[1] - 1} for this set, not {index}")
        picked.append(mask[:, index] if mask.ndim == 2 else mask)
    if index and all(mask.ndim == 1 for mask in masks.values()):
        raise DataError(f"data.split_index: this set comes with one split, so it must be 0, not {index}")
    labelled = y >= 0 if y.ndim == 1 else torch.ones(len(y), dtype=torch.bool)
    train, valid, test = (mask & labelled for mask in picked)
    return train & ~valid & ~test, valid & ~test, test


def full_split(masks: dict[str, Tensor], real: Tensor) -> Masks:
    """Train on every node that is neither held out nor made up (`real` (n,) bool)."""
    return real & ~masks["valid"] & ~masks["test"], masks["valid"], masks["test"]


def random_split(y: Tensor, per_class: int, valid_per_class: int, seed: int) -> Masks:
    """Draw training and validation nodes of each class; the rest tests.

    Of a class too small for that, at most a half trains, and at most a half of the rest validates.

    Labels that do not exclude each other have no classes to draw from: 60 % train, 20 % validate and 20 % test.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=generator)
    if y.ndim == 2:
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(y)))
        return place < 0.6 * len(y), (place >= 0.6 * len(y)) & (place < 0.8 * len(y)), place >= 0.8 * len(y)
    rank, size = _rank_in_class(y, order)
    train = rank < torch.minimum(torch.tensor(per_class), (size + 1) // 2)
    valid = ~train & (rank < torch.minimum(torch.tensor(per_class + valid_per_class), (3 * size + 3) // 4))
    labelled = y >= 0
    return train & labelled, valid & labelled, labelled & ~train & ~valid


def _rank_in_class(y: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Number the nodes of each class in the order given; return each node's number and the size of its class."""
    by_class = order[y[order].argsort(stable=True)]
    _, inverse, counts = y.unique(return_inverse=True, return_counts=True)
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(y)
    rank[by_class] = torch.arange(len(y)) - first[inverse[by_class]]
    return rank, counts[inverse]
