"""Mini-batches of a large graph: clustered seeds with sampled neighbours, random walks, or whole graphs of many.

A batch depends on nothing but the seed of the data and the nodes that it starts from. The order of these is the TrainingOrder of all
methods, so a run is resumed exactly from one position, and processes share out the nodes without overlap.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.blocks import TrainingOrder
from datamodules.graphs import Graph, GraphBatch, batch_of
from datamodules.neighbours import CompiledSampler, InNeighbours, pyg_lib_is_there

ROUNDS = 2  # steps that a cluster grows from its anchor


class Repeated:
    """A loader of one batch that is handed out so many times an epoch; a list would be as many loaders to Lightning.

    A run may go on from the middle of an epoch: what is left of it are the same batches.
    """

    def __init__(self, batch: GraphBatch, times: int = 1) -> None:
        self.batch, self.times = batch, times

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[GraphBatch]:
        return iter([self.batch] * self.times)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: there is no position to restore."""


class ClusteredOrder(TrainingOrder):
    """An order in which neighbours come together, so that a batch of nodes has edges inside.

    In each epoch random anchors gather the pool's nodes around them: a node goes to one of the anchors that are at most ROUNDS steps
    away, and alone if there is none. Clusters come in random order. Every node comes once in an epoch.
    """

    def __init__(self, edges: Tensor, nodes: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(nodes, batch_size, seed, rank, world_size)
        self.edges = edges[:, edges[0] != edges[1]]  # (2, E) in places of the pool, both ways
        self.anchors = max(1, round(nodes / (1 + self.edges.shape[1] / max(nodes, 1))))

    def permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, self._clusters(np.random.default_rng([self.seed, epoch]))
        return self._permutation

    def _clusters(self, generator: np.random.Generator) -> np.ndarray:
        priority = torch.from_numpy(generator.permutation(self.blocks))
        none = self.blocks
        label = torch.where(priority < self.anchors, priority, none)  # (nodes,) the anchor's priority
        for _ in range(ROUNDS):
            found = label.scatter_reduce(0, self.edges[1], label[self.edges[0]], "amin")
            label = torch.where(label == none, found, label)
        label = torch.where(label == none, priority, label)
        place = generator.permutation(self.blocks + 1)[label.numpy()]
        return np.lexsort((priority.numpy(), place))


class Neighbourhoods(Dataset):
    """Batches of seeds with sampled neighbours; an index is a place in `pool` (p,), the nodes to start from."""

    def __init__(self, graph: Graph, pool: Tensor, fanouts: list[int], seed: int) -> None:
        self.graph, self.pool, self.fanouts, self.seed = graph, pool, fanouts, seed
        self.neighbours = InNeighbours.of(graph.edge_index, graph.num_nodes)
        self.compiled = CompiledSampler(graph.edge_index, graph.num_nodes, fanouts) if pyg_lib_is_there() else None

    def __getitems__(self, places: list[int]) -> GraphBatch:
        seeds = self.pool[places]
        generator = _generator(self.seed, seeds)
        nodes, edges = self.compiled.sample(seeds, generator) if self.compiled else self.neighbours.sample(seeds, self.fanouts, generator)
        return batch_of(self.graph, nodes, len(seeds), edges, self.neighbours.between(seeds))


class Walks(Dataset):
    """Sub-graphs that random walks visit, with all edges between their nodes (as GraphSAINT's); all nodes belong to B."""

    def __init__(self, graph: Graph, pool: Tensor, length: int, seed: int) -> None:
        self.graph, self.pool, self.length, self.seed = graph, pool, length, seed
        self.neighbours = InNeighbours.of(graph.edge_index, graph.num_nodes)

    def __getitems__(self, places: list[int]) -> GraphBatch:
        roots = self.pool[places]
        nodes = self.neighbours.walk(roots, self.length, _generator(self.seed, roots)).unique()
        edges = self.neighbours.between(nodes)
        return batch_of(self.graph, nodes, len(nodes), edges, edges)


class WholeGraphs(Dataset):
    """Batches of some of the graphs of a union; an index is a place in `graphs` (g,), their ids."""

    def __init__(self, graph: Graph, graphs: Tensor) -> None:
        assert graph.graph_id is not None
        self.graph, self.graphs, self.graph_id = graph, graphs, graph.graph_id
        self.neighbours = InNeighbours.of(graph.edge_index, graph.num_nodes)

    def __getitems__(self, places: list[int]) -> GraphBatch:
        nodes = torch.isin(self.graph_id, self.graphs[places]).nonzero().view(-1)
        edges = self.neighbours.between(nodes)
        return batch_of(self.graph, nodes, len(nodes), edges, edges)


def pool_edges(graph: Graph, pool: Tensor) -> Tensor:
    """Return the edges between nodes of `pool` (p,), both ways, in places of the pool: (2, E)."""
    edges = InNeighbours.of(graph.edge_index, graph.num_nodes).between(pool)
    return torch.cat([edges, edges.flip(0)], 1)


def _generator(seed: int, nodes: Tensor) -> torch.Generator:
    """Make the generator of a batch from what the batch starts with, so that it does not matter what came before."""
    digest: Any = hashlib.blake2b(nodes.numpy().tobytes(), digest_size=8, key=str(seed).encode())
    return torch.Generator().manual_seed(int.from_bytes(digest.digest(), "big") >> 1)
