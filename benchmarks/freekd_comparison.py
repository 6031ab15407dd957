"""Do networks that teach each other beat the same networks alone? The table of RESULTS.md, made by one command.

    python benchmarks/freekd_comparison.py --root FOLDER_OF_GRAPHS [--processes 2] [--settings texas] [--contenders paper,mutual]

Each run trains every network beside a twin from the same weights with the same dropout, which nobody teaches: a difference is that of a run
from its own twins, averaged over the networks, each at the epoch of its own best validation. A run is a seed on a fixed split, or one of
a set's ten splits. The networks are those that are best alone (benchmarks/freekd_floor.py), with two layers of 64, learning rate 0.01 and
l2 5e-4; mu is 1, and 5 where labels are few. Nothing is tuned for a contender. Each run is kept as one JSON file under --out, so the
command can be interrupted and called again; the table goes into RESULTS.md once all settings and contenders are in it.
"""

import argparse
import io
import json
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from kpod_comparison import interval
from optimizer_step import table
from results import keep, write_section

from pipelines.__main__ import main as fivefold

FIRST_SEED, SEEDS, SPLITS = 11, 5, 10


@dataclass(frozen=True)
class Setting:
    """A graph with its split and edges, the networks that are best alone on it, and the weight of what is taught."""

    label: str
    name: str
    networks: tuple[str, ...]
    split: str = "auto"
    symmetric: bool = False
    mu: float = 1.0
    splits: int = 1
    controls: bool = False  # whether the ways to teach at all nodes are held against each other

    def contenders(self, asked: list[str]) -> list[str]:
        """Return which of the contenders asked for compete here."""
        return [name for name in asked if self.controls or name not in CONTROLS]

    @property
    def runs(self) -> int:
        return self.splits if self.splits > 1 else SEEDS

    def words(self, number: int, networks: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return what run `number` of this setting, with other networks if there are any, says on the command line."""
        index = (f"data.split_index={number}",) if self.splits > 1 else ()
        return (f"data.name={self.name}", f"data.split={self.split}", f"data.symmetric={str(self.symmetric).lower()}", *index,
                f"module.networks=[{','.join(networks or self.networks)}]", f"module.distil.mu={self.mu}",
                f"run.seed={FIRST_SEED + number}")


SETTINGS = {
    "cora-full": Setting("Cora, full split", "Cora", ("sage", "sage"), "full"),
    "citeseer-full": Setting("CiteSeer, full split", "CiteSeer", ("sage", "sage"), "full"),
    "cora-public": Setting("Cora, public split", "Cora", ("gcn", "gcn"), "public", mu=5.0, controls=True),
    "citeseer-public": Setting("CiteSeer, public split", "CiteSeer", ("gcn", "gcn"), "public", mu=5.0, controls=True),
    "chameleon": Setting("Chameleon, edges as stored", "chameleon", ("sage", "sage"), splits=SPLITS),
    "chameleon-symmetric": Setting("Chameleon, symmetrised", "chameleon", ("sage", "sage"), symmetric=True, splits=SPLITS),
    "texas": Setting("Texas, edges as stored", "texas", ("sage", "sage"), splits=SPLITS, controls=True),
    "texas-symmetric": Setting("Texas, symmetrised", "texas", ("sage", "sage"), symmetric=True, splits=SPLITS),
}
LABELLED, EVERYWHERE = ("module.distil.nodes=train",), ("module.distil.nodes=all", "module.distil.structure=none")
PAPER = (*LABELLED, "module.reward.kind=paper", "module.agent.policy=concat", "module.agent.entropy=0")


@dataclass(frozen=True)
class Contender:
    """A way to teach: its name in the table, what it says on the command line, and its networks if they are not those of the setting."""

    label: str
    words: tuple[str, ...]
    networks: tuple[str, ...] = ()


CONTENDERS = {
    "mutual": Contender("mutual, labelled nodes", (*LABELLED, "module.distil.direction=mutual", "module.distil.structure=all")),
    "random": Contender("random direction, labelled nodes", (*LABELLED, "module.distil.direction=random", "module.distil.structure=all")),
    "by-loss": Contender("direction by loss, labelled nodes", (*LABELLED, "module.distil.direction=loss", "module.distil.structure=all")),
    "paper": Contender("FreeKD as in the paper", PAPER),
    "prompt": Contender("FreeKD-Prompt", (*PAPER, "module.prompt.tokens=5")),
    "plus": Contender("FreeKD++ (GCN, SAGE, GAT)", PAPER, ("gcn", "sage", "gat")),
    "advantage": Contender("FreeKD, reward by level", LABELLED),
    "mutual-all": Contender("mutual, all nodes", (*EVERYWHERE, "module.distil.direction=mutual")),
    "random-all": Contender("random direction, all nodes", (*EVERYWHERE, "module.distil.direction=random")),
    "confidence": Contender("confidence rule alone, all nodes", (*EVERYWHERE, "module.distil.direction=confidence")),
    "agent": Contender("agent that leans on confidence, all nodes", (*EVERYWHERE, "module.agent.prior=30")),
}
CONTROLS = ("advantage", "mutual-all", "random-all", "confidence")
COMMON = ("train", "method=freekd", "logger=csv", "trainer.accelerator=cpu", "trainer.threads=1", "trainer.val_every_n_steps=1",
          "trainer.log_every_n_steps=50", "run.resume=auto")


@dataclass(frozen=True)
class Run:
    """Test micro-F1 in percent, averaged over the networks, taught and alone."""

    taught: float
    alone: float

    @property
    def gain(self) -> float:
        return self.taught - self.alone


def train(setting: str, contender: str, number: int, words: argparse.Namespace) -> Run:
    """Train once, or read what a run before has left; a process trains many, since loading PyTorch takes longer than some runs."""
    name = f"{setting}-{contender}-{words.steps}steps-{number}"
    record = words.out / f"{name}.json"
    if not record.is_file():
        line = (*COMMON, *SETTINGS[setting].words(number, CONTENDERS[contender].networks), *CONTENDERS[contender].words,
                f"data.root={words.root}",
                f"data.cache={words.out / 'cache'}", f"trainer.max_steps={words.steps}", f"checkpoint.every_n_steps={words.steps}",
                f"run.root={words.out}", f"run.name={name}")
        with redirect_stdout(io.StringIO()):
            if status := fivefold(list(line)):
                raise SystemExit(f"{name}: exit status {status}")
        keep(record, figures(words.out / name))
        print(f"{name}: {read(record).gain:+.2f}", flush=True)
    return read(record)


def figures(folder: Path) -> dict[str, float]:
    """Take from a run's folder what the table needs."""
    results = json.loads((folder / "run.json").read_text())["results"]
    return {name: value for name, value in results.items() if name.startswith("test/")}


def read(record: Path) -> Run:
    values = json.loads(record.read_text())
    return Run(100 * values["test/micro_f1"], 100 * values["test/base_micro_f1"])


def paired(runs: list[Run]) -> str:
    """Say the mean difference from the twins with its 95 % interval, and of which sign it is where the interval leaves out zero."""
    gains = [run.gain for run in runs]
    mean = statistics.mean(gains)
    if len(gains) < 2:
        return f"{mean:+.2f} (one run)"
    half = interval(gains)
    verdict = "" if abs(mean) <= half else " (better)" if mean > 0 else " (worse)"
    return f"{mean:+.2f} ± {half:.2f}{verdict}"


def section(setting: Setting, found: dict[str, list[Run]]) -> str:
    """Lay out one setting: every contender beside its own twins."""
    lines = [[CONTENDERS[name].label, f"{statistics.mean(run.taught for run in runs):.2f}",
              f"{statistics.mean(run.alone for run in runs):.2f}", paired(runs)] for name, runs in found.items()]
    runs = f"{len(next(iter(found.values())))} {'splits' if setting.splits > 1 else 'seeds'}"
    title = f"**{setting.label}: {', '.join(setting.networks)}; mu {setting.mu:g}; {runs}**"
    return f"{title}\n\n{table(['contender', 'test micro-F1 %', 'its twins alone', 'difference, 95 % interval'], lines)}"


def chosen(names: str, known: dict[str, Setting] | dict[str, Contender]) -> list[str]:
    """Split a list of names; an empty one stands for all."""
    found = [name for name in names.split(",") if name] or list(known)
    if wrong := set(found) - set(known):
        raise SystemExit(f"{min(wrong)}: no such name; there are {', '.join(known)}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with Cora/raw, CiteSeer/raw, chameleon/geom_gcn/raw and texas/raw")
    parser.add_argument("--out", type=Path, default=Path("~/fivefold-runs/freekd-comparison").expanduser())
    parser.add_argument("--settings", default="", help=f"of {', '.join(SETTINGS)}; all by default")
    parser.add_argument("--contenders", default="", help=f"of {', '.join(CONTENDERS)}; all by default")
    parser.add_argument("--runs", type=int, default=SPLITS, help="at most so many seeds or splits of each")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--processes", type=int, default=2)
    words = parser.parse_args()
    sets, contenders = chosen(words.settings, SETTINGS), chosen(words.contenders, CONTENDERS)
    words.out.mkdir(parents=True, exist_ok=True)
    numbers = {name: range(min(words.runs, SETTINGS[name].runs)) for name in sets}
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(words.processes, multiprocessing.get_context("spawn")) as pool:
        jobs = {name: {contender: [pool.submit(train, name, contender, number, words) for number in numbers[name]]
                       for contender in SETTINGS[name].contenders(contenders)} for name in sets}
        found = {name: {contender: [job.result() for job in runs] for contender, runs in jobs[name].items()} for name in sets}
    text = "\n\n".join(section(SETTINGS[name], found[name]) for name in sets)
    print(text)
    if (sets, contenders, words.runs >= SPLITS) == (list(SETTINGS), list(CONTENDERS), True):
        write_section("freekd_comparison", text)


if __name__ == "__main__":
    main()
