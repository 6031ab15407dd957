"""Which rationale tokens matter: a generator of keep-probabilities w (KPOD, Eq 2 and 3), and masks m that are drawn from them (Eq 4).

Masks are soft by default, and go on embeddings: the gradient of the answer's loss has to reach w through m. A mask that replaces token
ids passes none, and every w then sinks to 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

FIRST_BIAS = 2.0  # w is sigmoid(2) = 0.88 at first: nearly everything is kept while the predictor still learns


class TokenWeigher(nn.Module):
    """One self-attention layer over the rationale, then a two-layer perceptron: a logit for each token.

    There are no positions, as in the paper: a token's weight depends on what it is and on what else the rationale holds.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.after = nn.LayerNorm(width)
        last = nn.Linear(hidden, 1)
        nn.init.constant_(last.bias, FIRST_BIAS)
        self.score = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), last)

    def forward(self, embedded: Tensor, rationale: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of w, (B, T) float32, and the embeddings in context, (B, T, D), of `embedded` (B, T, D).

        Only tokens where `rationale` (B, T) is true are attended to; what comes out at others means nothing.
        """
        normed = self.before(embedded)
        mixed, _ = self.attention(normed, normed, normed, key_padding_mask=~rationale, need_weights=False)
        context = embedded + mixed  # e of Eq 2
        return self.score(self.after(context)).squeeze(-1).float(), context


def relaxed_mask(logits: Tensor, temperature: float, hard: bool = False) -> Tensor:
    """Draw binary concrete variables m (Maddison et al. 2017, Eq 4 of KPOD) in the shape of `logits`; 1 keeps a token.

    `hard` rounds them to 0 or 1 and passes the gradient of the soft ones on (straight-through).
    """
    uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((logits + uniform.log() - torch.log1p(-uniform)) / temperature)
    return (soft > 0.5).to(soft.dtype) + (soft - soft.detach()) if hard else soft


def random_mask(like: Tensor, share: float) -> Tensor:
    """Mask each token with probability `share`, whatever it is; in the shape of `like`."""
    return (torch.rand_like(like) >= share).to(like.dtype)


def masked(embedded: Tensor, mask: Tensor, rationale: Tensor, instead: Tensor) -> Tensor:
    """Mix embeddings (B, T, D) with `instead` (D,): m of the token and 1 - m of the other, on the rationale alone."""
    keep = torch.where(rationale, mask, 1.0).to(embedded.dtype)[..., None]
    return keep * embedded + (1 - keep) * instead


def mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """Average `values` (B, T) over the chosen tokens of each row, (B,)."""
    return (values * chosen).sum(-1) / chosen.sum(-1)


@dataclass(frozen=True)
class MaskSchedule:
    """How masks change while training goes from 0 to 1: random ones first, then the generator's, the price of keeping rising to alpha."""

    alpha: float
    warmup: float  # share of the training with random masks
    ramp: float  # share after it in which the price rises
    tau_start: float
    tau_end: float

    def is_random(self, progress: float) -> bool:
        return progress < self.warmup

    def price(self, progress: float) -> float:
        """Return the factor of the mask ratio in the loss (alpha of Eq 7)."""
        if self.is_random(progress):
            return 0.0
        return self.alpha if not self.ramp else self.alpha * min((progress - self.warmup) / self.ramp, 1.0)

    def temperature(self, progress: float) -> float:
        return self.tau_start + (self.tau_end - self.tau_start) * progress
