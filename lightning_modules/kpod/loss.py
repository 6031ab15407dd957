"""The loss of distillation (Eq. 14 and 15): weighted token likelihoods over a normaliser that is the same on every process.

A mean over each process's own batch would weigh tokens unequally, and the curriculum makes their numbers very uneven. So the divisor
covers the whole accumulation window over all processes. It is known in advance, because the order of the data is.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

INACTIVE = -100  # label of what is no target: prompts, given steps, padding
CHUNK = 2**25  # logits that are turned into float32 at a time: 128 MiB


class Sums(NamedTuple):
    """What a batch adds up to on this process, without gradients; active tokens only."""

    nll: Tensor  # in nats, not weighted
    weighted: Tensor  # sum of weight * nll
    tokens: Tensor
    weights: Tensor


def distillation_loss(logits: Tensor, labels: Tensor, weights: Tensor, total: Tensor | float, scale: float) -> tuple[Tensor, Sums]:
    """Return sum(weight * nll) / total * scale, and the sums behind it (Eq. 15).

    `logits` (B, T, V) in any float type, `labels` (B, T) aligned with them and -100 where nothing is learned, `weights` (B, T) float32.
    `total` is the normaliser of the whole accumulation window over all processes: its active tokens, the sum of their weights, or 1.
    `scale` is processes * accumulated batches, since Lightning divides by the latter and gradients are averaged over the former.
    """
    active = labels != INACTIVE
    weights = weights.float() * active
    nll = token_nll(logits, labels)
    weighted = (weights * nll).sum()
    detached = nll.detach()
    return weighted / total * scale, Sums(detached.sum(), weighted.detach(), active.sum(), weights.sum())


def token_nll(logits: Tensor, labels: Tensor, chunk: int = CHUNK) -> Tensor:
    """Return the negative log-likelihood of each label in nats, (B, T) float32; 0 where the label is -100.

    The softmax is in float32. Beyond `chunk` logits it is computed in pieces, and again in the backward pass, so that no second copy of
    the logits is kept.
    """
    flat, targets = logits.flatten(0, -2), labels.flatten()  # (N, V), (N,)
    rows = max(1, chunk // flat.shape[1])
    if len(flat) <= rows:
        return _nll(flat, targets).view_as(labels)
    pieces = [checkpoint(_nll, part, target, use_reentrant=False, preserve_rng_state=False)
              for part, target in zip(flat.split(rows), targets.split(rows))]
    return torch.cat(pieces).view_as(labels)


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, ignore_index=INACTIVE, reduction="none")
