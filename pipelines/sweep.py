"""fivefold sweep: search settings by a W&B sweep file, on W&B's server with agents here, or here alone."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipelines.config import ConfigError, compose, split_flags
from pipelines.describe import sweep_table
from pipelines.schema import RunConfig

FLAGS = ("--help", "--local", "--slurm", "--dry-run")
HELP = """fivefold sweep NAME [--trials N] [--local [--parallel P] [--seed S] | --slurm [--array N]] [--dry-run] [section.key=value …]

NAME is a file of configs/sweep/, or the path of another. Without a flag, the sweep is made on W&B's server and an agent works on it
here; sweep=ENTITY/PROJECT/ID joins one that is there. --local searches without any server, P trials side by side; the same command
goes on with a sweep that was interrupted. --slurm queues N agents in Slurm, each of which starts its trials on trainer.num_nodes x
trainer.devices processes and is queued again as a run is. --dry-run checks every value that may be drawn and starts nothing. Other words
are added to every training command; run.root and run.name say where a local sweep lies."""
OWN = {"trials": None, "parallel": 1, "seed": 1, "array": 1}  # numbers of the sweep itself, --trials 4 or trials=4, and their defaults


def run(argv: list[str]) -> int:
    """Search as the words say; exit status 0, or 130 after an interruption."""
    flags, words = split_flags(_joined(argv), FLAGS)
    if "--help" in flags:
        print(HELP)
        return 0
    name, numbers, joined, rest = _sort(words)
    if joined:
        return agent(joined, numbers["trials"])
    from pipelines.search import read_sweep

    sweep = read_sweep(name).under(rest)
    if "--slurm" in flags:
        from pipelines.agents import in_slurm

        return in_slurm(sweep, numbers, rest, dry="--dry-run" in flags)
    config = check(sweep, rest)
    if "--dry-run" in flags:
        print(f"{sweep.label}: {len(sweep.corners())} commands compose; the first: fivefold train {' '.join(sweep.corners()[0])}")
        return 0
    return local(sweep, config, numbers, rest) if "--local" in flags else online(sweep, config, numbers["trials"], rest)


def _joined(argv: list[str]) -> list[str]:
    """Write `--trials 4` as trials=4."""
    words = list(argv)
    for flag in (f"--{key}" for key in OWN):
        while flag in words:
            place = words.index(flag)
            words[place : place + 2] = [f"{flag[2:]}={next(iter(words[place + 1 : place + 2]), '')}"]
    return words


def _sort(words: list[str]) -> tuple[str, dict[str, Any], str, list[str]]:
    """Part the name, the sweep's own words, and a sweep to join from what every training command gets."""
    given = {key: text for key, _, text in (word.partition("=") for word in words) if key in (*OWN, "sweep")}
    for key, text in given.items():
        if key != "sweep" and not (text.isdigit() and int(text) > 0):
            raise ConfigError(f"{key}: must be a whole number above 0, not {text}")
    names = [word for word in words if "=" not in word]
    if len(names) != 1 and "sweep" not in given:
        from pipelines.catalog import choices_of

        raise ConfigError(f"sweep: which one? Write fivefold sweep NAME, NAME of {', '.join(choices_of('sweep'))}")
    numbers = {key: int(given[key]) if key in given else default for key, default in OWN.items()}
    return (names or [""])[0], numbers, given.get("sweep", ""), [w for w in words if "=" in w and w.partition("=")[0] not in given]


def check(sweep: Any, rest: list[str]) -> RunConfig:
    """Compose the command of every value that may be drawn, and return the first; ConfigError for what a trial would refuse."""
    found = []
    for line in sweep.corners():
        try:
            found.append(compose([*line, *rest]))
        except ConfigError as error:
            raise ConfigError(f"{sweep.label}: {error}") from None
    return found[0]


