"""Which optimizer trains a small LLaMA best on the same tokens? The table of RESULTS.md, made by one command.

    python benchmarks/fira_comparison.py --root FOLDER_OF_TEXT

Every contender gets the same model, tokens, batch, schedule, clipping and precision. Its learning rate is tuned on one seed over a
grid of factor-two steps that is widened while the best value lies on its edge; the final runs use three other seeds. Each run is
kept as one JSON file under --out, so the command can be interrupted and called again. The table goes into RESULTS.md.
"""

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from results import write_section
from scipy.stats import t as student
from torch import nn

TUNING_SEED, SEEDS = 1, (11, 12, 13)
LOW_RANK = ("optim.rank=64", "optim.gap=100", "optim.alpha=0.25")


@dataclass(frozen=True)
class Contender:
    """An optimizer, the words that choose it, and the learning rates to begin with."""

    name: str
    words: tuple[str, ...]
    rates: tuple[float, ...]
    made_here: str = ""  # name of a class of this file that takes the optimizer's place
    low_rank: bool = False  # weights W0 + BA instead of W


CONTENDERS = (
    Contender("AdamW", ("optim=adamw",), (0.002, 0.004, 0.008)),
    Contender("AdamW, beta2 0.95", ("optim=adamw", "optim.beta2=0.95"), (0.002, 0.004, 0.008)),
    Contender("AdamW, matrices at a quarter", ("optim=adamw",), (0.002, 0.004, 0.008), "QuarterAdamW"),
    Contender("GaLore", ("optim=galore", *LOW_RANK), (0.01, 0.02, 0.04)),
    Contender("Fira official", ("optim=fira", *LOW_RANK), (0.005, 0.01, 0.02)),
    Contender("Fira paper", ("optim=fira", "optim.variant=paper", *LOW_RANK), (0.01, 0.02, 0.04)),
    Contender("LoRA", ("optim=adamw",), (0.004, 0.008, 0.016), low_rank=True),
    Contender("Muon", ("optim=adamw", "optim.beta2=0.95"), (0.005, 0.01, 0.02), "MuonAndAdamW"),
    Contender("APOLLO", ("optim=adamw",), (0.01, 0.02, 0.04), "Apollo"),
)


class MuonAndAdamW(torch.optim.Optimizer):
    """torch.optim.Muon on the attention and MLP matrices, AdamW with the same rate on the rest.

    `match_rms_adamw` scales Muon's update to AdamW's size, so that one learning rate serves both (Liu et al. 2025).
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], config: Any) -> None:
        matrices, rest = _split(named_parameters)
        super().__init__([{"params": matrices}, {"params": rest}], {"lr": config.lr})
        self.parts = (torch.optim.Muon(matrices, lr=config.lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
                      torch.optim.AdamW(rest, lr=config.lr, betas=(config.beta1, config.beta2), weight_decay=0.0))

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure else None
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups[0]["lr"] = group["lr"]
            part.step()
        return loss


class QuarterAdamW(torch.optim.AdamW):
    """AdamW with a quarter of the learning rate on the attention and MLP matrices, as alpha gives GaLore and Fira for nothing."""

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], config: Any) -> None:
        matrices, rest = _split(named_parameters)
        groups = [{"params": matrices, "lr": 0.25 * config.lr}, {"params": rest}]
        super().__init__(groups, lr=config.lr, betas=(config.beta1, config.beta2), weight_decay=0.0)


class Apollo(torch.optim.Optimizer):
    """APOLLO from the package apollo-torch with its authors' settings at rank 64: random projection, channel-wise scaling."""

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], config: Any) -> None:
        from apollo_torch import APOLLOAdamW

        matrices, rest = _split(named_parameters)
        self.inner = APOLLOAdamW(
            [{"params": rest}, {"params": matrices, "rank": 64, "proj": "random", "scale_type": "channel", "scale": 1,
                                "update_proj_gap": 100, "proj_type": "std"}], lr=config.lr, weight_decay=0.0)
        super().__init__(self.inner.param_groups, {"lr": config.lr})
        self.inner.param_groups = self.param_groups  # the schedule changes these
        self.parts = (self.inner,)

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure else None
        self.inner.step()
        return loss


