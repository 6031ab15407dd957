"""Does KPOD teach a small student more than plain fine-tuning on the same rationales? The table of RESULTS.md, made by one command.

    python benchmarks/kpod_comparison.py [--processes 2] [--tune]

A student of 0.7M weights learns from nothing on 2000 procedural problems and answers 500 others. All contenders see the same samples in
the same order until they have learned equally many tokens: plain fine-tuning in eight epochs, the curriculum in as many more updates as
the steps that it gives at first leave out. Each has the learning rate that is best for it on another seed, which --tune finds again. Each
run is kept as one JSON file under --out, so the command can be interrupted and called again. The table goes into RESULTS.md.
"""

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from results import keep, write_section
from scipy.stats import t as student

from datamodules.curriculum import Curriculum
from lightning_modules.kpod.schedule import Schedule
from pipelines.build import build
from pipelines.config import compose

TUNING_SEED, SEEDS, RATES = 1, (11, 12, 13), (0.0005, 0.001)
EPOCHS, STAGES = 8, 4  # of plain fine-tuning; of the curriculum
PLAIN = "plain fine-tuning (SCoTD)"
TUNED = (0.0005, 0.0005, 0.0005, 0.001, 0.0005, 0.001, 0.001, 0.001)  # found at equally many updates, before tokens were made equal
CONTENDERS = {
    PLAIN: ("module.token_weights=off", "module.progressive=false"),
    "KPOD": ("module.weight_floor=0",),
    "w.o. sig: factors of 1": ("module.token_weights=off",),
    "KPOD, factors from 0.3": ("module.weight_floor=0.3",),
    "factors from 0.3, whole rationales": ("module.weight_floor=0.3", "module.progressive=false"),
    "w.o. prog: whole rationales": ("module.progressive=false", "module.weight_floor=0"),
    "factors from 0.3, w.o. sig-dif: uniform difficulty": ("module.difficulty_weights=off", "module.weight_floor=0.3"),
    "factors from 0.3, w.o. div: no clusters": ("module.diversity=false", "module.weight_floor=0.3"),
}
COMMON = ("method=kpod", "logger=csv", "trainer.accelerator=cpu", "trainer.threads=1", "data.held_out_problems=500",
          "trainer.val_every_n_steps=100000", "trainer.log_every_n_steps=50", "checkpoint.every_n_steps=100000")


def run(name: str, rate: float, seed: int, out: Path) -> dict[str, Any]:
    """Train once, or read what a run before has left; return its figures."""
    place = out / f"{name.split(':')[0].replace(' ', '_').replace(',', '')}-lr{rate:g}-s{seed}"
    record = out / f"{place.name}.json"
    if not record.is_file() and not _finished(place):
        own = (*CONTENDERS[name], f"run.seed={seed}", f"data.cache={out / 'cache'}")
        launch(place, (*own, *length(place, own), f"optim.lr={rate}", "run.resume=auto"))
    if not record.is_file():
        keep(record, _figures(place))
        print(f"{place.name}: {json.loads(record.read_text())['accuracy']:.1%}", flush=True)
    return json.loads(record.read_text())


