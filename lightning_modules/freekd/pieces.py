"""Networks on a graph that is too large for all its messages at once: each layer sends them in pieces, with the same outcome.

A layer of PyG makes a vector for every edge before it adds up those of a node: of the 124 million edges of ogbn-products, 127 GB at a
width of 256. Here the nodes are cut into stretches whose edges are few enough, and a layer makes the messages of one stretch after the
other. What is held is then O(n d) and one piece, whatever the number of edges. A node's neighbours are added up in the order in which they
always are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing


@contextmanager
def in_pieces(network: nn.Module, most: int) -> Iterator[None]:
    """Let the layers of a network hold at most `most` edges' messages, or those of one node if it has more; 0: all edges at once.

    Meant for looking without a gradient, which would keep every piece.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, MessagePassing)] if most else []
    for layer in layers:
        layer.propagate = partial(_propagate, layer.propagate, most)
    try:
        yield
    finally:
        for layer in layers:
            del layer.propagate  # what stood in front of the method of the class


def _propagate(whole: Callable[..., Tensor], most: int, edge_index: Tensor, size: Any = None, **values: Any) -> Tensor:
    """Do what `propagate` of PyG does, (n, ...), node features being `x` and everything else one value an edge."""
    x = values.pop("x")
    sources, targets = x if isinstance(x, tuple) else (x, x)
    edge_index, values = _by_target(edge_index, values)
    ends = torch.bincount(edge_index[1], minlength=len(targets)).cumsum(0)
    found = []
    for nodes, edges in _stretches(ends, most):
        part = torch.stack([edge_index[0, edges], edge_index[1, edges] - nodes.start])
        own = {name: value if value is None else value[edges] for name, value in values.items()}
        found.append(whole(part, x=(sources, targets[nodes]), size=(len(sources), nodes.stop - nodes.start), **own))
    return torch.cat(found)


def _by_target(edge_index: Tensor, values: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Sort edges (2, E) and what belongs to them by target; those of one target keep their order."""
    if bool((edge_index[1].diff() >= 0).all()):
        return edge_index, values
    order = edge_index[1].argsort(stable=True)
    return edge_index[:, order], {name: value if value is None else value[order] for name, value in values.items()}


def _stretches(ends: Tensor, most: int) -> Iterator[tuple[slice, slice]]:
    """Cut nodes, whose edges end at `ends` (n,), into stretches of at most `most` edges; a node with more is alone."""
    node = edge = 0
    while node < len(ends):
        last = max(int(torch.searchsorted(ends, edge + most, right=True)), node + 1)
        end = int(ends[last - 1])
        yield slice(node, last), slice(edge, end)
        node, edge = last, end