def _split(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    matrices, rest = [], []
    for name, parameter in named_parameters:
        (matrices if parameter.ndim == 2 and ("attn" in name or "mlp" in name) else rest).append(parameter)
    return matrices, rest


def one_run(contender: Contender, rate: float, seed: int, root: str, steps: int, folder: Path) -> dict[str, Any]:
    """Train and validate once in this process; return the figures."""
    from lightning.pytorch import Trainer

    from pipelines import build as launcher
    from pipelines.config import compose

    words = ["experiment=fira_gutenberg", "logger=csv", f"data.root={root}", f"run.root={folder}", f"run.seed={seed}",
             f"trainer.max_steps={steps}", f"trainer.val_every_n_steps={steps}", "checkpoint.save_last=false",
             f"checkpoint.every_n_steps={10 * steps}", "trainer.threads=1", *contender.words, f"optim.lr={rate}"]
    if contender.low_rank:
        words += ["module.lora.rank=64", "module.lora.alpha=64", "module.lora.dropout=0",
                  "module.lora.targets=[q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]"]
    folder.mkdir(parents=True, exist_ok=True)
    built = launcher.build(compose(words), folder)
    if contender.made_here:
        built.module.optimizer = _replaced(built.module.optimizer, globals()[contender.made_here])
    if contender.low_rank:
        _train_the_rest_too(built.module)
    trainer: Trainer = built.trainer
    try:
        trainer.fit(built.module, datamodule=built.data)
    except FloatingPointError as error:
        return {"loss": math.inf, "diverged": str(error)}
    metrics, state = built.record.metrics, state_bytes(trainer.optimizers[0])
    return {"loss": metrics["val/loss"], "byte_perplexity": metrics["val/byte_perplexity"], "state_bytes": state}


def state_bytes(optimizer: Any) -> int:
    """Count the bytes of an optimizer's state; a basis that a package keeps in an object of its own counts as well."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    parts = getattr(optimizer, "parts", (optimizer,))
    return sum(_bytes(value) for part in parts for state in part.state.values() for value in state.values())


def _bytes(value: Any) -> int:
    if torch.is_tensor(value):
        return value.numel() * value.element_size()
    return sum(map(_bytes, vars(value).values())) if hasattr(value, "__dict__") else 0


def _replaced(factory: Any, kind: type) -> Any:
    import dataclasses

    return dataclasses.replace(factory, kind=kind)


def _train_the_rest_too(module: Any) -> None:
    """LoRA from scratch needs trainable embeddings, head and norms; only the matrices stay W0 + BA."""
    configure = module.configure_model

    def configure_and_thaw() -> None:
        configure()
        for name, parameter in module.named_parameters():
            if any(word in name for word in ("embed_tokens", "lm_head", "norm")):
                parameter.requires_grad_(True)

    module.configure_model = configure_and_thaw


@dataclass
class Study:
    """Runs of one command line: where they are kept and how they are made."""

    root: str
    out: Path
    steps: int
    jobs: int
    done: dict[tuple[str, float, int], dict[str, Any]] = field(default_factory=dict)

    def run_all(self, wanted: list[tuple[Contender, float, int]]) -> None:
        with ThreadPoolExecutor(self.jobs) as pool:
            for job, result in zip(wanted, pool.map(self.run, wanted), strict=True):
                self.done[job[0].name, job[1], job[2]] = result

    def run(self, job: tuple[Contender, float, int]) -> dict[str, Any]:
        """Return the kept figures of a run, or make it in a process of its own."""
        contender, rate, seed = job
        folder = self.out / f"{contender.name.replace(' ', '-')}-{rate:g}-s{seed}-n{self.steps}"
        kept = folder / "result.json"
        if not kept.exists():
            words = [sys.executable, __file__, "--root", self.root, "--out", str(self.out), "--steps", str(self.steps),
                     "--one", contender.name, str(rate), str(seed), str(folder)]
            with (self.out / f"{folder.name}.log").open("w") as log:
                subprocess.run(words, check=True, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        result = json.loads(kept.read_text())
        print(f"{contender.name:14s} lr {rate:<8g} seed {seed:<3d} validation loss {result['loss']:.4f}", flush=True)
        return result

    def tune(self) -> dict[str, float]:
        """Find each contender's best learning rate on the tuning seed; widen the grid while the best lies on its edge."""
        grids = {c.name: list(c.rates) for c in CONTENDERS}
        while True:
            wanted = [(c, rate, TUNING_SEED) for c in CONTENDERS for rate in grids[c.name] if (c.name, rate, TUNING_SEED) not in self.done]
            if not wanted:
                return {c.name: self.best(c.name, grids[c.name]) for c in CONTENDERS}
            self.run_all(wanted)
            for contender in CONTENDERS:
                grid = sorted(grids[contender.name])
                best = self.best(contender.name, grid)
                if best == grid[0]:
                    grids[contender.name].append(best / 2)
                elif best == grid[-1]:
                    grids[contender.name].append(best * 2)

    def best(self, name: str, grid: list[float]) -> float:
        return min(grid, key=lambda rate: self.done[name, rate, TUNING_SEED]["loss"])


HEADINGS = ("optimizer", "learning rate (tried)", "validation perplexity", "95 % interval", "per byte", "loss minus the best AdamW's",
            "loss minus the winner's", "state MB")


def report(study: Study, rates: dict[str, float]) -> str:
    """Write the table: means over the seeds with 95 % intervals, of losses and of differences between runs with the same seed."""
    losses = {c.name: [study.done[c.name, rates[c.name], seed]["loss"] for seed in SEEDS] for c in CONTENDERS}
    order = sorted(losses, key=lambda name: statistics.mean(losses[name]))
    plain = next(name for name in order if name.startswith("AdamW"))
    lines = [HEADINGS, ("---",) * len(HEADINGS)]
    for name in order:
        final = [study.done[name, rates[name], seed] for seed in SEEDS]
        mean, (low, high) = statistics.mean(losses[name]), interval(losses[name])
        tried = sorted({rate for other, rate, _ in study.done if other == name})
        lines.append((
            name, f"{rates[name]:g} ({', '.join(f'{rate:g}' for rate in tried)})", f"{math.exp(mean):.2f}",
            f"{math.exp(low):.2f} to {math.exp(high):.2f}", f"{statistics.mean(run['byte_perplexity'] for run in final):.4f}",
            _paired(losses[name], losses[plain]), _paired(losses[name], losses[order[0]]), f"{final[0]['state_bytes'] / 1e6:.1f}",
        ))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _paired(values: list[float], others: list[float]) -> str:
    """Write the mean difference of runs with the same seed and its interval; nothing for a contender beside itself."""
    difference = [a - b for a, b in zip(values, others, strict=True)]
    return "" if values is others else "{:+.3f} [{:+.3f}, {:+.3f}]".format(statistics.mean(difference), *interval(difference))


def interval(values: list[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean."""
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) - half, statistics.mean(values) + half


def draw(study: Study, rates: dict[str, float], picture: Path) -> None:
    """Draw the smoothed training loss of the first final seed, and the validation points of all seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.6), dpi=130, layout="constrained")
    for contender in CONTENDERS:
        points: dict[int, list[float]] = {}
        for seed in SEEDS:
            folder = study.out / f"{contender.name.replace(' ', '-')}-{rates[contender.name]:g}-s{seed}-n{study.steps}"
            with (folder / "metrics.csv").open(newline="") as file:
                for row in csv.DictReader(file):
                    if row.get("train/loss"):
                        points.setdefault(int(row["step"]) + 1, []).append(float(row["train/loss"]))
        steps = sorted(points)
        means = [statistics.mean(points[step]) for step in steps]
        axes.plot(steps, means, linewidth=1.2, label=f"{contender.name}, lr {rates[contender.name]:g}")
    axes.set(xlabel="optimizer step", ylabel="training loss, mean of three seeds (nats a token)", ylim=(None, 6.5))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="folder with train.txt and valid.txt")
    parser.add_argument("--out", type=Path, default=Path("runs/fira_comparison"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at the same time, one CPU thread each")
    parser.add_argument("--picture", type=Path, default=Path(__file__).with_name("fira_comparison.png"))
    parser.add_argument("--one", nargs=4, metavar=("NAME", "RATE", "SEED", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.one:
        name, rate, seed, folder = args.one
        contender = next(c for c in CONTENDERS if c.name == name)
        result = one_run(contender, float(rate), int(seed), args.root, args.steps, Path(folder))
        (Path(folder) / "result.json").write_text(json.dumps(result))
        return
    study = Study(args.root, args.out, args.steps, args.jobs)
    rates = study.tune()
    study.run_all([(c, rates[c.name], s) for c in CONTENDERS for s in SEEDS])
    draw(study, rates, args.picture)
    table = report(study, rates)
    write_section("fira_comparison", table)
    print(table)


if __name__ == "__main__":
    main()
