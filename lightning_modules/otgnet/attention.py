"""Attention of a node to its most recent neighbours."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2  # of the LeakyReLU below zero


class NeighbourAttention(nn.Module):
    """m_v = sum_j alpha_j k_j, alpha = softmax_j LeakyReLU(a [q_v; k_j]), k_j = W_k [u_j; Phi(dt_j)], q_v = W_q u_v.

    Without `masked`, empty slots take part in the softmax as neighbours whose embedding is that of nothing, as in the public code.
    """

    def __init__(self, width: int, time_dim: int, dropout: float, masked: bool = True) -> None:
        super().__init__()
        self.key = nn.Linear(width, width, bias=False)
        self.key_time = nn.Linear(time_dim, width, bias=False)
        self.query = nn.Linear(width, width, bias=False)
        self.score = nn.Parameter(torch.empty(2, width))
        nn.init.xavier_normal_(self.score)
        self.dropout, self.masked = nn.Dropout(dropout), masked

    def keys(self, neighbours: Tensor) -> Tensor:
        """Return the part of k_j that comes from embeddings (..., d)."""
        return self.key(neighbours)

    def forward(self, centre: Tensor, keys: Tensor, age: Tensor, mask: Tensor) -> Tensor:
        """Return m (Q, d) of centres u (Q, d), `keys` of their n neighbours (Q, n, d), ages Phi(dt) (Q, n, time) and mask (Q, n)."""
        k = keys + self.key_time(age)
        to_query, to_key = self.dropout(self.score[:, None].expand(-1, len(k), -1))  # (Q, d): the same parts of all keys are left out
        e = torch.einsum("qnd,qd->qn", k, to_key) + (self.query(centre) * to_query).sum(-1, keepdim=True)
        e = F.leaky_relu(e, SLOPE)
        if not self.masked:
            return torch.einsum("qn,qnd->qd", e.softmax(-1), k)
        alpha = e.masked_fill(~mask, float("-inf")).softmax(-1)
        alpha = torch.where(mask.any(-1, keepdim=True), alpha, 0.0)  # a node without neighbours gathers nothing
        return torch.einsum("qn,qnd->qd", torch.where(mask, alpha, 0.0), k)
