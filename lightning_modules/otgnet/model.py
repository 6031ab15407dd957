"""Network, code and heads together: from a view of events to logits over the classes that are open."""

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_modules.otgnet.bottleneck import Bottleneck
from lightning_modules.otgnet.heads import Heads
from lightning_modules.otgnet.network import NetworkSection, Passed, TemporalNetwork
from lightning_modules.otgnet.view import View


class OpenModel(nn.Module):
    """logits_c = W_c h + b_c + v log(1 + votes_c), with one fixed weight v, so that what votes are worth holds for new classes, too."""

    def __init__(self, num_features: int, tasks: Sequence[Sequence[int]], num_classes: int, config: NetworkSection, frozen_heads: bool,
                 unit: float) -> None:
        super().__init__()
        self.encoder = TemporalNetwork(num_features, config, unit)
        self.heads = Heads(config.classifier, tasks, num_classes, frozen_heads)
        self.code = Bottleneck(config.hidden, num_classes)
        self.vote_weight = config.vote_weight if config.votes else 0.0

    def forward(self, view: View, opened: int) -> tuple[Passed, Tensor]:
        """Return what the encoder gives and logits (Q, C), where the first `opened` tasks are open."""
        passed = self.encoder(view, self.code)
        return passed, self.logits(passed.hidden, view.votes, opened)

    def logits(self, hidden: Tensor, votes: Tensor, opened: int) -> Tensor:
        """Return logits (n, C) of hidden features (n, width) and votes (n, C)."""
        logits = self.heads(hidden, opened)
        return logits + self.vote_weight * votes.log1p()
