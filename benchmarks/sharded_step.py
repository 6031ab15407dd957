"""What does an optimizer step cost where weights are spread over processes? Bytes sent, state kept and time, beside the replicated step.

    python benchmarks/sharded_step.py [--size 60m] [--layers 4] [--rounds 7]

1, 2 and 4 gloo processes of one thread each hold the projected matrices, embeddings and norms of a LLaMA, without its network: as FSDP2's
rows, as DDP's copies and as ZeRO's flat partitions. Replicated means that every process makes the whole step, as other packages do under
DDP. The contenders take turns and each waits for all processes; only ratios inside one run are compared. A model of a 7B on paper
follows (sharded_on_paper.py). The tables go into RESULTS.md.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from results import write_section
from sharded_on_paper import add_constants, on_paper, table
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing import spawn
from torch.nn import Parameter

from lightning_modules.optim.adamw import AdamW, AdamWConfig
from lightning_modules.optim.fira import Fira, FiraConfig
from lightning_modules.optim.layout import Held
from lightning_modules.optim.sharding import Spread, copies_of

Shapes = dict[str, tuple[int, ...]]
NEVER = 10**9
VOCABULARY = 4096


def shapes_of(size: str, layers: int) -> Shapes:
    """Name the parameters of a LLaMA, of its first `layers` layers only."""
    from lightning_modules.language.llama import new_llama  # takes seconds, which every process would spend

    with torch.device("meta"):
        model = new_llama(size, VOCABULARY, 1024)
    left_out = tuple(f"model.layers.{layer}." for layer in range(layers, model.config.num_hidden_layers))
    return {name: tuple(p.shape) for name, p in model.named_parameters() if not name.startswith(left_out)}


class Replicated:
    """Every process holds everything and makes the whole step."""

    def __init__(self, shapes: Shapes, make: Callable[[list[tuple[str, Parameter]]], AdamW]) -> None:
        self.shapes = shapes
        self.named = [(name, Parameter(torch.zeros(shape))) for name, shape in shapes.items()]
        self.optimizer = make(self.named)

    def give(self, gradients: dict[str, Tensor]) -> None:
        """Lay fresh gradients where the optimizer looks for them; the step uses them up."""
        for name, p in self.named:
            p.grad = gradients[name].clone()


class Copies(Replicated):
    """DDP: every process holds all weights; one owner a matrix."""

    def __init__(self, shapes: Shapes, make: Callable[[list[tuple[str, Parameter]]], AdamW]) -> None:
        super().__init__(shapes, make)
        self.optimizer.distribute([copies_of(name, shape, dist.get_world_size()) for name, shape in shapes.items()], None)


class Rows(Replicated):
    """FSDP2."""

    def __init__(self, shapes: Shapes, make: Callable[[list[tuple[str, Parameter]]], AdamW]) -> None:
        module = nn.ParameterDict({name.replace(".", "/"): Parameter(torch.zeros(shape)) for name, shape in shapes.items()})
        fully_shard(module, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        self.shapes = shapes
        self.named = [(name.replace("/", "."), p) for name, p in module.named_parameters()]
        self.optimizer = make(self.named)

    def give(self, gradients: dict[str, Tensor]) -> None:
        for name, p in self.named:
            start, stop = self.optimizer.exchange.spreads[name].intervals[dist.get_rank()]
            p.grad = torch.zeros_like(p)
            p.grad.to_local().copy_(gradients[name].view(-1)[start:stop].view_as(p.to_local()))


class Flats(Replicated):
    """ZeRO-1 and ZeRO-2: the parameters of a group in one line, cut into equal parts wherever that falls."""

    def __init__(self, shapes: Shapes, make: Callable[[list[tuple[str, Parameter]]], AdamW]) -> None:
        super().__init__(shapes, make)
        rank, world_size = dist.get_rank(), dist.get_world_size()
        spreads, held = [], {}
        for group, names in zip(self.optimizer.param_groups, self.optimizer.names):
            ends = list(itertools.accumulate(torch.Size(shapes[name]).numel() for name in names))
            part = -(-ends[-1] // world_size)
            flat = Parameter(torch.zeros(part))
            group["params"] = [flat]
            for name, begin, end in zip(names, [0, *ends], ends):
                cuts = [min(max(r * part, begin), end) for r in range(world_size + 1)]
                spreads.append(Spread(name, shapes[name], tuple((a - begin, b - begin) for a, b in itertools.pairwise(cuts))))
                start = min(max(cuts[rank] - rank * part, 0), part)
                held[name] = Held(flat, slice(start, start + cuts[rank + 1] - cuts[rank]))
        self.optimizer.distribute(spreads, None, held, stay=True)

    def give(self, gradients: dict[str, Tensor]) -> None:
        for name, held in self.optimizer.held.items():
            if held.tensor.grad is None:
                held.tensor.grad = torch.zeros_like(held.tensor)
            start, stop = self.optimizer.exchange.spreads[name].intervals[dist.get_rank()]
            held.gradient.copy_(gradients[name].view(-1)[start:stop])


FIRA, ADAMW, REPLICATED = "Fira", "AdamW", "replicated"
CONTENDERS = {
    (FIRA, REPLICATED): Replicated, (FIRA, "FSDP2 rows"): Rows, (FIRA, "ZeRO flats"): Flats, (FIRA, "DDP copies"): Copies,
    (ADAMW, REPLICATED): Replicated, (ADAMW, "FSDP2 rows"): Rows,
}


def seconds(work: Callable[[], Any]) -> float:
    """Wall time until all processes are done."""
    dist.barrier()
    start = time.perf_counter()
    work()
    dist.barrier()
    return time.perf_counter() - start


def everywhere(number: int) -> list[int]:
    """Return a number of each process, by rank."""
    numbers: list[Any] = [0] * dist.get_world_size()
    dist.all_gather_object(numbers, number)
    return numbers


def measure(shapes: Shapes, basis_rank: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Let all contenders make a step with a refresh, then ordinary ones in turn."""
    makers = {FIRA: lambda named: Fira(named, FiraConfig(rank=basis_rank, gap=NEVER)), ADAMW: lambda named: AdamW(named, AdamWConfig())}
    random = torch.Generator().manual_seed(0)
    gradients = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    run = {", ".join(name): layout(shapes, makers[name[0]]) for name, layout in CONTENDERS.items()}
    found: dict[str, dict[str, Any]] = {name: {"times": []} for name in run}
    for _ in range(rounds + 1):
        for name, contender in run.items():
            contender.give(gradients)
            exchange = contender.optimizer.exchange
            before = exchange.sent if exchange else 0
            found[name]["times"].append(seconds(contender.optimizer.step))
            found[name]["sent"] = max(everywhere(exchange.sent - before if exchange else 0))
    for name, contender in run.items():
        found[name]["refresh"], *ordinary = found[name]["times"]
        found[name]["step"] = statistics.median(ordinary)
        entries = contender.optimizer.entries
        size = {key: sum(t.nbytes for t in entry.values()) for key, entry in entries.items()}
        found[name]["state"] = max(everywhere(sum(size.values())))
        found[name]["projected"] = max(everywhere(sum(size[key] for key in getattr(contender.optimizer, "offsets", {}))))
    return found


