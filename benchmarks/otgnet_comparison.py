"""What is OTGNet worth where classes keep opening? The table of RESULTS.md, made by one command.

    python benchmarks/otgnet_comparison.py --root FOLDER [--protocol otg] [--processes 2] [--contenders "ours;no gate;..."] [--seeds 3]

FOLDER holds events.csv, nodes.csv, features.npy and tasks.json. Every contender walks through the same training events in the same
batches, equally often; a seed draws the weights and the parts of the nodes. Each network has five runs on another seed for what suits it,
judged by class-IL AP on validation nodes: the weight of votes at the middle learning rate and then two more rates, or five rates where
nobody votes. An ablation of ours has what suits ours. Task-IL: among the classes of a node's own task; class-IL: among all that are open.
AP is the mean accuracy on all tasks after the last, AF what was lost of the best since. Label propagation is the vote of all labelled nodes
that a test node has met. Each run is kept as one JSON file under --out, so the command can be interrupted and called again; the table goes
into RESULTS.md where the contenders are the default.
"""

import argparse
import io
import json
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

from kpod_comparison import interval
from optimizer_step import table
from results import keep, write_section

from pipelines.__main__ import main as fivefold

FIRST_SEED, TUNING_SEED = 11, 1
WEIGHTS, RATE, RATES, MORE_RATES = (4, 8, 16), 0.005, (0.0025, 0.01), (0.00125, 0.02)  # of votes; of learning
PLAIN = ("module.network.votes=0", "module.gate.where=none")  # backbones without what is ours
MLP = ("module.network.backbone=mlp", "module.network.votes=0")
CONTENDERS = {
    "ours": (),
    "no gate": ("module.gate.where=none",),
    "no votes": ("module.network.votes=0",),
    "no balance": ("module.balance=false",),
    "nothing replayed": ("module.replay.kind=none",),
    "replay at random": ("module.replay.kind=random",),
    "replay by herding": ("module.replay.kind=herding",),
    "replay by influence": ("module.replay.kind=influence",),
    "no diversity": ("module.replay.diversity=0",),
    "no importance": ("module.replay.importance=none",),
    "no links": ("module.replay.links=0",),
    "public code's choices": ("module.compat=official",),
    "features and votes": ("module.network.backbone=mlp",),
    "features, fine-tuned": (*MLP, "module.replay.kind=none"),
    "features, replay at random": (*MLP, "module.replay.kind=random"),
    "features, joint": (*MLP, "module.replay.kind=all", "module.replay.batch_size=300"),
    "TGN, ER": (*PLAIN, "module.network.backbone=tgn", "module.replay.kind=random"),
    "TGAT, ER": (*PLAIN, "module.network.backbone=tgat", "module.replay.kind=random"),
    "TGN, EWC": (*PLAIN, "module.network.backbone=tgn", "module.replay.kind=none", "module.retain.ewc=100"),
    "TGN, LwF": (*PLAIN, "module.network.backbone=tgn", "module.replay.kind=none", "module.retain.distil=1"),
    "TGN, iCaRL": (*PLAIN, "module.network.backbone=tgn", "module.replay.kind=herding", "module.retain.distil=1",
                   "module.retain.nearest_mean=true"),
}
TUNED_ALIKE = dict.fromkeys(("no gate", "no balance", "nothing replayed", "replay at random", "replay by herding", "replay by influence",
                             "no diversity", "no importance", "no links"), "ours")
USUAL = {"otg": tuple(CONTENDERS), "evolving": ("ours", "no gate", "no votes", "nothing replayed", "replay at random", "features and votes",
                                                "features, replay at random", "TGN, ER")}
SILENT = {name for name, words in CONTENDERS.items() if "module.network.votes=0" in words or "module.compat=official" in words}
FIGURES = ("task_il/AP", "task_il/AF", "class_il/AP", "class_il/AF")
Choice = tuple[float, float | None]  # learning rate, weight of votes
VOTES = ("task_il/label_propagation", "class_il/label_propagation")


def train(contender: str, choice: Choice, seed: int, words: argparse.Namespace) -> dict[str, float]:
    """Train once, or read what a run before has left."""
    rate, weight = choice
    label = f"{contender.replace(' ', '_').replace(',', '')}-lr{rate}" + (f"-votes{weight}" if weight else "")
    name = f"{words.protocol}-{label}-{words.passes}passes-{seed}"
    record = words.out / f"{name}.json"
    if not record.is_file():
        line = ["train", "method=otgnet", "data.source=folder", f"data.root={words.root}", f"data.protocol={words.protocol}",
                f"data.passes={words.passes}", f"data.split_seed={seed}", f"run.seed={seed}", *CONTENDERS[contender], f"optim.lr={rate}",
                *([f"module.network.vote_weight={weight}"] if weight else []), "logger=csv",
                "trainer.accelerator=cpu", "trainer.threads=1", "trainer.log_every_n_steps=50", "checkpoint.every_n_steps=100000",
                f"run.root={words.out}", f"run.name={name}", "run.resume=auto"]
        with redirect_stdout(io.StringIO()):
            if status := fivefold(line):
                raise SystemExit(f"{name}: exit status {status}")
        results = json.loads((words.out / name / "run.json").read_text())["results"]
        keep(record, {key: value for key, value in results.items() if key.startswith(("test/", "val/")) or key == "seconds"})
        print(f"{name}: class-IL AP {results['test/class_il/AP']:.1f}", flush=True)
    return json.loads(record.read_text())


