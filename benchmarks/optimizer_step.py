"""What does a step of Fira cost? Ours beside the packages that people use today, as ratios with the goals beside them.

    python benchmarks/optimizer_step.py [--markdown FILE] [--seconds 120]

One process, one CPU thread (or the GPU where there is one, at the 1B shapes as well), one matrix an optimizer. The contenders take turns,
A B C A B C ..., so that a disturbance of the machine meets all of them; medians are compared. On the CPU the clock counts the time of the
thread, on the GPU it stops when the device is idle. A step is one between refreshes, with the gradient already in place.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_modules.optim.fira import Fira, FiraConfig
from lightning_modules.optim.projection import find_basis, tall_view

Shape = tuple[int, int, int]  # rows, columns, rank
NEVER = 10**9
SHAPES: list[Shape] = [(1024, 1024, 128), (1024, 1024, 256), (1024, 2736, 256), (4096, 1024, 256)]  # LLaMA 350M and its like
SHAPES_OF_1B: list[Shape] = [(2048, 2048, 512), (5461, 2048, 512), (2048, 5461, 512)]
BASES = ("svd", "gram", "randomized", "subspace")
OURS, OFFICIAL, GALORE, OTHER, ADAMW = "ours", "Fira 1.0.2", "GaLore 1.0", "pytorch_optimizer 4.1", "AdamW foreach"


@dataclass(frozen=True)
class Goal:
    """A ratio that shall not be exceeded."""

    name: str
    limit: float


STEP_TO_FIRA, STEP_TO_GALORE = Goal("step / Fira 1.0.2", 0.5), Goal("step / GaLore 1.0", 0.8)
TEMPORARIES, CHEAPEST_BASIS = Goal("temporaries / m·n", 0.5), Goal("cheapest basis / svd", 0.15)


@dataclass
class Measured:
    """What one contender needs at one shape; milliseconds, and memory in float32 numbers as a multiple of m·n."""

    steps: list[float] = field(default_factory=list)
    temporaries: float = 0.0
    state: float = 0.0

    @property
    def step(self) -> float:
        return statistics.median(self.steps)


def contenders(rank: int) -> dict[str, Callable[[Parameter], Optimizer]]:
    """Ways to make an optimizer for one projected matrix; packages that are not installed are left out."""
    ours = {"rank": rank, "gap": NEVER, "targets": ["attn"]}
    made: dict[str, Callable[[Parameter], Optimizer]] = {
        ADAMW: lambda p: torch.optim.AdamW([p], foreach=True),
        "AdamW fused": lambda p: torch.optim.AdamW([p], fused=True),
    }
    with contextlib.suppress(ImportError), silenced_stderr():
        from galore_torch import GaLoreAdamW

        made[GALORE] = lambda p: GaLoreAdamW([_group(p, rank, scale=0.25, proj_type="std")], no_deprecation_warning=True)
    with contextlib.suppress(ImportError):
        from fira import FiraAdamW

        made[OFFICIAL] = lambda p: FiraAdamW([_group(p, rank, alpha=0.25, proj_type="std")], no_deprecation_warning=True)
    with contextlib.suppress(ImportError):
        from pytorch_optimizer import Fira as OtherFira

        made[OTHER] = lambda p: OtherFira([_group(p, rank, scale=0.25, projection_type="std")])
    made["ours, residual off"] = lambda p: Fira([("attn", p)], FiraConfig(residual=False, **ours))
    made["ours, paper"] = lambda p: Fira([("attn", p)], FiraConfig(variant="paper", **ours))
    made[OURS] = lambda p: Fira([("attn", p)], FiraConfig(**ours))
    return made


def _group(parameter: Parameter, rank: int, **more: Any) -> dict[str, Any]:
    return {"params": [parameter], "rank": rank, "update_proj_gap": NEVER, **more}


def gradient_like_training(rows: int, columns: int, device: torch.device) -> Tensor:
    """Draw a gradient (rows x columns) whose singular values fall as a power law, as those of language models do."""
    random = torch.Generator().manual_seed(0)
    short = min(rows, columns)
    left, right = (torch.linalg.qr(torch.randn(side, short, generator=random)).Q for side in (rows, columns))
    return (left * torch.arange(1, short + 1).float() ** -1.0 @ right.mT).contiguous().to(device)


def milliseconds(work: Callable[[], Any], device: torch.device) -> float:
    """Time of the thread on a CPU; wall time until the device is idle on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    clock = time.perf_counter if device.type == "cuda" else time.thread_time
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (clock() - start)


