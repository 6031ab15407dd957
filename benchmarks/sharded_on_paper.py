"""A model on paper of Fira's step for a large LLaMA on many GPUs, from published constants and from the plan that the optimizer would make.

The plan (owners, buckets, bytes) is the real one, made without processes; only seconds are modelled. What overlaps nothing is added up.
"""

import argparse
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from lightning_modules.optim.fira import Fira, FiraConfig
from lightning_modules.optim.sharding import BUCKET_BYTES, Spread, balanced_owners, rounds_of, rows_of

PASSES = 6  # over a matrix in a step: read for R, read for its norms, read and written by the scaling and by the second product
CONSTANTS = {  # option: default and source
    "gpus-per-node": (8, "NVIDIA DGX A100"),
    "node-gbs": (300.0, "GB/s from one GPU to others of its node: NVLink 3, A100 SXM data sheet (600 both ways)"),
    "network-gbs": (25.0, "GB/s from one GPU to other nodes: one 200 Gb/s card a GPU, as in DGX A100"),
    "tflops": (19.5, "float32 products without TF32: A100 data sheet"),
    "memory-gbs": (2039.0, "GB/s of memory: A100 80 GB SXM data sheet"),
    "efficiency": (0.6, "share of the four rates above that is reached: an assumption"),
    "svd-seconds": (600.0, "all SVDs of a LLaMA 7B on one GPU: APOLLO (arXiv 2412.05270), about 10 minutes on an A100"),
}


@dataclass(frozen=True)
class Plan:
    """What the busiest process has to do in a step."""

    sent: int  # numbers to other processes
    flops: float
    passed: float  # numbers of whole matrices, as owner
    svd: float  # share of the SVD work of all matrices
    state: float  # numbers of the projected matrices' state


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]])


def add_constants(parser: argparse.ArgumentParser) -> None:
    """Add an option for each constant of the model on paper."""
    parser.add_argument("--paper-size", default="7b", help="LLaMA on paper")
    parser.add_argument("--paper-rank", type=int, default=128)
    parser.add_argument("--paper-gap", type=int, default=200)
    for name, (value, source) in CONSTANTS.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=source)


def matrices_of(size: str, config: FiraConfig) -> tuple[Fira, int]:
    """Make the optimizer of a LLaMA without memory; return it and the number of all weights."""
    from lightning_modules.language.llama import new_llama  # takes seconds, which every process of sharded_step.py would spend

    with torch.device("meta"):
        model = new_llama(size, 32000, 1024)
        return Fira(model.named_parameters(), config), sum(p.numel() for p in model.parameters())


