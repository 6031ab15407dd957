"""The losses of FreeKD: cross-entropy, and the two that carry knowledge from the network that teaches at a node to the others.

Predictions are log-probabilities (K, n, V, O) of K networks: V questions with O answers each. A class of C is one question with C
answers; a multi-label target is C questions of yes and no, so that the Bernoulli terms are the same sums. All is float32.
The teacher's side is a constant, so a network is never drawn towards its pupil.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.freekd.structure import LocalEdges, log_shares


def log_probabilities(logits: Tensor, multi_label: bool, temperature: float = 1.0) -> Tensor:
    """Turn logits (..., n, C) into log-probabilities (..., n, 1, C), or (..., n, C, 2) of no and yes where labels are several."""
    scaled = logits.float() / temperature
    if multi_label:
        return torch.stack([F.logsigmoid(-scaled), F.logsigmoid(scaled)], -1)
    return F.log_softmax(scaled, -1).unsqueeze(-2)


def answers(y: Tensor) -> Tensor:
    """Turn labels, (n,) classes or (n, C) of 0 and 1, into the right answers (n, V) int64."""
    return y.long() if y.ndim == 2 else y.long()[:, None]


def cross_entropies(log_p: Tensor, y: Tensor) -> Tensor:
    """Return CE_i^k in nats, (K, n): -log p of the right answer, averaged over the questions."""
    right = answers(y).expand(log_p.shape[:-1]).unsqueeze(-1)
    return -log_p.gather(-1, right).squeeze(-1).mean(-1)


def entropies(log_p: Tensor) -> Tensor:
    """Return each node's entropy in nats, (K, n), averaged over the questions."""
    return -(log_p.exp() * log_p).sum(-1).mean(-1)


def divergence(teacher: Tensor, pupil: Tensor) -> Tensor:
    """Return KL(teacher || pupil) of log-probabilities (..., V, O) in nats, summed over the questions; the teacher is constant."""
    teacher = teacher.detach()
    return (teacher.exp() * (teacher - pupil)).sum((-1, -2))


def teachers_of(teacher: Tensor | None, networks: int, nodes: int, like: Tensor) -> list[Tensor]:
    """Return, for each network m, the weight (K, n) with which it teaches network k at node i.

    `teacher` (n,) names the one that teaches; None is mutual learning, in which all others teach and their average counts.
    """
    pupils = 1.0 - torch.eye(networks, device=like.device)  # (m, k)
    if teacher is None:
        return [(pupils[m] / (networks - 1))[:, None].expand(networks, nodes) for m in range(networks)]
    return [(teacher == m).float() * pupils[m][:, None] for m in range(networks)]


def node_losses(log_p: Tensor, teacher: Tensor | None) -> Tensor:
    """Return L_node^k, (K,): the mean over nodes of [a_i != k] KL(p_i^{a_i} || p_i^k) (FreeKD, node level).

    The mean, not the paper's sum, keeps mu free of |B|.
    """
    networks, nodes = log_p.shape[:2]
    weights = teachers_of(teacher, networks, nodes, log_p)
    terms = [(weight * divergence(log_p[m], log_p)).sum(1) for m, weight in enumerate(weights)]
    return torch.stack(terms).sum(0) / max(nodes, 1)


def structure_losses(cosine: Tensor, kept: Tensor, edges: LocalEdges, teacher: Tensor | None, carried: Tensor, tau: float) -> Tensor:
    """Return L_struct^k, (K,): the mean of [a_i != k] a2_i KL(s_i^{a_i} || s_i^k) (FreeKD, structure level).

    `cosine` (K, E) holds g(z_i, z_j) in each network, `kept` (E,) the edges of the local structures M_i, `carried` (|B|,) a2 as 0 and 1,
    `tau` the temperature of s. Nodes with |M_i| <= 1 teach nothing and do not enter the mean.
    """
    networks = len(cosine)
    shares = log_shares(cosine / tau, kept, edges)  # (K, E)
    several = edges.degrees(kept) > 1  # (|B|,)
    weight = carried * several / several.sum().clamp(min=1)
    terms = []
    for m, teaches in enumerate(teachers_of(teacher, networks, edges.nodes, cosine)):
        source = shares[m].detach()
        distances = edges.sums(source.exp() * (source - shares) * kept)  # (K, |B|)
        terms.append((distances * teaches * weight).sum(1))
    return torch.stack(terms).sum(0)
