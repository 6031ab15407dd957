"""Local structures: the edges between nodes that take actions, and what is summed over each node's neighbours.

B are the nodes of a batch whose actions are taken. N(i) are the nodes of B with an edge into i, i itself left out: its cosine with
itself, 1, would dominate. Everything here is a scatter over edges; nothing loops over nodes, and memory is O(E), not O(E d).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = {"cpu": 1 << 12, "cuda": 1 << 20}  # edges whose vectors are gathered at a time: on a CPU they stay in its cache


@dataclass(frozen=True)
class LocalEdges:
    """Edges neighbour -> centre with both ends in B; ends are places in B."""

    centre: Tensor  # (E,) int64, ascending
    neighbour: Tensor  # (E,) int64
    nodes: int  # |B|

    def sums(self, values: Tensor) -> Tensor:
        """Sum what lies on edges, (..., E), for each centre: (..., |B|)."""
        return values.new_zeros(*values.shape[:-1], self.nodes).index_add(-1, self.centre, values)

    def degrees(self, kept: Tensor) -> Tensor:
        """Count each node's neighbours over the edges that are `kept`, (E,) bool."""
        return self.sums(kept.float())

    def means(self, values: Tensor, kept: Tensor) -> Tensor:
        """Average the neighbours' values, (..., |B|), over the edges that are `kept`; 0 for a node without any."""
        return self.sums(values[..., self.neighbour] * kept) / self.degrees(kept).clamp(min=1)


def edges_within(edge_index: Tensor, members: Tensor, num_nodes: int) -> LocalEdges:
    """Keep the edges of a graph, (2, E') source to target, that join two different nodes of B = `members`, (|B|,) int64."""
    place = edge_index.new_full((num_nodes,), -1)
    place[members] = torch.arange(len(members), device=members.device)
    source, target = place[edge_index]
    kept = (source >= 0) & (target >= 0) & (source != target)
    centre, order = target[kept].sort(stable=True)
    return LocalEdges(centre, source[kept][order], len(members))


class _EdgeDots(torch.autograd.Function):
    """Scalar products of the two ends of each edge; forward and backward gather the vectors of a chunk of edges at a time."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, centre: Tensor, neighbour: Tensor) -> Tensor:
        ctx.save_for_backward(z, centre, neighbour)
        size = CHUNK[z.device.type]
        ends = zip(centre.split(size), neighbour.split(size))
        return torch.cat([torch.linalg.vecdot(z[c], z[n]) for c, n in ends])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Add up dz_i = sum over its edges of g_ij z_j, and the same for the other end."""
        z, centre, neighbour = ctx.saved_tensors
        dz = torch.zeros_like(z)
        size = CHUNK[z.device.type]
        for g, c, n in zip(gradients[0].split(size), centre.split(size), neighbour.split(size)):
            dz.index_add_(0, c, g[:, None] * z[n])
            dz.index_add_(0, n, g[:, None] * z[c])
        return dz, None, None


def cosines(z: Tensor, edges: LocalEdges) -> Tensor:
    """Return g(z_i, z_j), the cosine of the ends of each edge, (E,) float32, from encodings (|B|, d)."""
    return _EdgeDots.apply(F.normalize(z.float(), dim=-1), edges.centre, edges.neighbour)


def log_shares(scores: Tensor, kept: Tensor, edges: LocalEdges) -> Tensor:
    """Return log s_ij, the log-softmax of scores (..., E) over the kept edges of each centre (FreeKD, structure level); others get 0."""
    low = torch.finfo(scores.dtype).min
    masked = scores.masked_fill(~kept, low)
    index = edges.centre.expand_as(scores)
    highest = scores.new_full((*scores.shape[:-1], edges.nodes), low).scatter_reduce(-1, index, masked.detach(), "amax")
    shifted = (scores - highest[..., edges.centre]).masked_fill(~kept, 0.0)
    total = edges.sums(shifted.exp() * kept).clamp(min=torch.finfo(scores.dtype).tiny)
    return (shifted - total.log()[..., edges.centre]) * kept
