"""fivefold evaluate: load a run's checkpoint and validate it again, or examine a model that needs no training here."""

import shlex
import sys
from pathlib import Path
from typing import Any

from pipelines import describe
from pipelines.config import ConfigError, compose, from_yaml, split_flags
from pipelines.processes import rank
from pipelines.resume import place_for
from pipelines.runs import (
    ALONE,
    SETTINGS,
    claim,
    command_line,
    end_record,
    named_checkpoint,
    newest_checkpoint,
    start_record,
    step_of,
)
from pipelines.schema import RunConfig

FLAGS = ("--help",)
PAGE = "report.html"  # which a method may leave in the run folder


def run(argv: list[str]) -> int:
    """Evaluate `run=FOLDER`, or its `checkpoint=FILE`, with any `section.key=value` changed; or `method=NAME` as it comes."""
    flags, words = split_flags(argv, FLAGS)
    if "--help" in flags:
        print("fivefold evaluate run=FOLDER [checkpoint=FILE] [section.key=value …]\n"
              "fivefold evaluate method=NAME [section.key=value …]\n\n"
              "Validates the newest checkpoint of a run, or the one named, on the run's own data; or a method's model as it comes, in a\n"
              "run folder of its own. What was interrupted goes on with run.name=NAME run.resume=auto.")
        return 0
    if not any(word.startswith("run=") for word in words) and any(word.startswith(("method=", "experiment=")) for word in words):
        return examine(compose(_shared_out(words), command="evaluate"))
    folder, checkpoint, overrides = _sort(words)
    config = from_yaml(folder / SETTINGS, [*_alone(overrides), *overrides])
    found = checkpoint or newest_checkpoint(folder)
    if found is None:
        raise ConfigError(f"run: {folder} holds no checkpoint yet")
    from pipelines.build import build

    built = build(config, None)
    built.trainer.validate(built.module, datamodule=built.data, ckpt_path=found, weights_only=True, verbose=False)
    describe.results_table({"step": step_of(found), **built.record.metrics}, folder, f"evaluated {found.name}")
    return 0


def examine(config: RunConfig) -> int:
    """Validate a model as it comes; what it has found so far is kept in the run folder, and an interruption loses nothing of it."""
    place = place_for(config)
    again = f"run.name={shlex.quote(place.folder.name)} run.resume=auto"
    if rank() > 0:
        _validated(config, place.folder)
        return 0
    lock = claim(place.folder)
    start_record(config, place.folder, 0, command_line(), work="evaluate")
    print(f"run folder: {place.folder}", flush=True)
    status = "failed"
    results: dict[str, float] = {}
    tables: dict[str, Any] = {}
    lacks = ""
    try:
        results, tables, lacks = _validated(config, place.folder)
        status = "incomplete" if lacks else "finished"
    except (KeyboardInterrupt, SystemExit):  # the second is how Lightning passes a Ctrl-C on
        status = "interrupted"
        print(f"interrupted: all answers so far are kept; the same command with {again} asks the rest", file=sys.stderr)
        raise KeyboardInterrupt from None
    finally:
        end_record(place.folder, status, results)
        lock.close()
    describe.printed_tables(tables)
    describe.results_table(results, place.folder, status)
    if lacks:
        print(f"incomplete: {lacks}; the same command with {again} asks them again")
    if (place.folder / PAGE).is_file():
        print(f"page of results: {place.folder / PAGE}")
    return 0


def _validated(config: RunConfig, folder: Path) -> tuple[dict[str, float], dict[str, Any], str]:
    """Return the figures of a validation, its tables, and what it lacks."""
    from pipelines.build import build
    from pipelines.tracking import close_wandb

    built = build(config, folder, work="evaluate")
    built.module.kept_in = folder
    results = None
    try:
        built.trainer.validate(built.module, datamodule=built.data, verbose=False)
        results = built.record.metrics
    finally:
        if rank() == 0:
            close_wandb(built.loggers, config, folder, results)
    return results, built.module.tables, built.module.incomplete


def _shared_out(words: list[str]) -> list[str]:
    """Share the work of several processes out by ddp, unless the words or an experiment say otherwise."""
    several = any(word.startswith(("trainer.devices=", "trainer.num_nodes=")) and not word.endswith("=1") for word in words)
    return [*words, "strategy=ddp"] if several and not any(word.startswith(("strategy", "experiment=")) for word in words) else words


def _alone(words: list[str]) -> list[str]:
    """Evaluate on one process unless the words say otherwise: a checkpoint is the same whatever strategy wrote it."""
    chosen = any(word.startswith(("strategy", "trainer.devices", "trainer.num_nodes")) for word in words)
    return ["checkpoint.sharded=false"] if chosen else ALONE


def _sort(words: list[str]) -> tuple[Path, Path | None, list[str]]:
    """Take run= and checkpoint= out of the words; the rest are overrides."""
    named = {key: value for key, _, value in (w.partition("=") for w in words) if key in ("run", "checkpoint")}
    if "run" not in named:
        raise ConfigError("run: which one? Write fivefold evaluate run=FOLDER, or method=NAME for a model as it comes")
    folder = Path(named["run"]).expanduser().absolute()
    if not (folder / SETTINGS).is_file():
        raise ConfigError(f"run: {folder} is no run folder: it has no {SETTINGS}")
    checkpoint = named_checkpoint(named["checkpoint"]) if "checkpoint" in named else None
    return folder, checkpoint, [w for w in words if w.partition("=")[0] not in ("run", "checkpoint")]