def peak_temporary_bytes(work: Callable[[], Any], device: torch.device) -> int:
    """Most bytes held at once above what was held before, as the allocator reports every allocation."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with silenced_stderr(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    held = peak = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        held += size
        peak = max(peak, held)
    return peak


@contextlib.contextmanager
def silenced_stderr() -> Iterator[None]:
    """Keep out what libraries write to the file descriptor: the profiler reports each start, bitsandbytes each missing kernel."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def state_bytes(optimizer: Optimizer, parameter: Parameter) -> int:
    """Bytes of memory that the state of a parameter keeps alive: whole storages, also behind views and inside projector objects."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(optimizer.state[parameter]) if t.numel()}
    return sum(storages.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
    elif hasattr(value, "ortho_matrix"):
        yield from _tensors(vars(value))


def measure_steps(rows: int, columns: int, rank: int, device: torch.device, seconds: float) -> dict[str, Measured]:
    """Let all contenders make steps in turn for about `seconds`."""
    gradient = gradient_like_training(rows, columns, device)
    parameters = {name: Parameter(torch.zeros_like(gradient)) for name in contenders(rank)}
    optimizers = {name: make(parameters[name]) for name, make in contenders(rank).items()}
    buffer, found = torch.empty_like(gradient), {name: Measured() for name in optimizers}

    def prepare(name: str) -> Callable[[], Any]:
        parameters[name].grad = buffer.copy_(gradient)  # ours uses the gradient up, so all get a fresh one, untimed
        return optimizers[name].step

    for name, measured in found.items():
        for _ in range(3):  # the first finds the basis and makes the state, the others warm caches
            prepare(name)()
        measured.temporaries = peak_temporary_bytes(prepare(name), device) / gradient.nbytes
        measured.state = state_bytes(optimizers[name], parameters[name]) / gradient.nbytes
        parameters[name].grad = None
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(found[OURS].steps) < 5:
        for name, measured in found.items():
            measured.steps.append(milliseconds(prepare(name), device))
            parameters[name].grad = None
    return found


def measure_bases(rows: int, columns: int, rank: int, device: torch.device, seconds: float) -> dict[str, tuple[float, float]]:
    """Milliseconds of each way to find a basis, and the energy that it captures as a share of the best possible."""
    gradient = gradient_like_training(rows, columns, device)
    previous = find_basis(gradient + 0.3 * gradient.flip(0), rank, "svd", None, 0)  # a basis of another step
    times: dict[str, list[float]] = {kind: [] for kind in BASES}
    energy = {kind: float((tall_view(gradient) @ find_basis(gradient, rank, kind, previous, 0)).square().sum()) for kind in BASES}
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times["svd"]) < 3:
        for kind in BASES:
            times[kind].append(milliseconds(lambda kind=kind: find_basis(gradient, rank, kind, previous, 0), device))
    return {kind: (statistics.median(times[kind]), energy[kind] / energy["svd"]) for kind in BASES}


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a Markdown table."""
    first = list(header)
    return "\n".join("| " + " | ".join(line) + " |" for line in (first, ["---"] * len(first), *rows))


def judged(goal: Goal, ratio: float | None) -> str:
    """Say a ratio and whether it keeps its goal."""
    if ratio is None:
        return "not installed"
    return f"{ratio:.2f} ({'kept' if ratio <= goal.limit else 'MISSED'})"


def goals_at(steps: dict[str, Measured], bases: dict[str, tuple[float, float]]) -> list[str]:
    """Compare one shape's figures with the goals."""
    def to(peer: str) -> float | None:
        return steps[OURS].step / steps[peer].step if peer in steps else None

    cheapest = min(ms for ms, _ in bases.values()) / bases["svd"][0]
    return [judged(STEP_TO_FIRA, to(OFFICIAL)), judged(STEP_TO_GALORE, to(GALORE)), judged(TEMPORARIES, steps[OURS].temporaries),
            judged(CHEAPEST_BASIS, cheapest), f"{to(ADAMW):.2f}"]


def report(steps: dict[Shape, dict[str, Measured]], bases: dict[Shape, dict[str, tuple[float, float]]]) -> str:
    """Write the tables of one run in Markdown: goals first, then what they come from."""
    label = {shape: f"{shape[0]}x{shape[1]}, r {shape[2]}" for shape in steps}
    names = list(next(iter(steps.values())))

    def section(title: str, shown: Callable[[Measured], float]) -> str:
        rows = ([label[shape], *(f"{shown(m):.2f}" for m in found.values())] for shape, found in steps.items())
        return f"**{title}**\n\n{table(['shape', *names], rows)}"

    goals = (STEP_TO_FIRA, STEP_TO_GALORE, TEMPORARIES, CHEAPEST_BASIS)
    header = ["ours at shape", *(f"{goal.name} (goal ≤ {goal.limit})" for goal in goals), f"step / {ADAMW}"]
    refreshes = table(["shape", *BASES], (
        [label[shape], *(f"{ms:.1f} ({ms / found['svd'][0]:.2f}, {energy:.4f})" for ms, energy in found.values())]
        for shape, found in bases.items()))
    return "\n\n".join([
        table(header, ([label[shape], *goals_at(steps[shape], bases[shape])] for shape in steps)),
        section("Step between refreshes, ms", lambda m: m.step),
        section("Peak temporaries of a step, multiples of m·n", lambda m: m.temporaries),
        section("State kept alive, multiples of m·n", lambda m: m.state),
        f"**Our refresh, ms (ratio to svd, share of the best energy)**\n\n{refreshes}",
    ])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", type=Path, help="file that gets the tables")
    parser.add_argument("--seconds", type=float, default=100.0, help="measuring time for all shapes together")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shapes = SHAPES + (SHAPES_OF_1B if device.type == "cuda" else [])
    share = options.seconds / len(shapes)
    steps = {shape: measure_steps(*shape, device, 0.6 * share) for shape in shapes}
    bases = {shape: measure_bases(*shape, device, 0.4 * share) for shape in shapes}
    where = torch.cuda.get_device_name() if device.type == "cuda" else "one CPU thread"
    missing = [name for name in (GALORE, OFFICIAL, OTHER) if name not in next(iter(steps.values()))]
    note = f" Not installed: {', '.join(missing)}; `make bench` installs them." if missing else ""
    text = f"Optimizer step, torch {torch.__version__}, {where}, medians.{note}\n\n{report(steps, bases)}\n"
    print(text)
    if options.markdown:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
