"""Whole-matrix optimizers on weights that are spread over processes: gather a matrix to one owner, compute there, send the update back.

FSDP2 row shards, flat ZeRO partitions, ZeRO-3 chunks and plain copies are one thing when a matrix is seen as a line of m·n numbers:
each process holds one interval of it, perhaps an empty one. Every process knows all intervals, so all make the same plan, and a hash
proves it:

    gradient pieces --all-to-all--> owner: the unmodified single-process kernel --all-to-all--> update pieces

The owner of a matrix keeps its state, alone. For the same reduced gradients the weights equal those of a single process bit for bit.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_BYTES = 256 * 2**20  # whole matrices that a process holds at a time, unless one alone is larger


@dataclass(frozen=True)
class Spread:
    """Where the numbers of one parameter lie: for each rank the interval [start, stop) of the row-major flattening that it holds."""

    name: str
    shape: tuple[int, ...]
    intervals: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def size(self, rank: int) -> int:
        start, stop = self.intervals[rank]
        return stop - start

    def sources(self, owner: int) -> list[int]:
        """List the ranks whose intervals make up the matrix once: where all hold copies, the owner alone."""
        return [owner] if self.size(owner) == self.count else [rank for rank in range(len(self.intervals)) if self.size(rank)]


def rows_of(name: str, shape: tuple[int, ...], world_size: int) -> Spread:
    """Spread the rows as FSDP2 does (Shard(0)): equal chunks rounded up, so that the last ranks may have fewer or none."""
    row, chunk = math.prod(shape[1:]), -(-shape[0] // world_size)
    cuts = [min(rank * chunk, shape[0]) * row for rank in range(world_size + 1)]
    return Spread(name, shape, tuple(itertools.pairwise(cuts)))


def copies_of(name: str, shape: tuple[int, ...], world_size: int) -> Spread:
    """Spread nothing: each rank has the whole, as under DDP."""
    return Spread(name, shape, ((0, math.prod(shape)),) * world_size)


def balanced_owners(spreads: Iterable[Spread], costs: Mapping[str, float], world_size: int, stay: bool) -> dict[str, int]:
    """Give each matrix to the rank with the largest part of it (`stay`), or the costliest first to the least busy rank."""
    owners: dict[str, int] = {}
    load = [0.0] * world_size
    for spread in sorted(spreads, key=lambda s: (-costs[s.name], s.name)):
        busy = [-float(spread.size(rank)) for rank in range(world_size)] if stay else load
        owners[spread.name] = owner = busy.index(min(busy))
        load[owner] += costs[spread.name]
    return owners


def packed(items: Iterable[Any], size: Callable[[Any], int], limit: int) -> list[list[Any]]:
    """Part items, in order, into packs of at most `limit`; one that is larger gets its own."""
    packs: list[list[Any]] = []
    room = 0
    for item in items:
        if (needed := size(item)) > room:
            packs.append([])
            room = limit
        packs[-1].append(item)
        room -= needed
    return packs


def rounds_of(spreads: Sequence[Spread], owners: Mapping[str, int], limit: int) -> list[list[str]]:
    """Part matrices into buckets in which no owner has more than `limit` numbers, and none waits long for another.

    The owners meet at each bucket, so all of them must have work of the same size in it: the largest matrix of each, then the next of
    each, and so on; rounds of small matrices are packed together.
    """
    queues: dict[int, list[Spread]] = {}
    for spread in sorted(spreads, key=lambda s: (-s.count, s.name)):
        queues.setdefault(owners[spread.name], []).append(spread)
    rounds = [[spread for spread in one if spread is not None] for one in itertools.zip_longest(*(queues[rank] for rank in sorted(queues)))]
    packs = packed(rounds, lambda one: max(spread.count for spread in one), limit)
    return [[spread.name for one in pack for spread in one] for pack in packs]


class Exchange:
    """Carry matrices to their owners and updates back, in buckets of bounded size; all processes of `group` make the same calls.

    `like` is any tensor of the type and on the device that is exchanged. `stay` prefers owners that hold most of a matrix already.
    """

    def __init__(self, spreads: Iterable[Spread], costs: Mapping[str, float], like: Tensor, group: dist.ProcessGroup | None = None,
                 stay: bool = False, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.group, self.like, self.bucket_bytes = group, like.new_empty(0), bucket_bytes
        self.rank, self.world_size = dist.get_rank(group), dist.get_world_size(group)
        self.spreads = {spread.name: spread for spread in spreads}
        self.owners = balanced_owners([self.spreads[name] for name in costs], costs, self.world_size, stay)
        self.sources = {name: frozenset(self.spreads[name].sources(owner)) for name, owner in self.owners.items()}
        self.sent = 0  # numbers sent to other processes so far, for benchmarks
        self._refuse_different_plans()

    def owns(self, name: str) -> bool:
        """Tell whether this process keeps the state of a matrix."""
        return self.owners[name] == self.rank

    def _refuse_different_plans(self) -> None:
        """Raise RuntimeError on every process unless all have made the same plan: a silent difference would mix up matrices."""
        plan = repr((list(self.spreads.values()), sorted(self.owners.items()), self.bucket_bytes))
        plans: list[str] = [""] * self.world_size
        dist.all_gather_object(plans, hashlib.sha256(plan.encode()).hexdigest(), self.group)
        if different := [rank for rank, other in enumerate(plans) if other != plans[0]]:
            raise RuntimeError(f"ranks {different} see other parameters than rank 0: names, shapes or shards differ between processes")

    def agreed(self, flags: Tensor) -> Tensor:
        """Return flags (n,) that are raised if any process raised them."""
        dist.all_reduce(flags, dist.ReduceOp.MAX, self.group)
        return flags

    def run(self, pieces: Mapping[str, Tensor], kernel: Callable[[str, Tensor], None]) -> Iterator[tuple[str, Tensor]]:
        """Let `kernel(name, matrix)` turn each gradient (m, n) into its update on its owner; yield the piece of each update held here.

        `pieces` holds the gradient on this process's interval, flat, of the same matrices on all processes. A gradient that lies whole
        on its owner is overwritten.
        """
        limit = self.bucket_bytes // self.like.element_size()
        for names in rounds_of([self.spreads[name] for name in pieces], self.owners, limit):
            matrices = self._collect(names, pieces)
            for name, matrix in matrices.items():
                kernel(name, matrix)
            for some in packed(names, lambda name: max(stop - start for start, stop in self.spreads[name].intervals), limit):
                yield from self._deliver(some, matrices)

    def _collect(self, names: Sequence[str], pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Send the gradients of a bucket to their owners; return the matrices that this process owns."""
        ranks = range(self.world_size)
        mine = [name for name in names if self.owns(name)]
        sent = [name for name in names if self.rank in self.sources[name]]
        outgoing = [[pieces[name] for name in sent if self.owners[name] == to] for to in ranks]
        coming = [[name for name in mine if by in self.sources[name]] for by in ranks]
        whole: dict[str, Tensor] = {}
        for by, name, piece in self._talk(outgoing, coming, lambda name, by: self.spreads[name].size(by)):
            if piece.numel() == self.spreads[name].count:
                whole[name] = piece
                continue
            if name not in whole:
                whole[name] = self.like.new_empty(self.spreads[name].count)
            whole[name][slice(*self.spreads[name].intervals[by])] = piece
        return {name: whole[name].view(self.spreads[name].shape) for name in mine}

    def _deliver(self, names: Sequence[str], matrices: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Send the updates of some matrices to all that hold a part of them; yield the pieces for this process."""
        ranks = range(self.world_size)
        mine = [(matrices[name].view(-1), self.spreads[name].intervals) for name in names if self.owns(name)]
        outgoing = [[flat[slice(*intervals[to])] for flat, intervals in mine] for to in ranks]
        coming = [[name for name in names if self.owners[name] == by] for by in ranks]
        for _, name, piece in self._talk(outgoing, coming, lambda name, by: self.spreads[name].size(self.rank)):
            yield name, piece

    def _talk(self, outgoing: list[list[Tensor]], coming: list[list[str]],
              size: Callable[[str, int], int]) -> Iterator[tuple[int, str, Tensor]]:
        """Send each rank its flat tensors in one uneven all-to-all; yield rank, name and tensor for the names that come from each.

        What a process has for itself is not copied.
        """
        kept = [flat.to(self.like) for flat in outgoing[self.rank]]
        outgoing = [[] if to == self.rank else some for to, some in enumerate(outgoing)]
        counts = [sum(flat.numel() for flat in some) for some in outgoing]
        expected = [[] if by == self.rank else [size(name, by) for name in names] for by, names in enumerate(coming)]
        received = self.like.new_empty(sum(map(sum, expected)))
        send = torch.cat([self.like, *itertools.chain.from_iterable(outgoing)])
        dist.all_to_all_single(received, send, [sum(some) for some in expected], counts, self.group)
        self.sent += send.numel()
        arrived = iter(received.split(list(itertools.chain.from_iterable(expected))))
        for by, names in enumerate(coming):
            yield from zip(itertools.repeat(by), names, kept if by == self.rank else arrived)

    def to_first(self, mine: Tensor, counts: list[int]) -> list[Tensor]:
        """Send this process's flat tensor, `counts[rank]` long, to rank 0; return the tensors of all ranks there, none elsewhere."""
        everyone = [[str(by)] if self.rank == 0 else [] for by in range(self.world_size)]
        outgoing = [[mine.to(self.like)], *([] for _ in range(self.world_size - 1))]
        return [piece for _, _, piece in self._talk(outgoing, everyone, lambda _, by: counts[by])]
