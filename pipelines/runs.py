"""Run folders: where a run lives, what is written down about it, and which unfinished run `run.resume` means."""

import datetime
import json
import os
import platform
import socket
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pipelines.config import ConfigError, fingerprint, to_yaml
from pipelines.schema import RunConfig

RECORD = "run.json"
PACKAGES = ("fivefold", "torch", "lightning", "transformers", "torch-geometric", "deepspeed", "wandb", "omegaconf",
            "tokenizers", "datasets", "torchdata", "torchmetrics", "peft", "numpy")


@dataclass(frozen=True)
class Place:
    """The folder of a run, and the checkpoint it goes on from, if any."""

    folder: Path
    checkpoint: Path | None = None

    @property
    def step(self) -> int:
        """Optimizer steps that the checkpoint holds; 0 without one."""
        return step_of(self.checkpoint) if self.checkpoint else 0


def step_of(checkpoint: Path) -> int:
    """Read the optimizer step from a checkpoint: from its name, else from its content."""
    _, _, number = checkpoint.stem.partition("step=")
    if number.isdigit():
        return int(number)
    import torch

    return int(torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["global_step"])


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of the latest step in a run folder; last.ckpt, written at the end, wins."""
    last = folder / "checkpoints" / "last.ckpt"
    if last.exists():
        return last
    steps = sorted((folder / "checkpoints").glob("step=*.ckpt"))
    return steps[-1] if steps else None


def place_for(config: RunConfig) -> Place:
    """Decide the folder of a run, and where it resumes; raise ConfigError for a folder that is taken or not there."""
    root = Path(config.run.root).expanduser().absolute()
    resume = config.run.resume
    if resume is None:
        folder = root / (config.run.name or _new_name(config))
        if config.run.name and folder.exists():
            raise ConfigError(f"run.name: {folder} exists already; choose another name, or run.resume=auto to go on with it")
        return Place(folder)
    if resume == "auto":
        return _unfinished(config, root)
    path = Path(resume).expanduser().absolute()
    if path.is_dir():
        found = newest_checkpoint(path)
        if found is None:
            raise ConfigError(f"run.resume: {path} holds no checkpoint; name a run folder, a .ckpt file, or auto")
        return Place(path, found)
    if not path.is_file():
        raise ConfigError(f"run.resume: {path} does not exist; name a run folder, a .ckpt file, or auto")
    return Place(path.parent.parent if path.parent.name == "checkpoints" else root / (config.run.name or _new_name(config)), path)


def _new_name(config: RunConfig) -> str:
    what = config.experiment or config.method
    optim = config.choices.get("optim", "optim")
    return f"{what}-{optim}-s{config.run.seed}-{datetime.datetime.now():%Y%m%d-%H%M%S-%f}"[:-3]


def _unfinished(config: RunConfig, root: Path) -> Place:
    """Find the newest run with the same settings that has not finished; none: a new folder."""
    wanted = fingerprint(config)
    folders = [root / config.run.name] if config.run.name else sorted(root.glob("*"))
    found: list[tuple[float, Path]] = []
    for folder in folders:
        record = read_record(folder)
        if record.get("fingerprint") == wanted and (config.run.name or record.get("status") != "finished"):
            found.append((record["started"][-1]["time"], folder))
    if found:
        folder = max(found)[1]
        return Place(folder, newest_checkpoint(folder))
    if config.run.name and (root / config.run.name).exists():
        raise ConfigError(f"run.resume: {root / config.run.name} was made with other settings; compare its config.yaml, or choose another run.name")
    return Place(root / (config.run.name or _new_name(config)))


def read_record(folder: Path) -> dict[str, Any]:
    """Return what run.json of a run folder says; empty when there is none."""
    try:
        return json.loads((folder / RECORD).read_text())
    except (OSError, json.JSONDecodeError):
        return {}


def start_record(config: RunConfig, place: Place, command: list[str]) -> None:
    """Write config.yaml and run.json; a resumed run adds a start to the list."""
    place.folder.mkdir(parents=True, exist_ok=True)
    record = read_record(place.folder)
    commit, dirty = _git()
    start = {
        "time": datetime.datetime.now().timestamp(), "command": command, "host": socket.gethostname(), "python": platform.python_version(),
        "from_step": place.step, "git_commit": commit, "git_dirty": dirty, "packages": {name: _version(name) for name in PACKAGES},
    }
    record.update(status="running", fingerprint=fingerprint(config), method=config.method, seed=config.run.seed)
    record.setdefault("started", []).append(start)
    if not (place.folder / "config.yaml").exists():
        _write(place.folder / "config.yaml", to_yaml(config))
    _write(place.folder / RECORD, json.dumps(record, indent=1))


def end_record(folder: Path, status: str, results: dict[str, float]) -> None:
    """Set the status of a run (finished, interrupted, failed) and its last figures."""
    record = read_record(folder)
    record.update(status=status, results=results)
    _write(folder / RECORD, json.dumps(record, indent=1))


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git() -> tuple[str | None, bool | None]:
    """Return the commit of the source tree that runs, and whether it has changes; None when it is not in git."""
    source = Path(__file__).resolve().parent

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(source), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if ask("ls-files", "--error-unmatch", str(Path(__file__).resolve())) is None:
        return None, None
    status = ask("status", "--porcelain")
    return ask("rev-parse", "HEAD"), None if status is None else bool(status)


def command_line() -> list[str]:
    """Return the words that started this process."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
