"""Run folders: what is written down about a run, its checkpoints, and the lock that keeps a second process out."""

import dataclasses
import datetime
import fcntl
import json
import os
import platform
import shutil
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
ANSWERS = "parts"  # folder of what an evaluation has found so far
LOCK = ".lock"  # held by the process that trains
SETTINGS = "config.yaml"
PICTURE = "loss.png"
SWEEP = "sweep.yaml"  # in the folder of a search, beside the folders of its trials
JOB = "job"  # the folder of what a queued run needs: its code, its settings, its script, its log
LAST = "last.ckpt"  # a link to the newest checkpoint
BEST = "best.ckpt"  # a link to the one with the best validation
PART = ".part"  # ends the names of files and folders that are being written, or deleted
REST = "rest.pt"  # the file of a sharded checkpoint that is written last, see sharded.py
ALONE = ["strategy=single", "trainer.devices=1", "trainer.num_nodes=1", "checkpoint.sharded=false"]  # a run's settings, on one process
PACKAGES = ("fivefold", "torch", "lightning", "transformers", "torch-geometric", "deepspeed", "wandb", "omegaconf",
            "tokenizers", "datasets", "torchdata", "torchmetrics", "peft", "numpy")


def step_of(checkpoint: Path) -> int:
    """Read the optimizer step from a checkpoint: from its name, else from its content."""
    _, _, number = checkpoint.resolve().stem.partition("step=")
    if number.isdigit():
        return int(number)
    import torch

    file = checkpoint / REST if checkpoint.is_dir() else checkpoint
    return int(torch.load(file, map_location="cpu", mmap=True, weights_only=True)["global_step"])


def is_checkpoint(path: Path) -> bool:
    """Tell whether a path is a whole checkpoint: one file, or the folder of a sharded one."""
    if path.is_dir():
        return (path / ".metadata").is_file() and is_checkpoint(path / REST)
    return zipfile.is_zipfile(path)  # the index of a zip file is its end


def named_checkpoint(text: str) -> Path:
    """Return the checkpoint that the user has named; ConfigError if there is none, or not a whole one."""
    path = Path(text).expanduser().absolute()
    if not path.exists():
        raise ConfigError(f"checkpoint: {path} does not exist")
    if not is_checkpoint(path):
        raise ConfigError(f"checkpoint: {path} is not a whole checkpoint")
    return path


def put_in_place(part: Path, final: Path) -> None:
    """Give a finished file or folder its final name, in one step; something cut off under that name gives way."""
    if final.exists() and not is_checkpoint(final):
        remove_checkpoint(final)
    os.replace(part, final)
    sync(final.parent)


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint; a folder loses its name first, so that half of it is never taken for the whole."""
    if path.is_dir():
        doomed = path.with_name(f"{path.name}.old{PART}")
        os.replace(path, doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink()


def clear_parts(checkpoints: Path) -> None:
    """Delete what processes that were killed have left half written or half deleted."""
    for left in checkpoints.glob(f"*{PART}"):
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def sync(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def steps_saved(checkpoints: Path) -> list[Path]:
    """List the checkpoints of a folder, oldest first, leaving out what is cut off."""
    return [path for path in sorted(checkpoints.glob("step=*.ckpt"), key=step_of) if is_checkpoint(path)]


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the whole checkpoint of the latest step in a run folder."""
    found = steps_saved(folder / "checkpoints")
    return found[-1] if found else None


def run_of(path: Path) -> Path | None:
    """Return the run folder that `path`, itself one or a checkpoint, belongs to."""
    folder = path.parent.parent if path.parent.name == "checkpoints" and (path.is_file() or is_checkpoint(path)) else path
    return folder if (folder / SETTINGS).is_file() else None


def claim(folder: Path) -> IO[str]:
    """Make a run folder and take it for this process until it ends, however it ends; ConfigError if another trains there.

    The system frees the lock when the process dies, and workers that outlive it do not hold it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / LOCK).open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ConfigError(f"run.resume: {folder} is being trained by another process; wait for its end, or start a new run") from None
    return file


def is_claimed(folder: Path) -> bool:
    """Tell whether a process is training in a run folder."""
    if not (folder / LOCK).exists():
        return False
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


def never_began(folder: Path) -> bool:
    """Tell whether a folder is that of a run of which no step has left a trace, such as of one that ended before its record was written."""
    if not (folder / RECORD).exists():
        return (folder / LOCK).exists() and all(path.name in (LOCK, SETTINGS) or path.suffix == PART for path in folder.iterdir())
    kept = any(path.stat().st_size for path in (folder / ANSWERS).glob("*"))
    return not (folder / "metrics.csv").exists() and newest_checkpoint(folder) is None and not kept


def read_record(folder: Path) -> dict[str, Any]:
    """Return what run.json of a run folder says; empty when there is none."""
    try:
        return json.loads((folder / RECORD).read_text())
    except (OSError, json.JSONDecodeError):
        return {}


def start_record(config: RunConfig, folder: Path, step: int, command: list[str], work: str = "train") -> None:
    """Write config.yaml and run.json; a resumed run adds a start to the list. `work` is train or evaluate."""
    record = read_record(folder)
    commit, dirty = _git(Path(__file__).resolve())
    start = {
        "time": datetime.datetime.now().timestamp(), "work": work, "command": command, "folder": os.getcwd(),
        "host": socket.gethostname(), "python": platform.python_version(), "from_step": step, "git_commit": commit, "git_dirty": dirty,
        "packages": {name: _version(name) for name in PACKAGES},
    }
    record.update(status="running", fingerprint=fingerprint(config), method=config.method, seed=config.run.seed)
    record.setdefault("started", []).append(start)
    anew = dataclasses.replace(config, run=dataclasses.replace(config.run, resume=None))  # so that the file starts a run, too
    _write(folder / SETTINGS, to_yaml(anew))
    _write(folder / RECORD, json.dumps(record, indent=1))


def queue_record(config: RunConfig, folder: Path, command: list[str]) -> None:
    """Write config.yaml and run.json of a run that is to be queued; the commit is noted here, since the job runs a copy of the code."""
    record = read_record(folder)
    commit, dirty = _git(Path(__file__).resolve())
    record.update(status="queued", fingerprint=fingerprint(config), method=config.method, seed=config.run.seed)
    record["submitted"] = {"time": datetime.datetime.now().timestamp(), "command": command, "git_commit": commit, "git_dirty": dirty}
    _write(folder / SETTINGS, to_yaml(config))
    _write(folder / RECORD, json.dumps(record, indent=1))


def end_record(folder: Path, status: str, results: dict[str, float]) -> None:
    """Set the status of a run (finished, incomplete, interrupted, failed) and its last figures."""
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
