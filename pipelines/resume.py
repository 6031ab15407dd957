"""Where a run is put: a new folder, or an unfinished run that `run.resume` means and that the settings fit."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config import ConfigError, fingerprint, from_yaml, to_mapping
from pipelines.processes import mark, rank
from pipelines.runs import SETTINGS, is_checkpoint, never_began, newest_checkpoint, read_record, run_of, step_of
from pipelines.schema import RunConfig

LENGTH = ("trainer.max_steps", "trainer.max_epochs", "trainer.max_time")
SILENT = ("run.", "logger.", "cluster.")
MAY_CHANGE = (*LENGTH, *SILENT, "checkpoint.", "trainer.accelerator", "trainer.threads", "trainer.keep_memory", "trainer.profiler",
              "trainer.detect_anomaly",
              "trainer.log_every_n_steps", "trainer.val_every_n_steps", "trainer.limit_val_batches", "data.workers", "data.cache",
              "strategy.", "trainer.devices", "trainer.num_nodes", "data.batch_size",
              "data.eval_batch_size")  # the same run on other processes


@dataclass(frozen=True)
class Place:
    """The folder of a run, the checkpoint it goes on from, if any, and what the user should know about that choice."""

    folder: Path
    checkpoint: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """Optimizer steps that the checkpoint holds; 0 without one."""
        return step_of(self.checkpoint) if self.checkpoint else 0


def place_for(config: RunConfig) -> Place:
    """Decide the folder of a run, and where it resumes; ConfigError for a folder that is taken, missing, or of another run."""
    if config.run.resume is None:
        return _new(config)
    if config.run.resume == "auto":
        return _unfinished(config)
    path = Path(config.run.resume).expanduser().absolute()
    if not path.exists():
        raise ConfigError(f"run.resume: {path} does not exist; name a run folder, a .ckpt file, or auto")
    folder = run_of(path)
    is_one = path.is_file() or is_checkpoint(path)
    if not is_one and (folder is None or newest_checkpoint(folder) is None):
        raise ConfigError(f"run.resume: {path} holds no checkpoint; name a run folder, a .ckpt file, or auto")
    if folder is None:
        return _new(config, path)
    _refuse_other(config, folder)
    newest = newest_checkpoint(folder)
    if is_one and path.resolve() != newest:
        return _new(config, path, f"{path.name} is not the newest checkpoint of {folder.name}: going on in a folder of its own")
    return _again(config, folder)


def _new(config: RunConfig, checkpoint: Path | None = None, *notes: str) -> Place:
    folder = _root(config) / (config.run.name or _new_name(config))
    if rank() == 0 and folder.exists() and not never_began(folder):
        way = " and holds no run to go on with; choose another name" if config.run.resume else (
            "; choose another name, or run.resume=auto to go on with it")
        raise ConfigError(f"run.name: {folder} exists already{way}")
    return Place(folder, checkpoint, notes)


def _root(config: RunConfig) -> Path:
    return Path(config.run.root).expanduser().absolute()


def _new_name(config: RunConfig) -> str:
    what = config.experiment or config.method
    optim = config.choices.get("optim", "optim")
    return f"{what}-{optim}-s{config.run.seed}-{mark()}"


def _unfinished(config: RunConfig) -> Place:
    """Find the named run, or the newest one with the same settings that has not finished; none: a new folder."""
    named = config.run.name and _root(config) / config.run.name
    if named and (named / SETTINGS).is_file():
        _refuse_other(config, named)
        return _again(config, named)
    if named:
        return _new(config, None, f"nothing to resume in {named}: starting from step 0")
    runs = sorted(((read_record(folder), folder) for folder in _root(config).glob("*")), key=lambda run: _started(run[0]))
    unfinished = [(record, folder) for record, folder in runs if record and record.get("status") not in ("finished", "queued")]
    same = [folder for record, folder in unfinished if record.get("fingerprint") == fingerprint(config)]
    if same:
        return _again(config, same[-1])
    note = f"nothing to resume under {_root(config)}: starting from step 0"
    near = [folder for record, folder in unfinished if record.get("method") == config.method and (folder / SETTINGS).is_file()]
    if near:
        note += f" ({near[-1].name} is unfinished, but of other settings: {_listed(differences(config, near[-1]))})"
    return _new(config, None, note)


def _started(record: dict[str, Any]) -> float:
    return record.get("started", [{"time": 0.0}])[-1]["time"]


def _again(config: RunConfig, folder: Path) -> Place:
    """Go on in `folder` from its newest checkpoint; ConfigError when that run has nothing left to do."""
    changed = [d for d in differences(config, folder) if not d.startswith(SILENT)]
    place = Place(folder, newest_checkpoint(folder), (f"changed since this run began: {_listed(changed)}",) if changed else ())
    if rank() > 0 or read_record(folder).get("status") != "finished":
        return place
    if _work_of(folder) == "evaluate":
        raise ConfigError(f"run.resume: {folder.name} has finished, and all it found is in {folder}; give another run.name to begin anew")
    if not any(d.startswith(LENGTH) for d in changed):
        raise ConfigError(f"run.resume: {folder.name} has finished, after {place.step} steps; give more trainer.max_steps to go on, "
                          "or start a new run")
    if 0 < config.trainer.max_steps <= place.step:
        raise ConfigError(f"trainer.max_steps: {folder.name} has trained {place.step} steps already; give more than that to go on")
    return place


def _work_of(folder: Path) -> str:
    """Say what the last start in a run folder was for: train or evaluate."""
    return read_record(folder).get("started", [{}])[-1].get("work", "train")


def _refuse_other(config: RunConfig, folder: Path) -> None:
    refused = [d for d in differences(config, folder) if not d.startswith(MAY_CHANGE)]
    if refused and _work_of(folder) == "evaluate":
        raise ConfigError(f"run.resume: {folder.name} was begun with other settings: {_listed(refused)}. Leave them as they were, or give "
                          "another run.name to begin anew")
    if refused:
        raise ConfigError(f"run.resume: {folder.name} was made with other settings: {_listed(refused)}. Leave them as they were "
                          f"(fivefold train run.resume={shlex.quote(str(folder))} takes them all from that run), or start a new run")


def differences(config: RunConfig, folder: Path) -> list[str]:
    """Say, key by key, in what the settings of a run folder differ from `config`."""
    before, now = (dict(_leaves(to_mapping(c))) for c in (from_yaml(folder / SETTINGS), config))
    keys = dict.fromkeys([*before, *now])
    return [f"{key} was {before.get(key)}, now {now.get(key)}" for key in keys if before.get(key) != now.get(key)]


def _leaves(mapping: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _listed(changes: list[str], most: int = 4) -> str:
    more = f" and {len(changes) - most} more" if len(changes) > most else ""
    return "; ".join(changes[:most]) + more


def way_on(folder: Path) -> str:
    """Say how to go on with an unfinished run; empty when it has no checkpoint yet."""
    found = newest_checkpoint(folder)
    return f"go on from step {step_of(found)} with: fivefold train run.resume={shlex.quote(str(folder))}" if found else ""


def with_settings_of_run(words: list[str]) -> list[str]:
    """Let `run.resume=PATH` alone stand for all settings of that run, by putting its config.yaml first."""
    resume = next((word.partition("=")[2] for word in words if word.startswith("run.resume=")), "auto")
    if resume == "auto" or any(word.startswith(("method=", "experiment=", "config=")) for word in words):
        return words
    folder = run_of(Path(resume).expanduser().absolute())
    return words if folder is None else [f"config={folder / SETTINGS}", *words]
