"""The most recent neighbours of nodes before an event, for many nodes at once.

Both ends of every event lie in one sorted list of node * E + event, where E is the length of the stream. One binary search finds the place
of an event in its node's history; what stands before it came earlier, whatever comes later.
"""

import torch
from torch import Tensor


class RecentNeighbours:
    """The visible events of a stream by node, in time order.

    `src`, `dst`, `t` are those of the whole stream, (E,) int64, t never falling; `events` (V,) int64, ascending, are the ones that may be
    seen, None: all. With `strict_time` an event of the same time as the one that asks is not seen either.
    """

    def __init__(self, src: Tensor, dst: Tensor, t: Tensor, events: Tensor | None = None, *, nodes: int, strict_time: bool = False) -> None:
        event = torch.arange(len(src)) if events is None else events
        own, other = torch.cat([src[event], dst[event]]), torch.cat([dst[event], src[event]])
        twice = torch.cat([event, event])
        once = torch.cat([torch.ones_like(event, dtype=torch.bool), src[event] != dst[event]])  # a loop is one entry
        own, other, twice = own[once], other[once], twice[once]
        self.stride = len(src) + 1
        self.key, order = torch.sort(own * self.stride + twice)
        self.neighbour, self.event = other[order], twice[order]
        counts = torch.bincount(own, minlength=nodes)
        self.start = counts.cumsum(0) - counts  # (N,) where each node's history begins
        self.earliest = torch.searchsorted(t, t) if strict_time else None  # (E,) the first event of the same time

    def last(self, nodes: Tensor, before: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the `n` most recent neighbours of nodes (Q,) strictly before events (Q,): ids, their events, and a mask, each (Q, n).

        The most recent stands last. `before` counts events of the whole stream; its length E asks for all. Where the mask is False there
        is none, and ids and events are 0.
        """
        if self.earliest is not None:
            within = before < len(self.earliest)
            before = torch.where(within, self.earliest[before.clamp(max=len(self.earliest) - 1)], before)
        stop = torch.searchsorted(self.key, nodes * self.stride + before)
        place = stop[:, None] + torch.arange(-n, 0)
        mask = place >= self.start[nodes][:, None]
        if not len(self.key):
            return torch.zeros_like(place), torch.zeros_like(place), mask
        place = place.clamp(min=0)
        return torch.where(mask, self.neighbour[place], 0), torch.where(mask, self.event[place], 0), mask
