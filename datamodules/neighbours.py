"""Sampling of neighbourhoods in plain torch, without a Python loop over nodes or edges.

Messages go from source to target, so a node's neighbours are the sources of its incoming edges. Draws come from a generator that is
given: the same generator gives the same sample.
"""

from dataclasses import dataclass

import torch
import torch_geometric.typing
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.sampler import NeighborSampler, NodeSamplerInput


def pyg_lib_is_there() -> bool:
    """Tell whether PyG's compiled sampler can be used."""
    return torch_geometric.typing.WITH_PYG_LIB


@dataclass
class InNeighbours:
    """The edges of a graph by target: the sources of node i are sources[pointers[i] : pointers[i + 1]]."""

    pointers: Tensor  # (n + 1,) int64
    sources: Tensor  # (E,) int64
    place: Tensor  # (n,) int64, -1 between samples: where each node of a sample lies in it

    @classmethod
    def of(cls, edge_index: Tensor, num_nodes: int) -> "InNeighbours":
        """Index edges (2, E) that are sorted by target."""
        counts = torch.bincount(edge_index[1], minlength=num_nodes)
        pointers = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return cls(pointers, edge_index[0].contiguous(), torch.full((num_nodes,), -1))

    def all_of(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Return every neighbour of `nodes` (m,) as (k,) sources, and for each the row of `nodes` that it belongs to."""
        counts = self.pointers[nodes + 1] - self.pointers[nodes]
        rows = torch.arange(len(nodes)).repeat_interleave(counts)
        within = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
        return self.sources[self.pointers[nodes][rows] + within], rows

    def some_of(self, nodes: Tensor, fanout: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw `fanout` neighbours of each node without replacement, all sets equally likely; all where there are no more.

        Floyd's method, for all nodes at once: of d neighbours, round t draws one of the first d - fanout + t + 1, or, if that one is
        in already, takes the last of these.
        """
        if fanout < 0:
            return self.all_of(nodes)
        counts = self.pointers[nodes + 1] - self.pointers[nodes]
        chosen = torch.arange(fanout).repeat(len(nodes), 1)  # (m, fanout) places among a node's neighbours
        many = (counts > fanout).nonzero().view(-1)
        drawn = chosen[many]
        for t in range(fanout):
            last = counts[many] - fanout + t
            draw = (torch.rand(len(many), generator=generator, dtype=torch.float64) * (last + 1)).long()
            drawn[:, t] = torch.where((drawn[:, :t] == draw[:, None]).any(1), last, draw)
        chosen[many] = drawn
        rows, columns = (chosen < counts[:, None]).nonzero(as_tuple=True)
        return self.sources[self.pointers[nodes][rows] + chosen[rows, columns]], rows

    def sample(self, seeds: Tensor, fanouts: list[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Gather the neighbourhood of `seeds` (b,), which differ, hop by hop; a fanout of -1 takes every neighbour.

        Return the nodes (m,), seeds first, and the edges (2, k) taken, in places of these nodes, sorted by target.
        """
        nodes, edges, frontier, first = [seeds], [], seeds, 0
        self.place[seeds] = torch.arange(len(seeds))
        for fanout in fanouts:
            sources, rows = self.some_of(frontier, fanout, generator)
            new = sources[self.place[sources] < 0].unique()
            count = first + len(frontier)
            self.place[new] = torch.arange(count, count + len(new))
            edges.append(torch.stack([self.place[sources], rows + first]))
            nodes.append(new)
            frontier, first = new, count
        found = torch.cat(nodes)
        self.place[found] = -1
        return found, torch.cat(edges, 1) if edges else torch.empty(2, 0, dtype=torch.long)

    def between(self, nodes: Tensor) -> Tensor:
        """Return all edges (2, k) with both ends in `nodes` (m,), which differ, in places of these nodes, sorted by target."""
        self.place[nodes] = torch.arange(len(nodes))
        sources, rows = self.all_of(nodes)
        places = self.place[sources]
        self.place[nodes] = -1
        inside = places >= 0
        return torch.stack([places[inside], rows[inside]])

    def walk(self, roots: Tensor, length: int, generator: torch.Generator) -> Tensor:
        """Walk `length` random steps against the edges from each root (r,): (r, length + 1) nodes; without a neighbour a walk stays."""
        steps = [roots]
        for _ in range(length):
            here = steps[-1]
            counts = self.pointers[here + 1] - self.pointers[here]
            draw = (torch.rand(len(here), generator=generator, dtype=torch.float64) * counts).long()
            stuck = counts == 0
            places = torch.where(stuck, 0, self.pointers[here] + draw)
            steps.append(torch.where(stuck, here, self.sources[places]) if len(self.sources) else here)
        return torch.stack(steps, 1)


class CompiledSampler:
    """The same samples from PyG's sampler in C++ (pyg-lib). It draws from torch's global generator, which is put back afterwards."""

    def __init__(self, edge_index: Tensor, num_nodes: int, fanouts: list[int]) -> None:
        graph = Data(edge_index=edge_index, num_nodes=num_nodes)
        self.sampler = NeighborSampler(graph, num_neighbors=fanouts, is_sorted=True)

    def sample(self, seeds: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return nodes (m,), seeds first, and edges (2, k) in places of these, sorted by target."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            found = self.sampler.sample_from_nodes(NodeSamplerInput(None, seeds))
        edges = torch.stack([found.row, found.col])
        return found.node, edges[:, edges[1].argsort(stable=True)]
