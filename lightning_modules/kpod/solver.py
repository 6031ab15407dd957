"""Which questions get harder next? A knapsack whose value rewards difficulty and variety, solved by the exact density greedy.

A stage may add difficulty up to a budget. Taking question i costs a_i, the difficulty of the steps that it would have to generate besides.
The paper maximises F(S) = -(ΔD - ΔH(S)) + β Σ_k sqrt(|C_k ∩ S|) (Eq 12) subject to ΔH(S) = Σ_{i in S} a_i <= ΔD (Eq 13), C_k being clusters
of questions. F(∅) = -ΔD is negative, so a share of the optimum of F says nothing. Here G = F + ΔD is maximised instead, which is
the same problem: G(S) = Σ_{i in S} a_i + β Σ_k sqrt(|C_k ∩ S|) is 0 for nothing, monotone and submodular.

The greedy is the one that ranks by gain per cost, not by gain. With m of cluster k taken, that density is
1 + β (sqrt(m+1) - sqrt(m)) / a_i: the cheapest questions come first, and β, as long as it is above 0, does not change the order
at all. It acts only on which single question the augmentation adds. Ranking by gain would take several times fewer, harder questions.
"""

import numpy as np


def solve(costs: np.ndarray, clusters: np.ndarray, budget: float, beta: float, ties: np.ndarray | None = None,
          augment: bool = True) -> np.ndarray:
    """Choose questions whose costs sum to at most `budget`; return their indices in the order taken.

    `costs` (n,) float64 are at least 0, `clusters` (n,) ints. Equals are taken by cluster, then in the order of the distinct numbers
    `ties` (n,), the index where none are given. With beta = 0 every density is 1, and `ties` alone decide. With `augment`, G reaches
    half of the optimum or more.
    """
    if not len(costs):
        return np.empty(0, np.int64)
    ties = np.arange(len(costs)) if ties is None else ties
    queue = by_density(costs, clusters, ties) if beta > 0 else np.argsort(ties)
    taken = _affordable(costs, queue, budget)
    if not augment:
        return taken
    return _augmented(costs, clusters, ties, taken, budget, beta) if beta > 0 else _or_dearest(costs, taken, budget)


def by_density(costs: np.ndarray, clusters: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Sort by falling density, the m-th cheapest of a cluster being rated as its m-th to be taken.

    That makes one sort of the whole greedy: inside a cluster the cheapest is always the densest, and the clusters do not
    influence each other. a_i / (sqrt(m+1) - sqrt(m)) = a_i (sqrt(m+1) + sqrt(m)) rises where the density falls, and needs no beta.
    """
    order = np.lexsort((ties, costs, clusters))
    first = np.searchsorted(clusters[order], clusters[order])  # where the cluster of each begins
    before = np.arange(len(order)) - first  # m
    rank = costs[order] * (np.sqrt(before + 1) + np.sqrt(before))
    return order[np.lexsort((ties[order], clusters[order], rank))]


def _affordable(costs: np.ndarray, queue: np.ndarray, budget: float) -> np.ndarray:
    """Walk the queue and take what still fits. What does not fit never will again, for the budget only shrinks: it is dropped at once."""
    taken, left = [queue[:0]], budget
    while len(queue := queue[costs[queue] <= left]):
        spent = np.cumsum(costs[queue])
        fits = int(np.searchsorted(spent, left, side="right"))  # at least 1
        taken.append(queue[:fits])
        left -= float(spent[fits - 1])
        queue = queue[fits:]
    return np.concatenate(taken)


def _augmented(costs: np.ndarray, clusters: np.ndarray, ties: np.ndarray, taken: np.ndarray, budget: float, beta: float) -> np.ndarray:
    """Return the best of the greedy choice and of each beginning of it with the one best affordable question added (Greedy+)."""
    spent = np.concatenate([[0.0], np.cumsum(costs[taken])])  # (|S|+1,): of each beginning
    names = np.unique(clusters)
    counts = np.stack([np.concatenate([[0], np.cumsum(clusters[taken] == name)]) for name in names])  # (K, |S|+1)
    values = spent + beta * np.sqrt(counts).sum(0)
    best, choice = values[-1], taken
    for name, count in zip(names, counts, strict=True):
        members = np.flatnonzero(clusters == name)
        members = members[np.lexsort((ties[members], costs[members]))]
        dearest = np.searchsorted(costs[members], budget - spent, side="right") - 1
        gains = costs[members[dearest]] + beta * (np.sqrt(count + 1) - np.sqrt(count))
        totals = np.where(dearest >= count, values + gains, -np.inf)  # the first `count` members are taken already
        if totals.max() > best:
            length = int(totals.argmax())
            best, choice = totals[length], np.append(taken[:length], members[dearest[length]])
    return choice


def _or_dearest(costs: np.ndarray, taken: np.ndarray, budget: float) -> np.ndarray:
    """Return the dearest affordable question alone where it outweighs all that were taken: one of the two is half of the optimum."""
    affordable = np.where(costs <= budget, costs, -1.0)
    dearest = int(affordable.argmax())
    return np.array([dearest]) if affordable[dearest] > costs[taken].sum() else taken
