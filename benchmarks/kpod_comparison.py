"""Does KPOD teach a small student more than plain fine-tuning on the same rationales? The table of RESULTS.md, made by one command.

    python benchmarks/kpod_comparison.py [--processes 2]

A student of 0.7M weights learns from nothing on 2000 procedural problems, eight epochs, and answers 500 others. All contenders see the
same samples in the same order, equally many steps, each with the learning rate that is best for it on another seed. Each
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

from results import keep, write_section
from scipy.stats import t as student

TUNING_SEED, SEEDS, RATES = 1, (11, 12, 13), (0.0005, 0.001)
PLAIN = "plain fine-tuning (SCoTD)"
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
COMMON = ("train", "method=kpod", "logger=csv", "trainer.accelerator=cpu", "trainer.threads=1", "data.held_out_problems=500",
          "trainer.val_every_n_steps=100000", "trainer.log_every_n_steps=50", "checkpoint.every_n_steps=100000")


def run(name: str, rate: float, seed: int, out: Path) -> dict[str, Any]:
    """Train once, or read what a run before has left; return its figures."""
    place = out / f"{name.split(':')[0].replace(' ', '_').replace(',', '')}-lr{rate:g}-s{seed}"
    record = out / f"{place.name}.json"
    if not record.is_file() and not _finished(place):
        words = (*COMMON, *CONTENDERS[name], f"optim.lr={rate}", f"run.seed={seed}", f"run.root={out}", f"run.name={place.name}",
                 f"data.cache={out / 'cache'}", "run.resume=auto")
        done = subprocess.run([sys.executable, "-m", "pipelines", *words], capture_output=True, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise SystemExit(f"{place.name}: {done.stderr.strip()}")
    if not record.is_file():
        keep(record, _figures(place))
        print(f"{place.name}: {json.loads(record.read_text())['accuracy']:.1%}", flush=True)
    return json.loads(record.read_text())


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
             "A LLaMA of 0.7M weights from nothing, 2000 problems of one to four steps, 2000 updates, 500 held-out questions; seeds "
             f"{', '.join(map(str, SEEDS))}, each with problems of its own; mean and 95 % interval. Learning rate: of {RATES}, the best on "
             f"seed {TUNING_SEED}.", "",
             "| contender | learning rate | accuracy | minus plain, paired | val loss (nats) | misses | tokens learned |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    for name, runs in found.items():
        accuracy = [100 * run["accuracy"] for run in runs]
        gains = [a - 100 * plain["accuracy"] for a, plain in zip(accuracy, found[PLAIN])]
        against = "" if name == PLAIN else f"{statistics.mean(gains):+.1f} ± {interval(gains):.1f}"
        loss, miss, learned = (statistics.mean(run[key] for run in runs) for key in ("loss", "miss", "learned_tokens"))
        lines.append(f"| {name} | {rates[name]:g} | {statistics.mean(accuracy):.1f} ± {interval(accuracy):.1f} % | {against} | "
                     f"{loss:.3f} | {miss:.1%} | {learned / 1e6:.2f}M |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("~/fivefold-runs/kpod-comparison").expanduser())
    parser.add_argument("--processes", type=int, default=2)
    out, processes = vars(parser.parse_args()).values()
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(processes) as pool:
        tuning = {(name, rate): pool.submit(run, name, rate, TUNING_SEED, out) for name in CONTENDERS for rate in RATES}
        rates = {name: max(RATES, key=lambda rate: tuning[name, rate].result()["accuracy"]) for name in CONTENDERS}
        jobs = {(name, seed): pool.submit(run, name, rates[name], seed, out) for name in CONTENDERS for seed in SEEDS}
        found = {name: [jobs[name, seed].result() for seed in SEEDS] for name in CONTENDERS}
    text = table(found, rates)
    print(text)
    write_section("kpod_comparison", text)


if __name__ == "__main__":
    main()
