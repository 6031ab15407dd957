"""A generated stream whose classes open task by task, and whose events often join two classes.

Nodes arrive one after another. Each links to nodes that came before: to its own class with probability STAYS, else to any, so that a new
class is surrounded by old ones, whose votes it loses. Features tell classes apart only in part, and so do neighbours: it takes both.
"""

import torch
from torch import Tensor

from datamodules.temporal import Protocol, TemporalStream, windowed_tasks

TASKS, EACH, NODES, LINKS, WIDTH = 4, 2, 400, 5, 16  # NODES arrive in each task, LINKS events each
STAYS, STRENGTH, RETURNS = 0.25, 0.5, 0.2  # RETURNS: share of arriving nodes whose class is an old one


def opening(seed: int, protocol: Protocol, nodes: int = NODES) -> TemporalStream:
    """Generate a stream of TASKS tasks, EACH of which opens EACH classes, with `nodes` arrivals a task; times count events."""
    generator = torch.Generator().manual_seed(seed)
    window = torch.arange(TASKS).repeat_interleave(nodes)
    label = _classes(window, generator)
    src = torch.arange(1, len(label)).repeat_interleave(LINKS)
    dst = _earlier(src, label, generator)
    src, dst = src[dst != src], dst[dst != src]
    t = torch.arange(len(src))
    classes = TASKS * EACH
    directions = torch.randn(classes, WIDTH, generator=generator)
    features = STRENGTH * directions[label] + torch.randn(len(label), WIDTH, generator=generator)
    tasks = [list(range(EACH * task, EACH * (task + 1))) for task in range(TASKS)]
    first = torch.arange(len(label))
    task = windowed_tasks(src.numpy(), dst.numpy(), window[src].numpy(), label.numpy(), first.numpy(), tasks, protocol)
    return TemporalStream(src, dst, t, features, label, tasks, torch.from_numpy(task), [f"class {number}" for number in range(classes)])


def _classes(window: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the class of each arrival: one that its window opens, or with probability RETURNS any that is open."""
    new = EACH * window + torch.randint(EACH, window.shape, generator=generator)
    known = (torch.rand(window.shape, generator=generator) * EACH * (window + 1)).long()
    return torch.where(torch.rand(window.shape, generator=generator) < RETURNS, known, new)


def _earlier(src: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a node that came before each of `src` (E,): of its class with probability STAYS, where there is one, else any."""
    by_class = label.argsort(stable=True)
    counts = torch.bincount(label)
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(label)
    rank[by_class] = torch.arange(len(label)) - first[label[by_class]]  # how many of its class came before a node
    own = by_class[first[label[src]] + (torch.rand(src.shape, generator=generator) * rank[src]).long()]
    anyone = (torch.rand(src.shape, generator=generator) * src).long()
    stays = (torch.rand(src.shape, generator=generator) < STAYS) & (rank[src] > 0)
    return torch.where(stays, own, anyone)