def local(sweep: Any, config: RunConfig, numbers: dict[str, Any], rest: list[str]) -> int:
    """Search here: one run folder a trial, a table and a picture at the end."""
    from pipelines.runs import claim
    from pipelines.search import open_study
    from pipelines.trials import Trials

    count = numbers["trials"] or len(sweep.grid) or sweep.content.get("run_cap")
    if not count:
        raise ConfigError(f"trials: how many? {sweep.method} never ends; write --trials 20, or run_cap in {sweep.label}")
    count = min(count, len(sweep.grid)) if sweep.grid else count
    folder = Path(config.run.root).expanduser().absolute() / (config.run.name or f"sweep-{sweep.name}")
    rest = [word for word in rest if not word.startswith(("run.root=", "run.name=", "run.resume="))]
    lock = claim(folder)
    _same_as_before(folder, sweep, rest, numbers["seed"])
    study = open_study(sweep, folder)
    trials = Trials(sweep, study, folder, rest, numbers["seed"], numbers["parallel"])
    status = 0
    try:
        for trial in trials.run(count):
            value = "" if trial.value is None else f"  {sweep.metric} {trial.value:.6g}"
            settings = "  ".join(f"{key}={shown}" for key, shown in trial.params.items())
            print(f"trial {trial.number}  {trial.state.name.lower()}{value}  {settings}", flush=True)
    except KeyboardInterrupt:
        status = 130
    finally:
        lock.close()
        show(sweep, study, folder)
    if status:
        saved = f"{len(trials.running)} trials still save a checkpoint" if trials.running else "every trial has saved a checkpoint"
        print(f"interrupted: {saved}, and the same command goes on with them")
    return status


def _same_as_before(folder: Path, sweep: Any, rest: list[str], seed: int) -> None:
    """Keep what decides the trials beside them; ConfigError where a sweep would go on as another one."""
    import yaml

    from pipelines.runs import SWEEP

    kept, text = folder / SWEEP, yaml.safe_dump({**sweep.content, "added": rest, "seed": seed}, sort_keys=False)
    if kept.is_file() and kept.read_text() != text:
        raise ConfigError(f"run.name: {folder} holds a sweep of other settings, see {kept.name} there; choose another run.name")
    kept.write_text(text)


def show(sweep: Any, study: Any, folder: Path) -> None:
    """Print all trials, best first, and write them down as trials.csv and parallel_coordinates.png."""
    trials = study.get_trials(deepcopy=False)
    done = sorted((t for t in trials if t.value is not None and t.state.name == "COMPLETE"), key=lambda t: t.value,
                  reverse=sweep.direction == "maximize")
    columns = ["trial", *sweep.space, sweep.metric, "state"]
    rows = [[t.number, *(t.params.get(key) for key in sweep.space), t.value, t.state.name.lower()]
            for t in [*done, *(t for t in trials if t not in done)]]
    with (folder / "trials.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    sweep_table(columns, rows, folder)
    if len(done) > 1:
        draw(study, sweep, folder / "parallel_coordinates.png")


def draw(study: Any, sweep: Any, picture: Path) -> None:
    """Draw one line a trial through its settings and its figure."""
    import warnings

    import matplotlib
    from optuna.exceptions import ExperimentalWarning

    matplotlib.use("Agg")
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        axes = plot_parallel_coordinate(study, list(sweep.space), target_name=sweep.metric)
    axes.set_title(sweep.name)
    axes.get_figure(root=True).savefig(picture, dpi=120, bbox_inches="tight")  # type: ignore[union-attr]
    print(f"picture: {picture}")


def online(sweep: Any, config: RunConfig, trials: int | None, rest: list[str]) -> int:
    """Make the sweep on W&B's server, with the words that are added, and work on it."""
    path = made_online(sweep, config, rest)
    print(f"other machines join with: fivefold sweep sweep={path}", flush=True)
    return agent(path, trials)


def made_online(sweep: Any, config: RunConfig, rest: list[str]) -> str:
    """Make a sweep on W&B's server and return its path there."""
    import wandb

    from pipelines.tracking import logged_in

    if not logged_in():
        raise ConfigError("sweep: W&B is not logged in; run wandb login, or search here with --local")
    made = wandb.sweep(sweep.for_wandb(rest), entity=config.logger.entity, project=config.logger.project)
    return "/".join(filter(None, (config.logger.entity, config.logger.project, made)))


def agent(path: str, trials: int | None) -> int:
    """Let W&B's own agent ask the server for trials and run them."""
    count = ["--count", str(trials)] if trials else []
    return subprocess.run([sys.executable, "-m", "wandb", "agent", *count, path]).returncode