def launch(place: Path, words: tuple[str, ...]) -> str:
    """Train in the folder `place`, and return what the command printed."""
    command = [sys.executable, "-m", "pipelines", "train", *COMMON, *words, f"run.root={place.parent}", f"run.name={place.name}"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{place.name}: {done.stderr.strip()}")
    return done.stdout


def length(place: Path, words: tuple[str, ...]) -> tuple[str, ...]:
    """Say how long a contender trains, so that it learns as many tokens as plain fine-tuning does in its epochs."""
    if "module.progressive=false" in words:
        return (f"trainer.max_epochs={EPOCHS}",)
    printed = launch(place.with_name(f"{place.name}-schedule"), (*words, f"module.schedule.stages={STAGES}", "module.until=schedule"))
    folder = next(line.partition(": ")[2] for line in printed.splitlines() if line.startswith("schedule: /"))
    data: Any = build(compose([*COMMON, *words]), None).data
    data.setup()
    batches = len(data.samples) // data.batch_size
    steps = equal_steps(Curriculum(data.samples, table=Schedule.load(Path(folder)).table), batches)
    return (f"module.schedule.stages={STAGES}", f"trainer.max_steps={steps}", f"trainer.max_epochs={math.ceil(steps / batches)}")


def equal_steps(curriculum: Curriculum, batches: int) -> int:
    """Count the updates, `batches` an epoch, in which a curriculum learns as many tokens as whole rationales do in EPOCHS epochs."""
    everything = np.arange(len(curriculum.samples))
    left, epoch = EPOCHS * Curriculum(curriculum.samples).mass(0, everything), 0
    while left > (learned := curriculum.mass(epoch, everything)):
        left, epoch = left - learned, epoch + 1
    return batches * epoch + round(batches * left / learned)


def _finished(folder: Path) -> bool:
    """Tell whether a run came to its end, also one whose caller did not."""
    record = folder / "run.json"
    return record.is_file() and json.loads(record.read_text())["status"] == "finished"


def _figures(folder: Path) -> dict[str, float]:
    results = json.loads((folder / "run.json").read_text())["results"]
    with (folder / "metrics.csv").open(newline="") as file:
        learned = [float(row["train/learned_tokens"]) for row in csv.DictReader(file)]
    return {"accuracy": results["val/accuracy"], "loss": results["val/loss"], "miss": results["val/miss_rate"],
            "learned_tokens": statistics.mean(learned) * results["step"], "steps": results["step"]}


def interval(values: list[float]) -> float:
    """Return half the width of the 95 % interval of a mean (Student's t)."""
    return float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def table(found: dict[str, list[dict[str, Any]]], rates: dict[str, float]) -> str:
    """Lay out the means of all contenders, and of their differences from plain fine-tuning on the same seed."""
    lines = ["## KPOD on problems made on the spot", "",
             "A LLaMA of 0.7M weights from nothing, 2000 problems of one to four steps, 500 held-out questions, as many learned tokens as "
             f"plain fine-tuning has in {EPOCHS} epochs; seeds {', '.join(map(str, SEEDS))}, each with problems of its own; mean and 95 % "
             f"interval. Learning rate: of {RATES}, the best on seed {TUNING_SEED}.", "",
             "| contender | learning rate | accuracy | minus plain, paired | val loss (nats) | misses | tokens learned | updates |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for name, runs in found.items():
        accuracy = [100 * run["accuracy"] for run in runs]
        gains = [a - 100 * plain["accuracy"] for a, plain in zip(accuracy, found[PLAIN])]
        against = "" if name == PLAIN else f"{statistics.mean(gains):+.1f} ± {interval(gains):.1f}"
        loss, miss, learned, steps = (statistics.mean(run[key] for run in runs) for key in ("loss", "miss", "learned_tokens", "steps"))
        lines.append(f"| {name} | {rates[name]:g} | {statistics.mean(accuracy):.1f} ± {interval(accuracy):.1f} % | {against} | "
                     f"{loss:.3f} | {miss:.1%} | {learned / 1e6:.2f}M | {steps:.0f} |")
    return "\n".join(lines)


def tuned(pool: ThreadPoolExecutor, out: Path) -> dict[str, float]:
    """Return the learning rate with which each contender answers best on the tuning seed."""
    found = {(name, rate): pool.submit(run, name, rate, TUNING_SEED, out) for name in CONTENDERS for rate in RATES}
    return {name: max(RATES, key=lambda rate: found[name, rate].result()["accuracy"]) for name in CONTENDERS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("~/fivefold-runs/kpod-comparison").expanduser())
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tune", action="store_true", help="find the learning rates again, in 16 more runs")
    out, processes, tune = vars(parser.parse_args()).values()
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(processes) as pool:
        rates = tuned(pool, out) if tune else dict(zip(CONTENDERS, TUNED, strict=True))
        jobs = {(name, seed): pool.submit(run, name, rates[name], seed, out) for name in CONTENDERS for seed in SEEDS}
        found = {name: [jobs[name, seed].result() for seed in SEEDS] for name in CONTENDERS}
    text = table(found, rates)
    print(text)
    write_section("kpod_comparison", text)


if __name__ == "__main__":
    main()
