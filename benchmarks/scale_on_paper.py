"""Predict the efficiency of Fira on LLaMA 1B and 7B on many GPUs, from the plans and constants of sharded_on_paper.py; write docs/scale.md.

A model, not a measurement: nothing overlaps, so that a run which overlaps well does better. One batch a GPU and step (weak scaling).
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import sharded_on_paper as paper
import torch
from results import write_section

from lightning_modules.optim.fira import FiraConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
GPUS = (8, 64, 512, 4096)
PEAK, MFU = 312e12, 0.4  # bf16 operations a second: A100 data sheet; the share reached without communication: an assumption
LATENCY = 20e-6  # seconds a hop of a ring: an assumption


@dataclass(frozen=True)
class Setting:
    """A size with the values of its experiment."""

    size: str
    layers: int
    rank: int
    gap: int
    tokens: int  # of a GPU and step


SETTINGS = (Setting("1b", 24, 512, 200, 32 * 256), Setting("7b", 32, 64, 500, 16 * 256))
PASSES = {"FSDP2": 3, "ZeRO-2": 2}  # over all weights: two gathers and a reduction; a reduction and a gather


@dataclass(frozen=True)
class Rates:
    """Bytes a second that a GPU reaches inside its node and between nodes."""

    node: float
    network: float
    gpus_per_node: int

    def ring(self, passes: int, weights: int, layers: int, world_size: int) -> tuple[float, float]:
        """Return the seconds that bytes and hops take: passes over bf16 weights, a ring a layer, as fast as its slowest link."""
        rate = self.node if world_size <= self.gpus_per_node else self.network
        return passes * 2 * weights * (world_size - 1) / world_size / rate, passes * layers * (world_size - 1) * LATENCY

    def all_to_all(self, sent: float, world_size: int) -> float:
        """Return the seconds of `sent` bytes that go to all others alike."""
        abroad = 0.0 if world_size <= self.gpus_per_node else (world_size - self.gpus_per_node) / (world_size - 1)
        return sent * max((1 - abroad) / self.node, abroad / self.network)


def efficiency(compute: float, costs: dict[str, float]) -> tuple[float, str]:
    """Return the share of a step that computes, and what costs most besides."""
    return compute / (compute + sum(costs.values())), max(costs, key=lambda name: costs[name])


def svd_work(shapes: Iterable[torch.Size]) -> float:
    """Count the operations of exact SVDs, up to a factor."""
    return float(sum(shape.numel() * min(shape) for shape in shapes))


def rows(setting: Setting, options: argparse.Namespace) -> Iterable[list[str]]:
    """Yield a row for each strategy and number of GPUs."""
    optimizer, weights = paper.matrices_of(setting.size, FiraConfig(rank=setting.rank, gap=setting.gap))
    large, _ = paper.matrices_of("7b", FiraConfig())
    own, whole = (svd_work(torch.Size(one.shapes[name]) for name in one.offsets) for one in (optimizer, large))
    rates = Rates(1e9 * options.efficiency * options.node_gbs, 1e9 * options.efficiency * options.network_gbs, options.gpus_per_node)
    compute = 6.0 * weights * setting.tokens / (PEAK * MFU)
    plans = {world_size: paper.plan_for(optimizer, world_size) for world_size in GPUS}
    for name, passes in PASSES.items():
        for world_size, plan in plans.items():
            volume, hops = rates.ring(passes, weights, setting.layers, world_size)
            kernel = plan.flops / (1e12 * options.efficiency * options.tflops)
            kernel += 4 * paper.PASSES * plan.passed / (1e9 * options.efficiency * options.memory_gbs)
            costs = {"weights and gradients, bytes": volume, "weights and gradients, hops": hops,
                     "Fira's exchange": rates.all_to_all(4 * plan.sent, world_size), "Fira's step": kernel,
                     "SVD": plan.svd * own / whole * options.svd_seconds / setting.gap}
            reached, wall = efficiency(compute, costs)
            times = (f"{1000 * cost:.0f}" for cost in (compute, *costs.values()))
            yield [setting.size.upper(), name, f"{world_size:,}", *times, f"{reached:.0%}", wall,
                   f"{setting.tokens * world_size / 131072:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    paper.add_constants(parser)
    options = parser.parse_args()
    header = ["LLaMA", "strategy", "GPUs", "compute ms", "bytes ms", "hops ms", "exchange ms", "step ms", "SVD ms", "efficiency",
              "largest cost", "batch / the paper's"]
    write_section("scale_on_paper", paper.table(header, (row for setting in SETTINGS for row in rows(setting, options))), PAGE)


if __name__ == "__main__":
    main()
