"""Does the small model hear, and what does it take to teach it? The table of RESULTS.md, made by one command.

    python benchmarks/deaftest.py [--seeds 3] [--processes 2] [--teachings half ... | --cost]

Each teaching trains the ear and the language model on each seed and answers 100 test questions a task of every profile; nothing is chosen
by these questions. The first teaching is examined under the controls as well: without sound, with the sounds of other questions, with the
first sound twice, and with the sounds exchanged, where whoever hears falls to 0. A cell has the percentage of all seeds with Wilson's 95
% interval, and that of the worst seed. Last, the stages of the first teaching are timed, seed after seed. Each part is kept as a JSON file
under --out, so the command can be interrupted and called again.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

from results import keep, write_section
from scipy.stats import binomtest

TEACHINGS = {  # words to train with, and the name in the table
    "half": ((), "half of them hard, content and letter"),
    "letter": (("module.small.reply=letter",), "half of them hard, letter alone"),
    "paper": (("data.profile=paper",), "the paper's ranges alone"),
    "varied": (("data.profile=varied", "trainer.max_epochs=8"), "of all kinds, eight passes"),
}
TASKS = ("count", "loudness", "pitch", "duration")
PROFILES = ("paper", "hard", "timbre", "noise", "confound", "paper_clipped")
CONTROLS = {"silent": "silent", "shuffled": "other sounds", "single_clip": "second sound is the first", "swapped": "exchanged"}
OF_PAIRS = ("single_clip", "swapped")  # which leave a count's one sound as it is
QUESTIONS = 100  # of each task and profile
COMMON = ("logger=csv", "trainer.accelerator=cpu", "trainer.threads=1", "data.split=test", f"data.questions={QUESTIONS}")


def fivefold(*words: str) -> str:
    """Run one command, and return what it printed."""
    done = subprocess.run([sys.executable, "-m", "pipelines", *words], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"fivefold {' '.join(words)}\n{done.stderr.strip()}")
    return done.stdout


def taught(name: str, seed: int, out: Path) -> Path:
    """Train once, or find what a run before has left; return the run folder."""
    folder = out / f"{name}-s{seed}"
    record = folder / "run.json"
    if not record.is_file() or json.loads(record.read_text())["status"] != "finished":
        fivefold("train", "method=av_odyssey", *TEACHINGS[name][0], *COMMON, f"run.seed={seed}", f"data.cache={out / 'cache'}",
                 f"run.root={out}", f"run.name={folder.name}", "run.resume=auto")
    return folder


def examined(folder: Path, profiles: tuple[str, ...], control: str) -> dict[str, float]:
    """Return the share of right answers by "PROFILE/TASK"."""
    record = folder.with_name(f"{folder.name}-{control}.json")
    if not record.is_file():
        printed = fivefold("evaluate", f"run={folder}", f"data.profiles=[{','.join(profiles)}]", f"data.control={control}", *COMMON)
        figures = (line.split() for line in printed.splitlines() if line.startswith("val/"))
        keep(record, {key.removeprefix("val/"): float(value) for key, value in figures if key.count("/") == 2})
    return json.loads(record.read_text())


def cost(seed: int, out: Path) -> dict[str, tuple[float, float]]:
    """Return seconds of the CPU and of the wall by command, of the first teaching from an empty cache; all but `ear` find the ear there."""
    record, place = out / f"cost-s{seed}.json", out / f"cost-s{seed}"
    if record.is_file():
        return json.loads(record.read_text())
    shutil.rmtree(place, ignore_errors=True)
    train = ("train", "method=av_odyssey", *COMMON, f"run.seed={seed}", f"data.cache={place / 'cache'}", f"run.root={place}")
    short = ("trainer.max_steps=1", "trainer.limit_val_batches=0", "checkpoint.best=null")
    found = {"ear": timed(*train, *short, "run.name=ear"), "one step": timed(*train, *short, "run.name=step"),
             "training": timed(*train, "run.name=run"), "examination": timed("evaluate", f"run={place / 'run'}", *COMMON)}
    keep(record, found)
    return found


def timed(*words: str) -> tuple[float, float]:
    """Run one command; return its seconds of the CPU, those of its own processes included, and of the wall."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    fivefold(*words)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


