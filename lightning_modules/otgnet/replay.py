"""What is kept of finished tasks, and the draws from it that later tasks train on.

Kept are events by their places in the stream: a network that replays one sees the neighbours that stood before it then, and the memory as
it was at the end of its task. A closed triad also keeps a pair that went on to meet, an open one a pair that did not.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.otgnet.selection import greedy, herding, radius_of, to_unit
from lightning_modules.otgnet.triads import Triads, closed_triads, open_triads


@dataclass(frozen=True)
class ReplaySection:
    kind: Literal["triads", "random", "herding", "influence", "all", "none"] = "triads"
    """what is kept of a class: triads chosen by worth and cover, events drawn at random, events of the nodes nearest to the class's mean,
    events of the nodes that are worth most, all events (which forgets nothing: the bound of joint training), or nothing"""
    per_class: int = 10
    """triads of each sort kept of a class; of the other kinds, as many events as that makes"""
    sorts: Literal["both", "closed", "open"] = "both"
    """triads that are kept"""
    batch_size: int = 100
    """events drawn from what is kept, for each batch; 0: all of one task in each"""
    weight: float = 0.5
    """share of replayed events in the loss"""
    links: float = 0.5
    """weight of the link loss on pairs of kept triads, rho; 0: no link loss"""
    link_mean: Literal["sorts", "official"] = "sorts"
    """sorts: both sorts of pairs alike; official: the sum of both sorts' means, once more divided by the number of pairs that met"""
    history: bool = True
    """let a replayed event see the neighbours that stood before it; false: none, as the public code's graph of one task holds none"""
    importance: Literal["gradient", "lissa", "cg", "none"] = "cg"
    """how a sample's worth takes curvature into account; none: all are worth the same"""
    helpful: bool = True
    """keep what lowers the mean loss when it weighs more; false: the public code's opposite sign"""
    product: Literal["sum", "mean"] = "sum"
    """what a product of gradients adds up: all numbers, or, as the public code does, the means of each parameter"""
    damping: float = 0.01
    """added to the curvature's diagonal"""
    diversity: float = 20.0
    """weight of the cover, gamma; 0: importance alone"""
    radius: float = 0.05
    """share of pairs of candidates that count as near each other"""
    candidates: int = 1000
    """most important triads that are looked at, of each class and sort"""

    def __post_init__(self) -> None:
        for name in ("per_class", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, not {getattr(self, name)}")
        for name in ("batch_size", "links", "damping", "diversity"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be 0 or above, not {getattr(self, name)}")
        for name in ("weight", "radius"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: must lie in 0..1, not {getattr(self, name)}")

    def without_effect(self) -> dict[str, str]:
        """Name what other kinds leave idle."""
        if self.kind == "none":
            return {name: "kind=none replays nothing" for name in vars(self) if name != "kind"}
        idle: dict[str, str] = {}
        if self.kind != "triads":
            idle |= dict.fromkeys(("sorts", "links", "link_mean", "diversity", "radius", "candidates"), f"kind={self.kind} keeps no triads")
        if self.kind == "all":
            idle["per_class"] = "kind=all keeps everything"
        if self.kind in ("random", "herding", "all"):
            idle |= dict.fromkeys(("importance", "helpful", "product", "damping"), f"kind={self.kind} weighs nothing")
        return idle


@dataclass
class Kept:
    """What is kept of one class: its events (m,), ascending, and pairs of nodes that went on to meet (p, 2), or did not (q, 2)."""

    events: Tensor
    met: Tensor
    apart: Tensor


@dataclass
class Replay:
    """What is kept, task by task and class by class."""

    tasks: list[dict[int, Kept]] = field(default_factory=list)

    @property
    def events(self) -> int:
        """Events kept of all tasks."""
        return sum(len(kept.events) for classes in self.tasks for kept in classes.values())

    def draw(self, task: int, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` of a task's events, equally many of each class, ascending and each once; 0: all."""
        classes = [kept.events for kept in self.tasks[task].values() if len(kept.events)]
        if count:
            each = -(-count // max(len(classes), 1))
            classes = [events[torch.randperm(len(events), generator=generator)[:each]] for events in classes]
        return torch.cat([torch.empty(0, dtype=torch.int64), *classes]).unique()

    def pairs(self, task: int) -> tuple[Tensor, Tensor]:
        """Return the pairs of a task's classes that met (p, 2), and those that did not (q, 2)."""
        none = torch.empty(0, 2, dtype=torch.int64)
        classes = self.tasks[task].values()
        return torch.cat([none, *(kept.met for kept in classes)]), torch.cat([none, *(kept.apart for kept in classes)])

    def state_dict(self) -> dict[str, Any]:
        return {"tasks": [{kind: dict(vars(kept)) for kind, kept in classes.items()} for classes in self.tasks]}

    @staticmethod
    def of(state: dict[str, Any]) -> "Replay":
        """Make the replay that gave `state`."""
        return Replay([{kind: Kept(**kept) for kind, kept in classes.items()} for classes in state["tasks"]])


@dataclass(frozen=True)
class Finished:
    """A task that has ended: the stream's ends (E,), its training events (n,), labels that may be used (N,), what may be seen, and of each
    node its row in memory (N, d) and its worth (N,), NaN for nodes that no event of the task has met.
    """

    src: Tensor
    dst: Tensor
    events: Tensor
    known: Tensor
    neighbours: Any
    rows: Tensor
    worth: Tensor


def keep(task: Finished, classes: list[int], section: ReplaySection, generator: torch.Generator) -> dict[int, Kept]:
    """Choose what to keep of each class that a task has opened."""
    if section.kind == "none":
        return {}
    choose = _triads if section.kind == "triads" else _events
    return {kind: choose(task, kind, section, generator) for kind in classes}


def _triads(task: Finished, kind: int, section: ReplaySection, generator: torch.Generator) -> Kept:
    """Keep closed and open triads; of a class that has too few, events between its nodes take their place."""
    found: dict[str, Triads] = {}
    for sort, function in (("closed", closed_triads), ("open", open_triads)):
        if section.sorts in ("both", sort):
            all_of = function(task.src, task.dst, task.known, task.events, task.neighbours, kind)
            found[sort] = all_of.take(_best(task, all_of, section)) if len(all_of) else all_of
    short = len(found) * section.per_class - sum(len(triads) for triads in found.values())
    events = torch.cat([*(triads.events.flatten() for triads in found.values()), _drawn(task, kind, 2 * short, generator)])
    none = torch.empty(0, 2, dtype=torch.int64)
    met = found["closed"].nodes[:, [0, 1]] if "closed" in found else none
    apart = found["open"].nodes[:, [1, 2]] if "open" in found else none
    return Kept(events.unique(), met.unique(dim=0), apart.unique(dim=0))


def _best(task: Finished, triads: Triads, section: ReplaySection) -> Tensor:
    """Choose triads by the mean worth of their nodes, and by how many others stand near."""
    importance = to_unit(_scores(task, section))[triads.nodes].mean(1)
    embedding = task.rows[triads.nodes].mean(1)
    first = importance.argsort(descending=True, stable=True)[:section.candidates]
    radius = radius_of(embedding[first], section.radius)
    return greedy(importance, embedding, section.per_class, section.diversity, radius, section.candidates)


def _scores(task: Finished, section: ReplaySection) -> Tensor:
    """Return the worth of every node (N,) in the wanted sign; a node that nothing is known of is worth 0."""
    return torch.nan_to_num(task.worth if section.helpful else -task.worth, nan=0.0)


def _of_class(task: Finished, kind: int) -> Tensor:
    """Return the training events between two nodes of a class, or, where there are none, those with one such end."""
    both = task.events[(task.known[task.src[task.events]] == kind) & (task.known[task.dst[task.events]] == kind)]
    return both if len(both) else _with_end(task, kind)


def _with_end(task: Finished, kind: int) -> Tensor:
    """Return the training events with an end of a class."""
    return task.events[(task.known[task.src[task.events]] == kind) | (task.known[task.dst[task.events]] == kind)]


def _drawn(task: Finished, kind: int, count: int, generator: torch.Generator) -> Tensor:
    own = _of_class(task, kind)
    return own[torch.randperm(len(own), generator=generator)[:max(count, 0)]]


def _events(task: Finished, kind: int, section: ReplaySection, generator: torch.Generator) -> Kept:
    """Keep as many single events as triads would have had, each the first one of its node."""
    count, none = 4 * section.per_class, torch.empty(0, 2, dtype=torch.int64)
    if section.kind == "all":
        return Kept(_with_end(task, kind), none, none)
    if section.kind == "random":
        return Kept(_drawn(task, kind, count, generator).unique(), none, none)
    own = _of_class(task, kind)
    ends, events = torch.cat([task.src[own], task.dst[own]]), torch.cat([own, own])
    mine = task.known[ends] == kind
    first = torch.full((len(task.known),), len(task.src)).scatter_reduce_(0, ends[mine], events[mine], "amin")
    nodes = (first < len(task.src)).nonzero().view(-1)
    if section.kind == "herding":
        chosen = nodes[herding(task.rows[nodes], count)] if len(nodes) else nodes
    else:
        chosen = nodes[_scores(task, section)[nodes].argsort(descending=True, stable=True)[:count]]
    return Kept(first[chosen].unique(), none, none)


def link_loss(rows: Tensor, met: Tensor, apart: Tensor, mean: Literal["sorts", "official"] = "sorts") -> Tensor:
    """Return the mean cross-entropy of whether pairs of rows' places met (p, 2) or stayed apart (q, 2), by sigma(H_a · H_b).

    Both sorts weigh the same, however many there are of each. `official`: the public code's (mean of p + mean of q) / p.
    """
    losses = []
    for pairs, wanted in ((met, 1.0), (apart, 0.0)):
        if len(pairs):
            near = (rows[pairs[:, 0]] * rows[pairs[:, 1]]).sum(-1)
            losses.append(F.binary_cross_entropy_with_logits(near, torch.full_like(near, wanted)))
    if not losses:
        return rows.new_zeros(())
    return torch.stack(losses).mean() if mean == "sorts" else torch.stack(losses).sum() / max(len(met), 1)
