"""Prompts of FreeKD-Prompt: each network reads its own view of the graph's features, x' = x + a mixture of learnt tokens.

The paper names the two aims, undistorted and diverse, and not their form; these are

    x_i' = x_i + sum_m softmax_m(w_m . x_i) t_m
    L_und^k = CE(f_k(G_k)) + lambda_c mean_i KL(p_i^k(G) || p_i^k(G_k)) + lambda_n mean_i |x_i' - x_i|^2 / |x_i|^2
    L_div = mean over pairs k < l of max(0, similarity of z^k(G_k) and z^l(G_l) - m),   L_prompt = sum_k L_und^k + beta L_div

The tokens t begin at 0, so that the first step is one without prompts. While prompts learn, networks and agent are constants. Each follows
the other: networks, agent, prompts, networks, ..., every one with the latest of the others.

A token is as long as the features are wide, and AdamW moves all of its numbers at once: 0.001 a step over Cora's 1,433 words outweighs in
the first layer what a paper's own words say, and the two sides then push each other apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.freekd.losses import divergence
from lightning_modules.freekd.networks import Shifted, project


@dataclass(frozen=True)
class PromptSection:
    tokens: int = 0
    """prompt tokens of each network; 0: no prompts, 5 is a good number"""
    lr: float = 3e-5
    """learning rate of the prompts' own AdamW; above 1e-4 networks and prompts drive each other apart where features are wide"""
    consistency: float = 1.0
    """lambda_c: weight of keeping the predictions of the graph without prompt"""
    nearness: float = 0.1
    """lambda_n: weight of keeping the features near"""
    diversity: float = 0.1
    """beta: weight of keeping the networks' views apart"""
    margin: float = 0.5
    """m: similarity of two views that costs nothing"""
    similarity: Literal["cosine", "cka"] = "cosine"
    """how alike two views are: the cosine of each node's encodings, or linear CKA, which networks of different widths need"""

    def __post_init__(self) -> None:
        for name in ("tokens", "consistency", "nearness", "diversity"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be 0 or above, not {getattr(self, name)}")
        if not self.lr > 0:
            raise ValueError(f"lr: must be above 0, not {self.lr}")

    def without_effect(self) -> dict[str, str]:
        """Name what only prompts need."""
        names = ("lr", "consistency", "nearness", "diversity", "margin", "similarity")
        return {} if self.tokens else dict.fromkeys(names, "tokens=0 means no prompts")


class FeaturePrompt(nn.Module):
    """T tokens that are added to node features in the shares that each node asks for."""

    def __init__(self, num_features: int, tokens: int) -> None:
        super().__init__()
        self.asks = nn.Linear(num_features, tokens, bias=False)
        self.tokens = nn.Parameter(torch.zeros(tokens, num_features))

    def forward(self, x: Tensor) -> Shifted:
        """Return x' of features (n, F), dense or sparse CSR."""
        return Shifted(x, project(x, self.asks.weight).softmax(-1), self.tokens)


def undistorted(ce: Tensor, plain: Tensor, prompted: Tensor, view: Shifted, config: PromptSection) -> Tensor:
    """Return L_und of one network, from its `ce` on the prompted graph and log-probabilities (n, V, O) without and with prompt."""
    lengths = view.x.square().sum(-1) if view.x.layout == torch.strided else row_squares(view.x)
    moved = ((view.shares @ (view.tokens @ view.tokens.t())) * view.shares).sum(-1)  # |x' - x|^2
    near = (moved / lengths.clamp(min=1e-6)).mean()
    return ce + config.consistency * divergence(plain, prompted).mean() + config.nearness * near


def row_squares(x: Tensor) -> Tensor:
    """Return the squared length of each row of a sparse CSR matrix, (n,)."""
    lengths = x.crow_indices().diff()
    rows = torch.arange(x.shape[0], device=x.device).repeat_interleave(lengths)
    return x.values().new_zeros(x.shape[0]).index_add(0, rows, x.values().square())


def diverse(z: Sequence[Tensor], config: PromptSection) -> Tensor:
    """Return L_div of the encodings (n, d_k) of K networks, each of its own view."""
    pairs = [overlap(one, two, config.similarity) for one, two in combinations(z, 2)]
    return torch.stack([F.relu(pair - config.margin).mean() for pair in pairs]).mean()


def overlap(one: Tensor, two: Tensor, kind: str) -> Tensor:
    """Return how alike encodings (n, d) and (n, d') are: the cosine of each node, (n,), or linear CKA, a scalar in 0..1."""
    if kind == "cosine":
        return F.cosine_similarity(one.float(), two.float(), dim=-1)
    a, b = one.float() - one.float().mean(0), two.float() - two.float().mean(0)
    cross, own, other = (a.t() @ b).square().sum(), (a.t() @ a).norm(), (b.t() @ b).norm()
    return cross / (own * other).clamp(min=1e-12)
