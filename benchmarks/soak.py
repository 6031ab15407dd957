"""What a run survives: killed at random steps, its newest checkpoint cut off, its disk full, its W&B service gone.

    python benchmarks/soak.py [--kills 20] [--methods fira kpod …] [--seed 1] [--steps 16] [--to benchmarks/RESULTS.md]

Each method trains once undisturbed and once disturbed: one fault a start, at a random step. After a fault the run has to go on, or to stop
with one line that says what happened, and the next start has to go on from a checkpoint. In the end both must have the same weights, bit
for bit, and the same steps in metrics.csv. Disks are filled on a small tmpfs, which needs root; without it that fault is left out.
"""

import argparse
import contextlib
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from results import RESULTS, write_section

from pipelines.runs import newest_checkpoint, read_record

REPOSITORY = Path(__file__).resolve().parent.parent
METHODS = ("fira", "kpod", "freekd", "otgnet", "av_odyssey")
MORE = {"otgnet": ["data.passes=4"]}  # words that make a debug run long enough
WAIT = 300  # seconds after which a run that neither goes on nor stops counts as hung
DISK = "64m"
FILLER = "filler"  # the file that fills the disk


@dataclass
class Start:
    """A start of a run, what befell it, and how it ended."""

    fault: str
    step: int
    status: int
    said: str

    @property
    def verdict(self) -> str:
        """Say how it ended: killed as meant, finished, stopped with one line, or badly."""
        errors = [line for line in self.said.splitlines() if line.startswith("error: ")]
        if self.status == -signal.SIGKILL and self.fault in ("killed", "checkpoint cut off"):
            return "killed"
        if self.status == 0:
            return "went on"
        if len(errors) == 1 and "Traceback" not in self.said:
            return "one line"
        return "HUNG" if self.status == -signal.SIGABRT else "BAD"


