"""What DeepSpeed's ZeRO holds, by arithmetic: how it lays parameters out, and its masters, sums of gradients and buffers."""

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_modules.optim.sharding import Spread

BUCKET = 2 * 10**8  # elements; Lightning's reduce_bucket_size
LIVE = 10**9  # elements that stage 3 keeps gathered at most, DeepSpeed's stage3_max_live_parameters
PIECE = 5 * 10**8  # elements that DeepSpeed averages in one piece where nothing else is set
Shapes = Iterable[tuple[str, tuple[int, ...]]]


def stretches(shapes: Shapes, world_size: int) -> list[Spread]:
    """Put parameters end to end and cut the line into equal parts, as stages 1 and 2 do."""
    counts = [(name, shape, torch.Size(shape).numel()) for name, shape in shapes]
    part = -(-sum(count for _, _, count in counts) // world_size)
    found, first = [], 0
    for name, shape, count in counts:
        cuts = [min(max(rank * part - first, 0), count) for rank in range(world_size)] + [count]
        found.append(Spread(name, shape, tuple(pairwise(cuts))))
        first += count
    return found


def chunks(shapes: Shapes, world_size: int) -> list[Spread]:
    """Cut each parameter into equal chunks, as stage 3 does."""
    return [spread for one in shapes for spread in stretches([one], world_size)]


class Zero:
    """Bytes beside a network whose gradients go as soon as they are there, and an optimizer with `own` elements of float32 masters.

    Gradients are summed in float32, as they come or in a buffer that is there from the start. Stage 1 of 16-bit networks is another
    class of DeepSpeed's, the BF16_Optimizer: it keeps the 16-bit gradients, too, and averages copies of all in one piece.
    """

    def __init__(self, module: nn.Module, stage: int, own: int, world_size: int) -> None:
        trained = [p for p in module.parameters() if p.requires_grad]
        every = sum(p.numel() for p in module.parameters())
        self.stage, self.own, self.world_size, self.size = stage, own, world_size, trained[0].element_size()
        self.count = sum(p.numel() for p in trained)
        self.at_once = stage == 1 and self.size == 2
        self.elsewhere = every - -(-every // world_size) if stage == 3 else 0  # elements that other ranks hold
        self.gathered = min(LIVE, every) if stage == 3 else 0

    @property
    def from_start(self) -> int:
        """Bytes of gradients that are there all the time."""
        return (4 + self.size) * self.count if self.at_once else 4 * self.own if self.stage == 3 else 0

    def kept_of(self, gradient: Tensor) -> Tensor:
        """Return what stays of a gradient when it has been summed over the processes, beside what is there from the start."""
        if self.from_start:
            return gradient.new_empty(0)
        count = gradient.numel() if self.stage == 1 else -(-gradient.numel() // self.world_size)
        return gradient.new_empty(count, dtype=torch.float32)

    def averaging(self, module: nn.Module) -> list[Tensor]:
        """Return what there is for a moment after the backward pass: the gradients in one piece, in float32 and as they are sent."""
        like = next(module.parameters())
        count = min(PIECE, self.count) if self.at_once else 0
        return [like.new_empty(count, dtype=torch.float32), like.new_empty(count)]

    def extras(self, phase: str) -> dict[str, int]:
        """Return what is to be added to each category in a phase of the step, in which the masters' gradients are counted already."""
        step = phase == "optimizer step"
        gradients = self.from_start or (4 * self.count if step and self.stage == 1 else 0)
        buckets = 1 if self.stage == 3 else 0
        if self.stage < 3 and phase == "backward" and not self.at_once:
            buckets = 2  # one is filled while the other is sent
        return {"parameters": -self.size * self.elsewhere,
                "gradients": gradients - (4 * self.own if step and gradients else 0),
                "communication": self.size * (buckets * BUCKET + (0 if step else self.gathered))}
