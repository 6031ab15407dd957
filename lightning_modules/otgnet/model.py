"""Network, code and heads together: from a view of events to logits over the classes that are open."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.otgnet.bottleneck import Bottleneck
from lightning_modules.otgnet.heads import CLOSED, Heads
from lightning_modules.otgnet.network import NetworkSection, Passed, TemporalNetwork
from lightning_modules.otgnet.view import View


class OpenModel(nn.Module):
    """logits_c = W_c h + b_c + v log(1 + votes_c), with one fixed weight v, so that what votes are worth holds for new classes, too.

    Where `means` (C, width) are set, - |h / |h| - mean_c|² takes the place of W_c h + b_c.
    """

    def __init__(self, num_features: int, tasks: Sequence[Sequence[int]], num_classes: int, config: NetworkSection, frozen_heads: bool,
                 unit: float) -> None:
        super().__init__()
        self.encoder = TemporalNetwork(num_features, config, unit)
        self.heads = Heads(config.classifier, tasks, num_classes, frozen_heads)
        self.code = Bottleneck(config.hidden, num_classes)
        self.means: Tensor
        self.register_buffer("means", torch.zeros(num_classes, config.classifier))
        self.vote_weight = config.vote_weight if config.votes else 0.0

    def forward(self, view: View, opened: int) -> tuple[Passed, Tensor]:
        """Return what the encoder gives and logits (Q, C), where the first `opened` tasks are open."""
        passed = self.encoder(view, self.code)
        return passed, self.logits(passed.hidden, view.votes, opened)

    def logits(self, hidden: Tensor, votes: Tensor, opened: int) -> Tensor:
        """Return logits (n, C) of hidden features (n, width) and votes (n, C)."""
        logits = self._by_means(hidden, opened) if self.means.any() else self.heads(hidden, opened)
        return logits + self.vote_weight * votes.log1p()

    def _by_means(self, hidden: Tensor, opened: int) -> Tensor:
        there = self.heads.opened(opened) & self.means.any(1)
        return (-torch.cdist(F.normalize(hidden), self.means).square()).masked_fill(~there, CLOSED)
