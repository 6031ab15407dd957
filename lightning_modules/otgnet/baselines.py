"""What needs no network: a node has the class that most of its labelled neighbours have."""

import torch
from torch import Tensor


def propagated(src: Tensor, dst: Tensor, visible: Tensor, known: Tensor, nodes: Tensor, before: Tensor, num_classes: int) -> Tensor:
    """Return the majority class of the labelled neighbours of nodes (S,) over all events before `before` (S,): (S,) int64.

    Ends src, dst (E,) of a stream of which the events `visible` (V,) may be seen; labels known (N,), -1 where they may not be used. A
    node without labelled neighbours gets the most frequent label; ties go to the lower class.
    """
    place = torch.full((len(known),), -1)
    place[nodes] = torch.arange(len(nodes))
    votes = torch.zeros(len(nodes), num_classes)
    for own, other in ((src[visible], dst[visible]), (dst[visible], src[visible])):
        row = place[own]
        counts = (row >= 0) & (known[other] >= 0) & (own != other)
        counts &= visible < before[row.clamp(min=0)]
        votes.index_put_((row[counts], known[other][counts]), torch.ones(int(counts.sum())), accumulate=True)
    usual = torch.bincount(known[known >= 0], minlength=num_classes).argmax()
    return torch.where(votes.sum(1) > 0, votes.argmax(1), usual)


def last_events(src: Tensor, dst: Tensor, events: Tensor, nodes: Tensor, num_nodes: int) -> Tensor:
    """Return the last of `events` (n,) that each of nodes (S,) takes part in, (S,) int64; -1 where there is none."""
    latest = torch.full((num_nodes,), -1)
    for ends in (src, dst):
        latest.scatter_reduce_(0, ends[events], events, "amax")
    return latest[nodes]