def plan_for(optimizer: Fira, world_size: int) -> Plan:
    """Plan a step on the rows of `world_size` processes and add up, bucket by bucket, what the busiest one does."""
    costs = optimizer.costs()
    spreads = {name: rows_of(name, optimizer.shapes[name], world_size) for name in costs}
    owners = balanced_owners(spreads.values(), costs, world_size, stay=False)
    buckets = rounds_of(list(spreads.values()), owners, BUCKET_BYTES // 4)
    basis_rank = optimizer.config.rank

    def busiest(names: Iterable[str], work: dict[str, float]) -> float:
        loads = [0.0] * world_size
        for name in names:
            loads[owners[name]] += work[name]
        return max(loads)

    def waited(work: Callable[[Spread], float]) -> float:
        each = {name: work(spread) for name, spread in spreads.items()}
        return sum(busiest(names, each) for names in buckets)

    def svd(spread: Spread) -> float:
        return float(spread.count * min(spread.shape))

    return Plan(
        sent=max(sent_by(rank, spreads.values(), owners) for rank in range(world_size)),
        flops=waited(lambda spread: 4.0 * spread.count * min(basis_rank, *spread.shape)),
        passed=waited(lambda spread: float(spread.count)),
        svd=waited(svd) / sum(map(svd, spreads.values())),
        state=busiest(spreads, {name: float(sum(t.numel() for t in optimizer.entries[name].values())) for name in spreads}),
    )


def sent_by(rank: int, spreads: Iterable[Spread], owners: dict[str, int]) -> int:
    """Count the numbers that a process sends: its part of others' matrices, and the others' parts of its own."""
    return sum(s.count - s.size(rank) if owners[s.name] == rank else s.size(rank) for s in spreads)


def on_paper(options: argparse.Namespace, world_sizes: Iterable[int] = (1, 8, 16, 32, 64, 128, 256, 512)) -> str:
    """Write the model as Markdown: constants with their sources, then a row for each number of GPUs."""
    optimizer, weights = matrices_of(options.paper_size, FiraConfig(rank=options.paper_rank, gap=options.paper_gap))
    psi = sum(torch.Size(optimizer.shapes[name]).numel() for name in optimizer.offsets)
    state = sum(t.numel() for name in optimizer.offsets for t in optimizer.entries[name].values())
    plans = {world_size: plan_for(optimizer, world_size) for world_size in world_sizes}
    constants = "\n".join(f"- `--{name} {getattr(options, name.replace('-', '_'))}`: {source}" for name, (_, source) in CONSTANTS.items())
    return "\n\n".join([
        f"**A {options.paper_size.upper()} on paper** (a model, not a measurement): FSDP2 rows, rank {options.paper_rank}, gap "
        f"{options.paper_gap}, exact SVD, Psi = {psi / 1e9:.2f}e9 numbers in {len(optimizer.offsets)} projected matrices, float32 "
        "exchange. Owners, buckets and bytes are those of the real plan; seconds are bytes, operations and passes over the constants "
        "below, added without overlap, for the busiest process of each bucket. A matrix has one owner: above "
        f"W = {len(optimizer.offsets)} a step gets no faster, and before that shares grow uneven, so that the bounds of 2.2 shares sent "
        f"and 1.1 shares of state hold up to W = {_last_within(plans, psi, state)} here. `SVD` is the refresh, spread over the gap; "
        "`replicated` repeats all work on every GPU. The last column compares traffic with FSDP2's own in bf16 for one backward pass "
        "(two gathers, one reduction).",
        table(["GPUs", "GB sent", "sent / (Psi/W)", "state GB", "state / (whole/W)", "exchange ms", "kernel ms", "SVD ms", "step ms",
               "replicated ms", "replicated / ours", "of FSDP2's traffic"],
              (_row(options, plan, world_size, psi, weights, state) for world_size, plan in plans.items())),
        constants,
    ])


def _last_within(plans: dict[int, Plan], psi: int, state: int) -> int:
    """Return the largest number of processes up to which both bounds hold."""
    within = itertools.takewhile(lambda w: plans[w].sent <= 2.2 * psi / w and plans[w].state <= 1.1 * state / w, plans)
    return max(within)


def _row(options: argparse.Namespace, plan: Plan, world_size: int, psi: int, weights: int, state: int) -> list[str]:
    nodes = -(-world_size // options.gpus_per_node)
    abroad = 0.0 if nodes == 1 else (world_size - options.gpus_per_node) / (world_size - 1)  # share of the traffic that leaves the node
    rates = [1e9 * options.efficiency * rate for rate in (options.node_gbs, options.network_gbs, options.memory_gbs, 1000 * options.tflops)]
    exchange = 4 * plan.sent * max((1 - abroad) / rates[0], abroad / rates[1])
    kernel = plan.flops / rates[3] + 4 * PASSES * plan.passed / rates[2]
    svd = plan.svd * options.svd_seconds / options.paper_gap
    alone = 4.0 * psi * options.paper_rank / rates[3] + 4 * PASSES * psi / rates[2] + options.svd_seconds / options.paper_gap
    own = 3 * 2 * weights * (world_size - 1) / world_size
    return [str(world_size), f"{4e-9 * plan.sent:.2f}", f"{plan.sent / (psi / world_size):.2f}", f"{4e-9 * plan.state:.2f}",
            f"{plan.state / (state / world_size):.2f}", f"{1000 * exchange:.0f}", f"{1000 * kernel:.0f}", f"{1000 * svd:.0f}",
            f"{1000 * (exchange + kernel + svd):.0f}", f"{1000 * alone:.0f}", f"{alone / (exchange + kernel + svd):.1f}",
            f"{4 * plan.sent / own:.1%}" if own else "-"]
