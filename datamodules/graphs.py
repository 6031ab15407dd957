"""An attributed graph with labels and a split, and the batches that training sees of it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch_geometric.utils import coalesce, subgraph, to_undirected

from datamodules.rows import DataError

SPARSE_BELOW = 0.2  # share of non-zero features under which they are kept sparse


@dataclass(frozen=True)
class Graph:
    """n nodes with features and labels; of several graphs their disjoint union, which is the same mathematics.

    Edges are directed, source above target, each once, sorted by target. The three parts of the split do not overlap.
    """

    x: Tensor  # (n, F) float32, dense or sparse CSR
    edge_index: Tensor  # (2, E) int64
    y: Tensor  # (n,) int64, or (n, C) float32 of zeros and ones for labels that do not exclude each other
    train: Tensor  # (n,) bool; so are valid and test
    valid: Tensor
    test: Tensor
    num_classes: int
    graph_id: Tensor | None = None  # (n,) int64, where there are several graphs: the model never sees a held-out one in training
    expert: Tensor | None = None  # (n,) int64: in a planted graph, which network or view knows the node; -1: none
    views: Tensor | None = None  # (V, F) bool: the features that each view sees

    def __post_init__(self) -> None:
        if self.edge_index.numel() and not 0 <= int(self.edge_index.min()) <= int(self.edge_index.max()) < self.num_nodes:
            raise DataError(f"data.name: the edges name node {int(self.edge_index.max())}, but there are {self.num_nodes} nodes; "
                            "the stored graph is damaged, fetch it anew")
        for first, second in (("train", "valid"), ("train", "test"), ("valid", "test")):
            assert not (getattr(self, first) & getattr(self, second)).any(), f"{first} and {second} overlap"

    @property
    def num_nodes(self) -> int:
        return self.x.shape[0]

    @property
    def num_features(self) -> int:
        return self.x.shape[1]

    @property
    def multi_label(self) -> bool:
        return self.y.ndim == 2

    def with_those(self, nodes: Tensor) -> "Graph":
        """Return the graphs of the union that some of `nodes` (n,) bool lie in; one graph is returned as it is."""
        if self.graph_id is None:
            return self
        return self.part(torch.isin(self.graph_id, self.graph_id[nodes]).nonzero().view(-1))

    def part(self, nodes: Tensor) -> "Graph":
        """Return the graph that `nodes` (m,), global ids, span: they keep their order, edges that leave them are dropped."""
        keep = torch.zeros(self.num_nodes, dtype=torch.bool)
        keep[nodes] = True
        place = torch.full((self.num_nodes,), -1)
        place[nodes] = torch.arange(len(nodes))
        inside, _ = subgraph(keep, self.edge_index)
        edges = coalesce(place[inside], num_nodes=len(nodes), sort_by_row=False)
        values = {name: getattr(self, name)[nodes] for name in ("y", "train", "valid", "test")}
        optional = {name: value[nodes] for name in ("graph_id", "expert") if (value := getattr(self, name)) is not None}
        return replace(self, x=take_rows(self.x, nodes), edge_index=edges, **values, **optional)


@dataclass
class GraphBatch:
    """What a step sees: the nodes B that it is about, which come first, and the neighbours that they need.

    A batch that is handed out again and again (the whole graph) keeps what others prepare for it in `prepared`.
    """

    x: Tensor  # (n, F) float32, dense or sparse CSR
    edge_index: Tensor  # (2, E) int64, source above target, sorted by target: the edges that messages take
    y: Tensor  # (n,) int64 or (n, C) float32
    train_mask: Tensor  # (n,) bool: nodes of B whose labels training may use
    valid_mask: Tensor
    test_mask: Tensor
    node_id: Tensor  # (n,) int64: ids in the whole graph
    seeds: int  # |B|
    seed_edges: Tensor  # (2, E_B) int64: all edges of the graph with both ends in B, whether messages take them or not
    views: Tensor | None = None  # (V, F) bool
    static: bool = False  # the same nodes in every step
    prepared: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_nodes(self) -> int:
        return self.x.shape[0]

    @property
    def units(self) -> int:
        """What a run's speed counts: the nodes B, not the neighbours that they bring along."""
        return self.seeds

    def features(self, network: int) -> Tensor:
        """Return the features (n, F) that a network sees: all of them, or, of a graph in V views, those of view network mod V."""
        return self.x if self.views is None else self.x * self.views[network % len(self.views)]

    def to(self, device: Any, **options: Any) -> "GraphBatch":
        """Move the tensors; a static batch is moved to a device once, so that what is prepared there stays."""
        device = torch.device(device)
        if self.x.device == device:
            return self
        key = f"on {device}"
        if key not in self.prepared:
            tensors: dict[str, Any] = {name: value.to(device, **options) for name, value in vars(self).items() if isinstance(value, Tensor)}
            moved = replace(self, **tensors, prepared={})
            if not self.static:
                return moved
            self.prepared[key] = moved
        return self.prepared[key]


