"""What the classifier learns from: cross-entropy over open classes, held against how often each class is seen now."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.otgnet.heads import Heads

RARE = 1e-6  # share of a class that is not seen


def class_shares(label: Tensor, num_classes: int) -> Tensor:
    """Return the share of each class among labels (n,), -1 for none: (C,)."""
    counts = torch.bincount(label[label >= 0], minlength=num_classes).float()
    return counts / counts.sum().clamp(min=1)


def classification(logits: Tensor, label: Tensor, heads: Heads, over: Literal["open", "task", "both"], shares: Tensor | None) -> Tensor:
    """Return the cross-entropy of each sample (n,), 0 where label (n,) is -1.

    `over` all open classes, those of the label's own task, or the mean of both. With `shares` (C,) logits are raised by their log in
    training (Menon et al. 2021, logit adjustment), so that frequent classes are not preferred afterwards.
    """
    known = label >= 0
    target = label.clamp(min=0)
    if shares is not None:
        logits = logits + shares.clamp(min=RARE).log()
    losses = []
    if over in ("open", "both"):
        losses.append(F.cross_entropy(logits[known], target[known], reduction="none"))
    if over in ("task", "both"):
        losses.append(F.cross_entropy(heads.within_task(logits, target)[known], target[known], reduction="none"))
    return logits.new_zeros(len(label)).index_copy(0, known.nonzero().view(-1), torch.stack(losses).mean(0))
