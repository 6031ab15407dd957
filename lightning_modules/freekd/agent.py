"""The agent of FreeKD: at each node it chooses the network that teaches, then whether the node's local structure is carried across.

The policy theta of the first level is a K-way categorical over the state s1, K = 2 in the first paper; delta of the second is a coin
over s2. Both are three linear layers with tanh, their last one zero at first, so that all choices begin equally likely.

    s1_i = [z_i^1; CE_i^1; ...; z_i^K; CE_i^K]        s2_i = [s1_i; u_i^distilled; u_i^guiding]

The extension to unlabelled nodes adds what needs no label: each network's entropy and confidence, and how far the networks agree.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.freekd.losses import entropies


@dataclass(frozen=True)
class AgentSection:
    policy: Literal["equivariant", "concat"] = "equivariant"
    """one score a network, by the same weights; or all networks side by side (paper)"""
    hidden: int = 64
    """width of the policies"""
    lr: float = 0.01
    """learning rate of the agent's own AdamW"""
    entropy: float = 0.02
    """weight of the policies' entropy in their loss, falling to 0 over the run"""
    prior: float = 0.0
    """how strongly the agent leans on confidence before it has learnt: added to its logits times each network's negative entropy"""

    def __post_init__(self) -> None:
        for name in ("hidden", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: must be above 0, not {getattr(self, name)}")
        for name in ("entropy", "prior"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be 0 or above, not {getattr(self, name)}")


@dataclass(frozen=True)
class State:
    """What the first level sees of |B| nodes, without a gradient."""

    z: tuple[Tensor, ...]  # K encodings (|B|, d_k), normalised over their width
    facts: Tensor  # (K, |B|, f): of each network, such as its cross-entropy
    shared: Tensor  # (|B|, g): of all of them
    certainty: Tensor  # (K, |B|): negative entropy

    def beside(self) -> Tensor:
        """Lay the networks side by side: (|B|, sum of d_k + K f + g)."""
        blocks = [torch.cat([z, facts], -1) for z, facts in zip(self.z, self.facts, strict=True)]
        return torch.cat([*blocks, self.shared], -1)

    def each(self) -> Tensor:
        """Show each network beside the mean of all: (|B|, K, 2 d + 2 f + g)."""
        blocks = torch.cat([torch.stack(self.z), self.facts], -1)  # (K, |B|, d + f)
        mean = blocks.mean(0, keepdim=True).expand_as(blocks)
        shared = self.shared.expand(len(blocks), *self.shared.shape)
        return torch.cat([blocks, mean, shared], -1).transpose(0, 1)


def state_of(z: Sequence[Tensor], log_p: Tensor, ce: Tensor, labelled: Tensor, label_free: bool) -> State:
    """Form s1 from encodings K x (|B|, d_k), log-probabilities (K, |B|, V, O) and cross-entropies (K, |B|), which count where `labelled`.

    Cross-entropies span 0 to 10 and enter as log(1 + CE). `label_free` adds what unlabelled nodes have instead.
    """
    log_p, entropy = log_p.detach(), entropies(log_p.detach())
    known = labelled.float()
    facts = [torch.log1p(ce.detach().clamp(max=1e4)) * known]
    shared = entropy.new_zeros(entropy.shape[1], 0)
    if label_free:
        mean = log_p.exp().mean(0)
        facts += [entropy, log_p.amax(-1).mean(-1)]
        agreement = (log_p.exp() * mean).sum(-1).mean((0, 2))  # 1 where all are sure of the same
        shared = torch.stack([known, agreement], -1)
    encodings = tuple(F.layer_norm(e.detach().float(), e.shape[1:]) for e in z)
    return State(encodings, torch.stack(facts, -1), shared, -entropy)


def _policy(width: int, hidden: int, logits: int = 1, bias: bool = True) -> nn.Sequential:
    """Make a policy; its last layer is zero, so that it begins without a preference."""
    last = nn.Linear(hidden, logits, bias)
    for p in last.parameters():
        nn.init.zeros_(p)
    return nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), last)


