"""Generated graphs in which it is known, for each node, which network has something to teach.

The classes fall into two halves. In `planted`, nodes of the first half are known by their neighbours (edges stay within the class, features
say little) and nodes of the second by their own features (strong, while edges go anywhere): a GCN is the expert on the first, a network
that keeps a node's own features apart, such as an MLP, on the second. In `planted-views` the features come in two blocks, each of which
tells the classes of one half apart and is noise on the other; network k sees block k.
"""

import torch
from torch import Tensor

from datamodules.graphs import Graph, tidy_edges

NODES, CLASSES, WIDTH = 1200, 6, 24


def planted(seed: int, views: bool = False, nodes: int = NODES) -> Graph:
    """Generate a graph of six classes, without a split; `expert` is 0 in the first half of the classes and 1 in the second."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (nodes,), generator=generator)
    expert = (y >= CLASSES // 2).long()
    make = _in_views if views else _by_neighbours_or_features
    x, edges = make(y, expert, generator)
    none = torch.zeros(nodes, dtype=torch.bool)
    seen = torch.arange(2 * WIDTH) // WIDTH == torch.arange(2)[:, None] if views else None  # (2, F)
    return Graph(x, tidy_edges(edges, nodes, symmetric=True), y, none, none, none, CLASSES, expert=expert, views=seen)


def _by_neighbours_or_features(y: Tensor, expert: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    strength = torch.where(expert == 1, 0.9, 0.22)
    within = torch.where(expert == 1, 0.0, 0.85)  # share of a node's edges that are made to stay in its class
    return _features(y, strength, generator), _edges(y, within, 4, generator)


def _in_views(y: Tensor, expert: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    blocks = [_features(y, torch.where(expert == view, 0.5, 0.0), generator) for view in (0, 1)]
    return torch.cat(blocks, 1), _edges(y, torch.full(y.shape, 0.5), 2, generator)


def _features(y: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Draw features (n, WIDTH): the direction of the class at the node's strength, and noise of deviation 1."""
    directions = torch.randn(CLASSES, WIDTH, generator=generator)
    return strength[:, None] * directions[y] + torch.randn(len(y), WIDTH, generator=generator)


def _edges(y: Tensor, within: Tensor, each: int, generator: torch.Generator) -> Tensor:
    """Draw `each` neighbours a node, of its own class with probability `within`, else any other node: (2, E), no self loops."""
    source = torch.arange(len(y)).repeat_interleave(each)
    anywhere = torch.randint(len(y), source.shape, generator=generator)
    by_class = y.argsort(stable=True)
    counts = torch.bincount(y, minlength=CLASSES)
    first = counts.cumsum(0) - counts
    draw = (torch.rand(source.shape, generator=generator) * counts[y[source]]).long()
    own = by_class[first[y[source]] + draw.clamp(max=counts[y[source]] - 1)]
    stays = torch.rand(source.shape, generator=generator) < within[source]
    edges = torch.stack([torch.where(stays, own, anywhere), source])
    return edges[:, edges[0] != edges[1]]
