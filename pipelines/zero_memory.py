"""What DeepSpeed's ZeRO holds, by arithmetic: how it lays parameters out, and its masters, sums of gradients and buffers."""

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import nn

from lightning_modules.optim.sharding import Spread

BUCKET = 2 * 10**8  # elements; Lightning's reduce_bucket_size
LIVE = 10**9  # elements that stage 3 keeps gathered at most, DeepSpeed's stage3_max_live_parameters
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
    """Bytes beside a network whose gradients vanish and an optimizer that holds `own` elements of float32 masters."""

    def __init__(self, module: nn.Module, stage: int, own: int, world_size: int) -> None:
        trained = [p for p in module.parameters() if p.requires_grad]
        every = sum(p.numel() for p in module.parameters())
        self.stage, self.own, self.size = stage, own, trained[0].element_size()
        self.count = sum(p.numel() for p in trained)
        self.elsewhere = every - -(-every // world_size) if stage == 3 else 0  # elements that other ranks hold
        self.gathered = min(LIVE, every) if stage == 3 else 0

    def extras(self, phase: str) -> dict[str, int]:
        """Return what is to be added to each category in a phase of the step; gradients are summed in float32."""
        summed = 4 * (self.count if self.stage == 1 else self.own)
        in_step = 4 * (self.count - self.own) if self.stage == 1 else 0  # the rest of them is what the masters have as gradients
        return {
            "parameters": -self.size * self.elsewhere,
            "gradients": in_step if phase == "optimizer step" else summed,
            "communication": self.size * (self.gathered + 2 * min(BUCKET, self.count)),  # two buckets, to fill one while one is sent
        }