def worker(rank: int, world_size: int, folder: str, shapes: Shapes, basis_rank: int, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting{world_size}", rank=rank, world_size=world_size)
    found = measure(shapes, basis_rank, rounds)
    if rank == 0:
        Path(folder, f"{world_size}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def judged(value: float, limit: float) -> str:
    return f"{value:.2f} ({'kept' if value <= limit else f'MISSED: {limit}'})"


def report(found: dict[int, dict[str, dict[str, Any]]], shapes: Shapes, options: argparse.Namespace) -> str:
    """Write the tables in Markdown: traffic and state beside their bounds, then time beside the replicated step."""
    numbers = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    psi = sum(number for name, number in numbers.items() if "attn" in name or "mlp" in name)
    amounts, times = [], []
    for world_size, contenders in found.items():
        for name, one in contenders.items():
            kind, layout = name.split(", ")
            peer = contenders[f"{kind}, {REPLICATED}"]
            if one is not peer:
                amounts.append([str(world_size), name, *_amounts(world_size, one, peer, psi, bounded=layout != "DDP copies")])
            refresh = (f"{one['refresh']:.2f}", f"{one['refresh'] / peer['refresh']:.2f}") if kind == FIRA else ("-", "-")
            step = (f"{1000 * one['step']:.0f}", f"{one['step'] / peer['step']:.2f}")
            times.append([str(world_size), name, *step, *refresh, f"{1 / world_size:.2f}"])
    cores = os.cpu_count() or 1
    shared = f" More processes than {cores} cores share them: those ratios tell of work saved, not of speed." if max(found) > cores else ""
    return "\n\n".join([
        f"LLaMA {options.size}, {options.layers} layers, vocabulary {VOCABULARY}: Psi = {psi / 1e6:.1f}M of "
        f"{sum(numbers.values()) / 1e6:.1f}M numbers in projected matrices, rank {options.rank}, exact SVD. torch {torch.__version__}, "
        "gloo, one thread a process.",
        "**Sent in one step, and state kept, by the process with most of it.** Psi/W float32 numbers are a process's share. Row shards "
        "need 2 (W-1)/W shares; under DDP every update goes to everybody, (W-1) shares, and the state of embeddings and norms stays "
        "replicated. ZeRO's cuts fall between the matrices of equal layers here, so that hardly any has to travel.",
        table(["W", "step", "MB sent", "shares sent (≤ 2.2)", "2 (W-1)/W", "MB of state", "state / (whole/W) (≤ 1.1)",
               "of projected matrices (≤ 1.1)"], amounts),
        f"**Time of a step until all are done**: median of {options.rounds} ordinary steps, and the first, with the refresh of all "
        f"matrices.{shared}",
        table(["W", "step", "ms", "/ replicated", "refresh s", "/ replicated", "1/W"], times),
    ])


def _amounts(world_size: int, one: dict[str, Any], peer: dict[str, Any], psi: int, bounded: bool) -> list[str]:
    """Write what one contender sends and keeps; AdamW exchanges nothing, so that its Psi means nothing."""
    shares, state = one["sent"] * world_size / psi, one["state"] * world_size / peer["state"]
    mega = [f"{4 * one['sent'] / 1e6:.1f}", f"{one['state'] / 1e6:.1f}"]
    if not peer["projected"]:
        return [mega[0], "-", "-", mega[1], judged(state, 1.1), "-"]
    return [mega[0], judged(shares, 2.2) if bounded else f"{shares:.2f}", f"{2 * (world_size - 1) / world_size:.2f}", mega[1],
            judged(state, 1.1) if bounded else f"{state:.2f}", judged(one["projected"] * world_size / peer["projected"], 1.1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="60m", help="LLaMA whose matrices are used")
    parser.add_argument("--layers", type=int, default=4, help="layers of it")
    parser.add_argument("--rank", type=int, default=128, help="rank of the basis")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each contender")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    add_constants(parser)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    shapes = shapes_of(options.size, options.layers)
    with tempfile.TemporaryDirectory() as folder:
        for world_size in options.processes:
            spawn(worker, (world_size, folder, shapes, options.rank, options.rounds), nprocs=world_size)
        found = {world_size: json.loads(Path(folder, f"{world_size}.json").read_text()) for world_size in options.processes}
    text = f"## A step on spread weights\n\n{report(found, shapes, options)}\n\n{on_paper(options)}"
    print(text)
    write_section("sharded_step", text)


if __name__ == "__main__":
    main()