STAGES = {  # of what commands' seconds a stage is the sum, and less what
    "start": (("one step",), ()),
    "ear, and what it hears in the questions": (("ear",), ("one step",)),
    "language, with four examinations": (("training",), ("one step",)),
    "examination by 800 questions, start included": (("examination",), ()),
    "training from an empty cache, all of it": (("ear", "training"), ("one step",)),
}


def costs(seeds: list[dict[str, tuple[float, float]]]) -> str:
    """Lay out the mean seconds of each stage, and the least and the most of all seeds."""
    rows = ["| stage | CPU-seconds | seconds of the wall |", "| --- | --- | --- |"]
    for title, (more, less) in STAGES.items():
        spent = [[sum(found[name][unit] for name in more) - sum(found[name][unit] for name in less) for found in seeds] for unit in (0, 1)]
        rows.append(f"| {title} | " + " | ".join(f"{mean(one):.0f} ({min(one):.0f} to {max(one):.0f})" for one in spent) + " |")
    return "\n".join(rows)


def cell(shares: list[float]) -> str:
    """Lay out what all seeds together have right, and the worst of them alone."""
    right, asked = round(sum(shares) * QUESTIONS), len(shares) * QUESTIONS
    interval = binomtest(right, asked).proportion_ci(method="wilson")
    return f"{100 * right / asked:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}], {100 * min(shares):.0f}"


def row(title: str, profile: str, runs: list[dict[str, float]], control: str = "none") -> str:
    """Lay out one profile, under one control; a cell stays empty where the control changes nothing."""
    cells = ["" if task == "count" and control in OF_PAIRS else cell([run[f"{profile}/{task}"] for run in runs]) for task in TASKS]
    return "| " + " | ".join((title, *cells)) + " |"


def report(found: dict[str, list[dict[str, float]]], controls: dict[str, list[dict[str, float]]]) -> str:
    """Lay out each teaching on all profiles, and the first one's controls."""
    head = ["| " + " | ".join(("questions", *TASKS)) + " |", "| --- | " + " | ".join("---" for _ in TASKS) + " |"]
    parts = []
    for name, runs in found.items():
        rows = [row(profile, profile, runs) for profile in PROFILES]
        if name == next(iter(found)):
            rows += [row(f"hard, {CONTROLS[control]}", "hard", those, control) for control, those in controls.items()]
        parts.append("\n".join([f"**Taught by questions {TEACHINGS[name][1]}**", "", *head, *rows]))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--teachings", nargs="+", choices=tuple(TEACHINGS), default=list(TEACHINGS))
    parser.add_argument("--out", type=Path, default=Path("~/fivefold-runs/deaftest").expanduser())
    parser.add_argument("--cost", action="store_true", help="time the stages alone")
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    seeds = range(1, words.seeds + 1)
    if words.cost:
        return time_stages(seeds, words.out)
    with ThreadPoolExecutor(words.processes) as pool:
        def asked(name: str, control: str) -> list[dict[str, float]]:
            """Teach and examine on all seeds."""
            profiles = PROFILES if control == "none" else ("hard",)
            return list(pool.map(lambda seed: examined(taught(name, seed, words.out), profiles, control), seeds))

        found = {name: asked(name, "none") for name in words.teachings}
        controls = {control: asked(words.teachings[0], control) for control in CONTROLS}
    text = report(found, controls)
    print(text)
    if words.teachings == list(TEACHINGS):
        write_section("deaftest", text)
    time_stages(seeds, words.out)


def time_stages(seeds: range, out: Path) -> None:
    """Time each stage on every seed."""
    spent = costs([cost(seed, out) for seed in seeds])
    print(spent)
    write_section("deaftest cost", spent)


if __name__ == "__main__":
    main()
