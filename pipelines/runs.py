"""Run folders: what is written down about a run, its checkpoints, and the lock that keeps a second process out."""

import dataclasses
import datetime
import fcntl
import json
import os
import platform
import socket
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from pipelines.config import ConfigError, fingerprint, to_yaml
from pipelines.schema import RunConfig

RECORD = "run.json"
SETTINGS = "config.yaml"
LAST = "last.ckpt"  # a link to the newest checkpoint
PART = ".part"  # ends the names of files that are being written
PACKAGES = ("fivefold", "torch", "lightning", "transformers", "torch-geometric", "deepspeed", "wandb", "omegaconf",
            "tokenizers", "datasets", "torchdata", "torchmetrics", "peft", "numpy")


def step_of(checkpoint: Path) -> int:
    """Read the optimizer step from a checkpoint: from its name, else from its content."""
    _, _, number = checkpoint.resolve().stem.partition("step=")
    if number.isdigit():
        return int(number)
    import torch

    return int(torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["global_step"])


def steps_saved(checkpoints: Path) -> list[Path]:
    """List the checkpoints of a folder, oldest first, leaving out files that are cut off."""
    found = sorted(checkpoints.glob("step=*.ckpt"), key=step_of)
    return [path for path in found if zipfile.is_zipfile(path)]  # the index of a zip file is its end


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the whole checkpoint of the latest step in a run folder."""
    found = steps_saved(folder / "checkpoints")
    return found[-1] if found else None


def run_of(path: Path) -> Path | None:
    """Return the run folder that `path`, a folder or a checkpoint file, belongs to."""
    folder = path.parent.parent if path.is_file() and path.parent.name == "checkpoints" else path
    return folder if (folder / SETTINGS).is_file() else None


def claim(folder: Path) -> IO[str]:
    """Make a run folder and take it for this process until it ends, however it ends; ConfigError if another trains there.

    The system frees the lock when the process dies, and workers that outlive it do not hold it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / ".lock").open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ConfigError(f"run.resume: {folder} is being trained by another process; wait for its end, or start a new run") from None
    return file


def never_began(folder: Path) -> bool:
    """Tell whether a folder is that of a run of which no step has left a trace."""
    return (folder / RECORD).exists() and not (folder / "metrics.csv").exists() and newest_checkpoint(folder) is None


def read_record(folder: Path) -> dict[str, Any]:
    """Return what run.json of a run folder says; empty when there is none."""
    try:
        return json.loads((folder / RECORD).read_text())
    except (OSError, json.JSONDecodeError):
        return {}


def start_record(config: RunConfig, folder: Path, step: int, command: list[str]) -> None:
    """Write config.yaml and run.json; a resumed run adds a start to the list."""
    record = read_record(folder)
    commit, dirty = _git(Path(__file__).resolve())
    start = {
        "time": datetime.datetime.now().timestamp(), "command": command, "folder": os.getcwd(), "host": socket.gethostname(),
        "python": platform.python_version(), "from_step": step, "git_commit": commit, "git_dirty": dirty,
        "packages": {name: _version(name) for name in PACKAGES},
    }
    record.update(status="running", fingerprint=fingerprint(config), method=config.method, seed=config.run.seed)
    record.setdefault("started", []).append(start)
    anew = dataclasses.replace(config, run=dataclasses.replace(config.run, resume=None))  # so that the file starts a run, too
    _write(folder / SETTINGS, to_yaml(anew))
    _write(folder / RECORD, json.dumps(record, indent=1))


def end_record(folder: Path, status: str, results: dict[str, float]) -> None:
    """Set the status of a run (finished, interrupted, failed) and its last figures."""
    record = read_record(folder)
    record.update(status=status, results=results)
    _write(folder / RECORD, json.dumps(record, indent=1))


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + PART)
    part.write_text(text)
    os.replace(part, path)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(source: Path) -> tuple[str | None, bool | None]:
    """Return the commit of the tree that the file `source` is in, and whether the tree has changes; None when it is not in git."""

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(source.parent), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if ask("ls-files", "--error-unmatch", str(source)) is None:
        return None, None
    status = ask("status", "--porcelain")
    return ask("rev-parse", "HEAD"), None if status is None else bool(status)


def command_line() -> list[str]:
    """Return the words that started this process."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
