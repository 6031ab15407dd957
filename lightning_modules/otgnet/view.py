"""What a network sees of some events: the nodes at their ends, the neighbours before them, and what separates their classes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datamodules.task_order import EventBatch
from lightning_modules.otgnet.gate import GateSection, count_votes, differ, taken_class
from lightning_modules.otgnet.memory import Memory, keys_of


@dataclass
class Surroundings:
    """What does not change while events are looked at: who is visible, and what is known of each node."""

    neighbours: Any  # datamodules.recency.RecentNeighbours: events that may be seen
    t: Tensor  # (E,) int64 times of all events
    features: Tensor  # (N, F) float32
    known: Tensor  # (N,) int64 labels that may be used, -1 elsewhere
    num_classes: int


@dataclass
class View:
    """B events, whose ends are Q = 2B centres (all sources, then all destinations), over a table of the U nodes that take part."""

    node: Tensor  # (Q,) int64
    key: Tensor  # (Q,) int64, see memory.keys_of
    num_nodes: int  # N, of the stream
    table: Tensor  # (U,) int64 nodes, ascending
    rows: Tensor  # (U, d) memory
    features: Tensor  # (U, F)
    label: Tensor  # (U,) int64 class that the node is taken for, -1 unknown
    centre: Tensor  # (Q,) place in the table
    neighbour: Tensor  # (Q, n) place in the table
    mask: Tensor  # (Q, n) bool, False where there is no neighbour
    age: Tensor  # (Q, n) int64
    gated: Tensor  # (Q, n) bool, neighbours of another class
    crossed: Tensor  # (B,) bool, events between classes
    taken: Tensor  # (Q,) int64 class that each centre is taken for, -1 unknown
    votes: Tensor  # (Q, C) labelled neighbours of each class, the other end of the event included

    @property
    def gated_share(self) -> Tensor:
        """The share of neighbours that are gated."""
        return (self.gated & self.mask).sum() / self.mask.sum().clamp(min=1)


def look(batch: EventBatch, around: Surroundings, memory: Memory, n: int, asked: int, gate: GateSection) -> View:
    """Look at events with the n most recent neighbours of each end, and the votes of the `asked` most recent ones.

    Neighbours lie strictly before their event in the stream, so nothing of what comes later can be seen.
    """
    node, event, t = (torch.cat(pair) for pair in ((batch.src, batch.dst), (batch.event, batch.event), (batch.t, batch.t)))
    most = max(n, asked, 1)
    found, at, there = (part.to(node.device) for part in around.neighbours.last(node.cpu(), event.cpu(), most))
    there = there & (found != node[:, None])  # a node is no neighbour of itself: its own label would vote
    found = torch.where(there, found, node[:, None])
    voters = torch.where(there, around.known[found], -1)[:, most - asked:]
    votes = count_votes(voters, around.num_classes)
    other = torch.cat([batch.dst, batch.src])
    partner = torch.where(other != node, around.known[other], -1)[:, None]
    near, mask = found[:, most - n:], there[:, most - n:]
    age = torch.where(mask, t[:, None] - around.t[at[:, most - n:].clamp(min=0)], 0)
    table, place = torch.unique(torch.cat([node, near.flatten()]), return_inverse=True)
    centre, neighbour = place[:len(node)], place[len(node):].view_as(near)
    label = taken_class(around.known[table], memory.predicted[table], None, gate.unknown)
    taken = taken_class(around.known[node], memory.predicted[node], votes, gate.unknown)
    half = len(node) // 2
    gated = differ(taken[:, None], label[neighbour]) & mask
    crossed = differ(taken[:half], taken[half:])
    if gate.where in ("events", "none"):
        gated = torch.zeros_like(gated)
    if gate.where in ("neighbours", "none"):
        crossed = torch.zeros_like(crossed)
    return View(node, keys_of(batch.event), len(around.known), table, memory.rows[table], around.features[table], label, centre, neighbour,
                mask, age, gated, crossed, taken, votes + count_votes(partner, around.num_classes))
