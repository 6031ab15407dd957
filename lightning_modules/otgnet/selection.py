"""Which few of many candidates to keep: important ones that together stand near as many others as possible (OTGNet eq. 13-15).

    F(S) = Σ_{g in S} R(g) + γ |∪_{g in S} N(g)| / |candidates|,    N(g): candidates nearer to g than the radius

F is monotone and submodular where R is not negative, so that greedy selection reaches (1 - 1/e) of the best (Nemhauser et al. 1978).
"""

import torch
from torch import Tensor


def to_unit(values: Tensor) -> Tensor:
    """Scale values (n,) linearly to 0..1; all equal ones become 0."""
    spread = values.max() - values.min() if len(values) else values.new_zeros(())
    return (values - values.min()) / spread if spread > 0 else torch.zeros_like(values)


def radius_of(embedding: Tensor, share: float) -> float:
    """Return the distance that `share` of all pairs of embeddings (n, d) lie within; 0 for fewer than two."""
    if len(embedding) < 2:
        return 0.0
    return float(torch.quantile(torch.pdist(embedding[:1000]), share))


def greedy(importance: Tensor, embedding: Tensor, count: int, gamma: float, radius: float, most: int = 1000) -> Tensor:
    """Choose `count` of n candidates by importance (n,) and cover of their neighbourhoods among embeddings (n, d); in order of choice.

    Only the `most` important ones are looked at. Ties go to the earlier candidate.
    """
    candidates = importance.argsort(descending=True, stable=True)[:most]
    value, place = importance[candidates], embedding[candidates]
    near = torch.cdist(place, place) < radius
    near.fill_diagonal_(True)
    free = torch.ones(len(candidates), dtype=torch.bool)  # not covered yet
    chosen: list[int] = []
    for _ in range(min(count, len(candidates))):
        gain = value + gamma * (near & free).sum(1) / len(candidates)
        gain[chosen] = float("-inf")
        best = int(gain.argmax())
        chosen.append(best)
        free &= ~near[best]
    return candidates[chosen]


def herding(embedding: Tensor, count: int) -> Tensor:
    """Choose `count` of embeddings (n, d) whose running mean stays nearest to the mean of all (iCaRL, algorithm 4); in order of choice."""
    mean, total = embedding.mean(0), torch.zeros_like(embedding[0])
    chosen: list[int] = []
    for number in range(1, min(count, len(embedding)) + 1):
        distance = (mean - (total + embedding) / number).norm(dim=1)
        distance[chosen] = float("inf")
        best = int(distance.argmin())
        chosen.append(best)
        total = total + embedding[best]
    return torch.tensor(chosen, dtype=torch.int64)