def whole(graph: Graph) -> GraphBatch:
    """Make the batch that holds all of a graph."""
    return GraphBatch(graph.x, graph.edge_index, graph.y, graph.train, graph.valid, graph.test, torch.arange(graph.num_nodes),
                      graph.num_nodes, graph.edge_index, graph.views, static=True)


def batch_of(graph: Graph, nodes: Tensor, seeds: int, edges: Tensor, seed_edges: Tensor) -> GraphBatch:
    """Make the batch of `nodes` (m,), global ids, the first `seeds` of which are B; edges are given in places of `nodes`."""
    own = torch.arange(len(nodes)) < seeds
    return GraphBatch(take_rows(graph.x, nodes), edges, graph.y[nodes], graph.train[nodes] & own, graph.valid[nodes] & own,
                      graph.test[nodes] & own, nodes, seeds, seed_edges, graph.views)


def tidy_edges(edge_index: Tensor, num_nodes: int, symmetric: bool) -> Tensor:
    """Sort edges (2, E) by target, each once; `symmetric` adds the reverse of every edge."""
    if symmetric:
        edge_index = to_undirected(edge_index, num_nodes=num_nodes)
    return coalesce(edge_index, num_nodes=num_nodes, sort_by_row=False)


def tidy_features(x: Tensor) -> Tensor:
    """Keep features (n, F) as float32, sparse CSR if few are not zero."""
    x = x.float() if x.layout == torch.strided else x.to_dense().float()
    return x if x.count_nonzero() >= SPARSE_BELOW * x.numel() else compressed(x)


def row_normalized(x: Tensor) -> Tensor:
    """Divide each row of features, dense or sparse CSR, by its sum where that is above 1."""
    if x.layout == torch.strided:
        return x / x.sum(1, keepdim=True).clamp(min=1)
    pointers, values = x.crow_indices(), x.values()
    rows = torch.arange(x.shape[0]).repeat_interleave(pointers.diff())
    sums = values.new_zeros(x.shape[0]).index_add_(0, rows, values).clamp(min=1)
    return csr(pointers, x.col_indices(), values / sums[rows], x.shape)


@contextmanager
def sparse_without_a_word() -> Iterator[None]:
    """Keep torch from warning, once in a process, that its sparse CSR tensors are young."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Sparse CSR tensor support is in beta")
        yield


def compressed(x: Tensor) -> Tensor:
    """Turn a dense matrix into a sparse CSR tensor."""
    with sparse_without_a_word():
        return x.to_sparse_csr()


def csr(pointers: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Make a sparse CSR tensor of its parts."""
    with sparse_without_a_word():
        return torch.sparse_csr_tensor(pointers, columns, values, shape, check_invariants=False)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Take rows (m,) of a matrix, dense or sparse CSR, in the order given."""
    if x.layout == torch.strided:
        return x[rows]
    pointers = x.crow_indices()
    starts, counts = pointers[rows], pointers[rows + 1] - pointers[rows]
    ends = counts.cumsum(0)
    places = torch.arange(int(ends[-1]) if len(ends) else 0) + (starts - ends + counts).repeat_interleave(counts)
    new = torch.cat([ends.new_zeros(1), ends])
    return csr(new, x.col_indices()[places], x.values()[places], (len(rows), x.shape[1]))