@dataclass
class Soak:
    """The disturbed runs of one method under `root`, whose undisturbed one is called whole."""

    method: str
    root: Path
    words: list[str]
    steps: int
    random: random.Random
    starts: list[Start] = field(default_factory=list)
    same: bool = False

    def launch(self, name: str) -> "subprocess.Popen[str]":
        words = ["train", f"experiment={self.method}_debug", f"run.root={self.root}", f"run.name={name}", "run.resume=auto", "logger=wandb",
                 "logger.mode=offline", "trainer.threads=1", f"trainer.max_steps={self.steps}", "trainer.log_every_n_steps=1",
                 "checkpoint.every_n_steps=2", "trainer.val_every_n_steps=8", *self.words]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"}
        return subprocess.Popen([sys.executable, "-P", "-m", "pipelines", *words], env=environment, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, start_new_session=True)

    def disturbed(self, name: str, fault: str, strike: Callable[["subprocess.Popen[str]", Path], None]) -> Start:
        """Start a run, let a fault befall it some steps later, and wait for its end."""
        process = self.launch(name)
        after, seen, said = self.random.randint(1, max(self.steps // 4, 1)), 0, []
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            seen += line.startswith("step ") and "/" in line.split("  ")[0]
            if seen == after:
                time.sleep(self.random.random() * 0.05)
                strike(process, self.root / name)
                break
        try:
            said.append(process.communicate(timeout=WAIT)[0])
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGABRT)
            said.append(process.communicate()[0])
        start = Start(fault, after, process.returncode, "".join(said))
        self.starts.append(start)
        return start

    def undisturbed(self, name: str) -> None:
        """Bring a run to its end."""
        process = self.launch(name)
        said = process.communicate(timeout=2 * WAIT)[0]
        assert process.returncode == 0, said[-2000:]

    def run(self, faults: list[str]) -> None:
        """Train undisturbed, then with one fault a start; a run that has finished all the same is followed by another."""
        self.undisturbed("whole")
        number = 1
        for fault in faults:
            if read_record(self.root / f"run{number}").get("status") == "finished":
                number += 1
            start = self.disturbed(f"run{number}", fault, FAULTS[fault])
            (self.root / FILLER).unlink(missing_ok=True)
            print(f"{self.method}: {fault} after step {start.step} of its start: {start.verdict}", flush=True)
            if start.verdict in ("BAD", "HUNG"):
                print(start.said[-3000:], flush=True)
        if read_record(self.root / f"run{number}").get("status") != "finished":
            self.undisturbed(f"run{number}")
        self.same = all(same(self.root / "whole", self.root / f"run{n}") for n in range(1, number + 1))


def kill(process: "subprocess.Popen[str]", folder: Path) -> None:
    os.killpg(process.pid, signal.SIGKILL)


def cut_off(process: "subprocess.Popen[str]", folder: Path) -> None:
    """Kill the run, and halve its newest checkpoint, as a machine that stops while writing may leave it."""
    kill(process, folder)
    process.wait()
    newest = newest_checkpoint(folder)
    if newest is not None:
        os.truncate(newest, newest.stat().st_size // 2)


def fill_disk(process: "subprocess.Popen[str]", folder: Path) -> None:
    """Write into the disk of the run folders until it is full."""
    try:
        with (folder.parent / FILLER).open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
    except OSError:
        return


def end_service(process: "subprocess.Popen[str]", folder: Path) -> None:
    """Kill the process that W&B's client talks to."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended by now
            if "wandb" in " ".join(child.cmdline()):
                child.kill()


FAULTS = {"killed": kill, "checkpoint cut off": cut_off, "disk full": fill_disk, "W&B service gone": end_service}


def same(one: Path, two: Path) -> bool:
    """Tell whether two runs have the same weights, bit for bit, and every step once in metrics.csv."""
    weights = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for folder in (one, two)]
    steps = []
    for folder in (one, two):
        with (folder / "metrics.csv").open(newline="") as file:
            steps.append([row["step"] for row in csv.DictReader(file)])
    equal = weights[0].keys() == weights[1].keys() and all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    return equal and steps[0] == steps[1]


def tmpfs(place: Path) -> bool:
    """Mount a small disk in memory; False where we may not."""
    return subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)], capture_output=True).returncode == 0


def table(soaks: list[Soak], steps: int, without: list[str]) -> str:
    """Write what happened: for each method and fault how often, how the run ended, and whether the end is the same."""
    lines = [f"What runs survive (`python benchmarks/soak.py`): runs of {steps} steps on a CPU, one fault a start at a random "
             "step. \"went on\": the run finished all the same; \"one line\": it stopped with one line that says why, and the next start "
             "went on.", "",
             "| method | fault | times | what happened | in the end the weights and steps of an undisturbed run |", "|---|---|---|---|---|"]
    for soak in soaks:
        for fault in dict.fromkeys(start.fault for start in soak.starts):
            verdicts = [start.verdict for start in soak.starts if start.fault == fault]
            happened = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
            lines.append(f"| {soak.method} | {fault} | {len(verdicts)} | {happened} | {'yes' if soak.same else 'NO'} |")
    return "\n".join([*lines, *(f"\nNot tried: {fault}, which needs root." for fault in without)])


def main(argv: list[str] | None = None) -> int:
    """Soak the methods one by one; exit status 1 if a run ended badly or otherwise than the undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20,
                        help="times that each method is killed; a fifth as often its checkpoint is cut off")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=FAULTS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--to", type=Path, default=RESULTS, help="the page whose section soak is replaced")
    chosen = parser.parse_args(argv)
    soaks: list[Soak] = []
    with tempfile.TemporaryDirectory() as place:
        disk = Path(place) / "disk"
        disk.mkdir()
        mounted = "disk full" in chosen.faults and tmpfs(disk)
        without = ["disk full"] if "disk full" in chosen.faults and not mounted else []
        try:
            for method in chosen.methods:
                root = disk / method
                root.mkdir()
                cache = f"data.cache={place}/cache"
                words = [*MORE.get(method, []), *([cache] if method in ("fira", "kpod", "av_odyssey") else [])]
                soak = Soak(method, root, words, chosen.steps, random.Random(f"{method} {chosen.seed}"))
                counts = {"killed": chosen.kills, "checkpoint cut off": max(chosen.kills // 5, 1), "disk full": 1, "W&B service gone": 1}
                soak.run([fault for fault in chosen.faults if fault not in without for _ in range(counts[fault])])
                soaks.append(soak)
                write_section("soak", table(soaks, chosen.steps, without), chosen.to)
        finally:
            if mounted:
                subprocess.run(["umount", str(disk)], check=True)
    return int(not all(soak.same and all(s.verdict not in ("BAD", "HUNG") for s in soak.starts) for soak in soaks))


if __name__ == "__main__":
    sys.exit(main())
