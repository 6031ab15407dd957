"""Triads of one class: three nodes that have closed a triangle, or could have (OTGNet section 4.2).

A closed triad is an event a-b of a class with a node u of the class that both had met before; it keeps the events a-u and b-u, and says
that a and b went on to meet. An open one is an event a-b with a node u that a has met and b has not; it keeps a-u and a-b.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK = 4096  # events whose neighbours are compared at a time


@dataclass(frozen=True)
class Triads:
    """Triads (n,) of one class: the two events that each keeps, (n, 2), and its nodes a, b, u, (n, 3)."""

    events: Tensor
    nodes: Tensor

    def __len__(self) -> int:
        return len(self.events)

    def take(self, which: Tensor) -> "Triads":
        return Triads(self.events[which], self.nodes[which])


def closed_triads(src: Tensor, dst: Tensor, known: Tensor, events: Tensor, neighbours: Any, kind: int, last: int = 20) -> Triads:
    """Enumerate the closed triads of class `kind` among `events` (n,), places in a stream of ends src, dst (E,).

    `known` (N,) are the labels that may be used; `neighbours` a RecentNeighbours of what may be seen. A common neighbour counts among
    the `last` most recent events of both ends before theirs, once, by its latest event with each.
    """
    own = events[(known[src[events]] == kind) & (known[dst[events]] == kind) & (src[events] != dst[events])]
    found = [_closed(src, dst, known, part, neighbours, kind, last) for part in own.split(CHUNK)]
    return _joined(found)


def open_triads(src: Tensor, dst: Tensor, known: Tensor, events: Tensor, neighbours: Any, kind: int, last: int = 20) -> Triads:
    """Enumerate the open triads of class `kind`, with either end of an event as a: u is among the `last` that a has met before, not b.

    b has not met u before the event, as far as its `last` events tell.
    """
    own = events[(known[src[events]] == kind) & (known[dst[events]] == kind) & (src[events] != dst[events])]
    found = [_open(one, other, known, part, neighbours, kind, last) for one, other in ((src, dst), (dst, src)) for part in own.split(CHUNK)]
    return _joined(found)


def _joined(found: list[Triads]) -> Triads:
    """Put chunks together; nodes that meet again form no new triad from the same events."""
    rows = torch.cat([torch.empty(0, 5, dtype=torch.int64), *(torch.cat([part.events, part.nodes], 1) for part in found)]).unique(dim=0)
    return Triads(rows[:, :2], rows[:, 2:])


def _latest(ids: Tensor, mask: Tensor) -> Tensor:
    """Keep of each node in a row (n, k) its last place only: a mask."""
    later = (ids[:, :, None] == ids[:, None, :]) & mask[:, None, :]  # (n, k, k)
    return mask & ~torch.triu(later, 1).any(-1)


def _closed(src: Tensor, dst: Tensor, known: Tensor, events: Tensor, neighbours: Any, kind: int, last: int) -> Triads:
    a, b = src[events], dst[events]
    of_a, event_a, mask_a = neighbours.last(a, events, last)
    of_b, event_b, mask_b = neighbours.last(b, events, last)
    mask_a &= (known[of_a] == kind) & (of_a != a[:, None]) & (of_a != b[:, None])
    same = (of_a[:, :, None] == of_b[:, None, :]) & _latest(of_a, mask_a)[:, :, None] & _latest(of_b, mask_b)[:, None, :]
    row, i, j = same.nonzero(as_tuple=True)
    return Triads(torch.stack([event_a[row, i], event_b[row, j]], 1), torch.stack([a[row], b[row], of_a[row, i]], 1))


def _open(src: Tensor, dst: Tensor, known: Tensor, events: Tensor, neighbours: Any, kind: int, last: int) -> Triads:
    a, b = src[events], dst[events]
    of_a, event_a, mask_a = neighbours.last(a, events, last)
    of_b, _, mask_b = neighbours.last(b, events, last)
    met = ((of_a[:, :, None] == of_b[:, None, :]) & mask_b[:, None, :]).any(-1)
    mask_a &= (known[of_a] == kind) & (of_a != a[:, None]) & (of_a != b[:, None]) & ~met
    row, i = _latest(of_a, mask_a).nonzero(as_tuple=True)
    return Triads(torch.stack([event_a[row, i], events[row]], 1), torch.stack([a[row], b[row], of_a[row, i]], 1))
