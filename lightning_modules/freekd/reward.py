"""What an action was worth, by the cross-entropies after the networks' update, and the policy gradient that follows (FreeKD, reward).

`paper` is the paper's reward less that of the same node the time before:

    R_i = - mean over B of sum_k CE_u^k  -  gamma * mean over N_i of sum_k CE_u^k        A_i = R_i - b_i

Its first term is the same for all nodes, and both fall while training goes well: every action is then praised, and the policy drifts to
whichever constant was drawn first. `centered` takes the mean off A and divides by its deviation. `advantage`, the default, asks instead
how much better the chosen teacher knows the node and its neighbourhood than the others do, less what the policy expects of itself:

    level_i(k) = mean over the others m of q_i^m - q_i^k,   A1_i = level_i(a1_i) + gamma * mean over N_i of level_u(a1_i) - E_pi[the same]
    A2_i = (a2_i - pi_delta) * mean over M_i of level_u(a1_i)

q is the cross-entropy at labelled nodes; at others a stand-in without labels, the network's entropy. A level is taken relative to the
network's average over nodes. Labels of validation and test are never read.
"""

import torch
from torch import Tensor

from lightning_modules.freekd.structure import LocalEdges


def paper_rewards(ce: Tensor, labelled: Tensor, edges: LocalEdges, gamma: float, overall: Tensor) -> Tensor:
    """Return R_i, (|B|,), of cross-entropies (K, |B|) that count where `labelled`; `overall` is their mean over all processes' B."""
    total = torch.where(labelled, ce.sum(0), 0.0)
    return -overall - gamma * edges.means(total, labelled[edges.neighbour])


def questions(ce: Tensor, labelled: Tensor, stand_in: Tensor) -> Tensor:
    """Return q, (K, |B|): the cross-entropy of labelled nodes, the stand-in elsewhere."""
    return torch.where(labelled, ce, stand_in)


def levels(q: Tensor, counted: Tensor) -> Tensor:
    """Return level_i(k), (K, |B|): how much lower q is in network k than in the others, less the same on average over `counted` nodes.

    Without the average, the network that is surer of everything would teach everywhere.
    """
    level = (q.sum(0) - q) / max(len(q) - 1, 1) - q
    mean = torch.where(counted, level, 0.0).sum(1, keepdim=True) / counted.sum().clamp(min=1)
    return torch.where(counted, level - mean, 0.0)


def level_advantages(level: Tensor, first: Tensor, edges: LocalEdges, counted: Tensor, gamma: float, teacher: Tensor) -> Tensor:
    """Return A1_i, (|B|,), of levels (K, |B|) and logits (|B|, K); only neighbours that are `counted` (|B|,) enter."""
    worth = level + gamma * edges.means(level, counted[edges.neighbour])  # (K, |B|)
    expected = (first.softmax(-1).t() * worth).sum(0)
    return worth.gather(0, teacher[None])[0] - expected


def structure_advantages(level: Tensor, second: Tensor, edges: LocalEdges, kept: Tensor, teacher: Tensor, carried: Tensor) -> Tensor:
    """Return A2_i, (|B|,): the teacher's level over M_i, which `kept` (E,) marks, where the structure was carried; less expectation."""
    around = edges.means(level, kept).gather(0, teacher[None])[0]
    return (carried - second.sigmoid()) * around


def standardised(advantages: Tensor, counted: Tensor, centre: bool) -> Tensor:
    """Divide by the root mean square over the nodes that are `counted`, their mean taken off first if `centre`; others get 0."""
    count = counted.sum().clamp(min=1)
    kept = torch.where(counted, advantages, 0.0)
    if centre:
        kept = torch.where(counted, kept - kept.sum() / count, 0.0)
    return kept / (kept.square().sum() / count).sqrt().clamp(min=1e-8)


def policy_loss(log_theta: Tensor, log_delta: Tensor, first: Tensor, second: Tensor, acts: Tensor) -> Tensor:
    """Return the loss whose gradient is -grad J of REINFORCE: (1/|B|) sum_i A_i grad log[pi_theta(a1_i) pi_delta(a2_i)].

    All are (|B|,): log-likelihoods, the advantages of both levels, and where the second level `acts`: a choice without effect, over an
    empty local structure, must not enter.
    """
    return -(first * log_theta + second * log_delta * acts).sum() / max(len(first), 1)