class Agent(nn.Module):
    """Both policies, over K networks with encodings of the given widths."""

    def __init__(self, widths: Sequence[int], facts: int, shared: int, config: AgentSection) -> None:
        super().__init__()
        self.config, self.networks = config, len(widths)
        beside = sum(widths) + len(widths) * facts + shared
        self.theta = self._first(beside, widths, facts, shared)
        self.delta = _policy(beside + 2, config.hidden)

    def _first(self, beside: int, widths: Sequence[int], facts: int, shared: int) -> nn.Sequential:
        if self.config.policy == "equivariant":
            if len(set(widths)) > 1:
                raise ValueError(f"module.agent.policy: equivariant needs encodings of one width, not {', '.join(map(str, widths))}; "
                                 "write concat")
            return _policy(2 * widths[0] + 2 * facts + shared, self.config.hidden, bias=False)  # one for all scores would cancel
        return _policy(beside, self.config.hidden, self.networks)

    def first_features(self, state: State) -> Tensor:
        """Return what theta reads: (|B|, features), or (|B|, K, features) where it scores one network at a time."""
        return state.each() if self.config.policy == "equivariant" else state.beside()

    def first_logits(self, features: Tensor, certainty: Tensor) -> Tensor:
        """Return the logits of the first level, (|B|, K); `certainty` (K, |B|) is what the prior leans on."""
        scores = self.theta(features)
        scores = scores.squeeze(-1) if self.config.policy == "equivariant" else scores
        return scores + self.config.prior * certainty.t()

    def second_features(self, state: State, similarity: Tensor, teacher: Tensor) -> Tensor:
        """Return s2, (|B|, features): s1 with the centre similarities u (K, |B|) of the pupils, averaged, and of the teacher."""
        guiding = similarity.gather(0, teacher[None])[0]
        distilled = (similarity.sum(0) - guiding) / max(self.networks - 1, 1)
        return torch.cat([state.beside(), distilled[:, None], guiding[:, None]], -1)

    def second_logit(self, features: Tensor) -> Tensor:
        """Return the logit of carrying the structure across, (|B|,)."""
        return self.delta(features).squeeze(-1)


def draw_teacher(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw the action of the first level from logits (|B|, K) with one uniform number a node: (|B|,) int64."""
    below = logits.softmax(-1).cumsum(-1)[:, :-1]
    return (uniform[:, None] >= below).sum(-1)


def draw_carried(logit: Tensor, uniform: Tensor) -> Tensor:
    """Draw the action of the second level from logits (|B|,): (|B|,) float of 0 and 1."""
    return (uniform < logit.sigmoid()).float()


def log_likelihoods(first: Tensor, second: Tensor, teacher: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
    """Return log pi_theta(a1 | s1) and log pi_delta(a2 | s2), (|B|,) each, of logits (|B|, K) and (|B|,)."""
    log_theta = first.log_softmax(-1).gather(-1, teacher[:, None]).squeeze(-1)
    return log_theta, -F.binary_cross_entropy_with_logits(second, carried, reduction="none")


def policy_entropies(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the entropy of each node's two choices in nats, (|B|,) each."""
    log_theta, p = first.log_softmax(-1), second.sigmoid()
    return -(log_theta.exp() * log_theta).sum(-1), -(p * F.logsigmoid(second) + (1 - p) * F.logsigmoid(-second))


class CollapseWatch:
    """Warns once of an agent that has chosen the same whatever the node for STUCK steps in a row."""

    STUCK = 50

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.still = 0  # steps in a row with a constant policy

    def __call__(self, share: Tensor, spread: Tensor) -> None:
        """Look at each network's share of the nodes, (K,), and at how much the policy differs between nodes."""
        largest = float(share.max())
        self.still = self.still + 1 if largest > 0.95 or float(spread) < 0.01 else 0
        if self.still == self.STUCK:
            name = self.names[int(share.argmax())]
            warnings.warn(f"the agent has chosen the same at all nodes for {self.STUCK} steps ({name} teaches at {largest:.0%} of them): "
                          "it has collapsed; try module.reward.kind=advantage, a larger module.agent.entropy or a smaller module.agent.lr",
                          stacklevel=3)