def chosen(contender: str, pool: ProcessPoolExecutor, words: argparse.Namespace) -> Choice:
    """Return what suits a contender best on the validation nodes of the tuning seed."""
    def best(choices: list[Choice]) -> Choice:
        found = [pool.submit(train, contender, choice, TUNING_SEED, words) for choice in choices]
        return max(zip(choices, found), key=lambda pair: pair[1].result()["val/class_il/AP"])[0]

    if contender in SILENT:
        return best([(rate, None) for rate in (RATE, *RATES, *MORE_RATES)])
    first = best([(RATE, weight) for weight in WEIGHTS])
    return best([first, *((rate, first[1]) for rate in RATES)])


def said(values: list[float]) -> str:
    """Say a mean with its 95 % interval."""
    return f"{statistics.mean(values):.2f} ± {interval(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def report(found: dict[str, list[dict[str, float]]], choices: dict[str, Choice], words: argparse.Namespace) -> str:
    """Lay out all contenders, label propagation first, and their class-IL AP against it and against ours on the same seeds."""
    first = next(iter(found.values()))
    voted = [[run[f"test/{name}"] for run in first] for name in VOTES]
    ours = [run["test/class_il/AP"] for run in first]
    rows = [["label propagation", "", said(voted[0]), "", said(voted[1]), "", "", said([v - own for v, own in zip(voted[1], ours)]), ""]]
    for name, runs in found.items():
        figures = [[run[f"test/{figure}"] for run in runs] for figure in FIGURES]
        gains = [said([ap - other for ap, other in zip(figures[2], others)]) for others in (voted[1], ours)]
        settings = ", ".join(f"{value:g}" for value in choices[name] if value)
        rows.append([name, settings, *(said(values) for values in figures), gains[0], gains[1] if runs is not first else "",
                     f"{statistics.mean(run['seconds'] for run in runs):.0f}"])
    title = f"**{Path(words.root).name}, {words.protocol}: {words.passes} passes, {len(first)} seeds, mean and 95 % interval**"
    header = ["contender", "rate, votes", "task-IL AP", "AF", "class-IL AP", "AF", "class-IL AP minus label propagation, paired",
              f"minus {next(iter(found))}, paired", "seconds"]
    return f"{title}\n\n{table(header, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with events.csv, nodes.csv, features.npy and tasks.json")
    parser.add_argument("--protocol", choices=("otg", "evolving"), default="otg")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--contenders", default="", help=f"of {', '.join(CONTENDERS)}, separated by semicolons; "
                        f"by default all, or for evolving {', '.join(USUAL['evolving'])}")
    parser.add_argument("--out", type=Path, default=Path("~/fivefold-runs/otgnet-comparison").expanduser())
    parser.add_argument("--processes", type=int, default=2)
    words = parser.parse_args()
    names = [name for name in words.contenders.split(";") if name] or list(USUAL[words.protocol])
    if wrong := set(names) - set(CONTENDERS):
        raise SystemExit(f"{min(wrong)}: no such contender; there are {'; '.join(CONTENDERS)}")
    words.out.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    seeds = range(FIRST_SEED, FIRST_SEED + words.seeds)
    with ProcessPoolExecutor(words.processes, multiprocessing.get_context("spawn")) as pool:
        tuned = list(dict.fromkeys(TUNED_ALIKE.get(name, name) for name in names))
        with ThreadPoolExecutor(len(tuned)) as askers:
            found_best = dict(zip(tuned, askers.map(lambda name: chosen(name, pool, words), tuned), strict=True))
        choices = {name: found_best[TUNED_ALIKE.get(name, name)] for name in names}
        jobs = {name: [pool.submit(train, name, choices[name], seed, words) for seed in seeds] for name in names}
        found = {name: [job.result() for job in runs] for name, runs in jobs.items()}
    text = report(found, choices, words)
    print(text)
    if names == list(USUAL[words.protocol]):
        write_section(f"otgnet_{words.protocol}", text)


if __name__ == "__main__":
    main()
