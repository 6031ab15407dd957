"""What W&B keeps of a finished run beside figures: what it learned from, by digest, and its checkpoints, by place or whole.

Nothing is copied for either: the list of the data is some kilobytes, and a checkpoint that is uploaded is read where it lies.
"""

import dataclasses
import glob
import hashlib
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.runs import BEST, LAST, step_of
from pipelines.schema import Component, RunConfig

WHOLE = 64 * 2**20  # bytes up to which a file's digest is that of all of it
END = 2**20  # bytes at each end of a larger file that count, beside its size
MOST = 5000  # files listed one by one
NO_DATA = ("cache", "workers", "seed")  # keys that leave the data as they are, or are listed apart


def keep_artifacts(run: Any, config: RunConfig, folder: Path) -> None:
    """Log what the run learned from and its checkpoints, as the settings say; what fails costs a warning, not the run."""
    try:
        if config.logger.data:
            log_data(run, config)
        if config.logger.checkpoints != "off":
            log_checkpoints(run, folder / "checkpoints", config, upload=config.logger.checkpoints == "upload")
    except Exception as error:  # the client, its server, or a file that has gone
        print(f"warning: W&B has not all artifacts of this run ({type(error).__name__}: {' '.join(str(error).split())})", file=sys.stderr)


def log_data(run: Any, config: RunConfig) -> None:
    """Log the list of the data; runs that learned from the same share one version of it."""
    import wandb

    content = data_list(config.data, config.run.seed)
    path = Path(run.dir).parent / "data.json"
    path.write_text(json.dumps(content, indent=1, sort_keys=True))
    artifact = wandb.Artifact(f"data-{config.data.target.rpartition('.')[0].rpartition('.')[2]}", type="dataset",
                              metadata={"files": len(content["files"]), "bytes": sum(file["bytes"] for file in content["files"])})
    artifact.add_file(str(path), policy="immutable", skip_cache=True)
    run.log_artifact(artifact)


def data_list(data: Component, seed: int) -> dict[str, Any]:
    """Describe data by what decides them: files on this machine by digest, settings, and the code and seed of what is made.

    No path of this machine is in it, so that the same data give the same list anywhere.
    """
    defaults = dataclasses.asdict(type(data.config)())
    values = {name: value for name, value in dataclasses.asdict(data.config).items() if name not in NO_DATA}
    places = {name: found for name, value in values.items() if value != defaults[name] and (found := _places(value))}
    settings = {name: value for name, value in values.items() if name not in places}
    files = [{"key": name, **row} for name, found in places.items() for place in found for row in listed(place)]
    own = getattr(data.config, "seed", None)
    made = {} if files else {"seed": seed if own is None else own, "python": platform.python_version()}
    return {"made_by": data.target, "code": _code(data.target), "settings": settings, "files": files, **made}


def _places(value: Any) -> list[Path]:
    """Return the files and folders that a setting names, itself or by a pattern."""
    texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [Path(found) for text in texts if isinstance(text, str) and text
            for found in sorted(glob.glob(os.path.expanduser(text))) or [os.path.expanduser(text)] if os.path.exists(found)]


def listed(place: Path) -> Iterator[dict[str, Any]]:
    """Yield name, size and digest of a file or of each in a folder; of very many files, one row with the digest of names and sizes."""
    if place.is_file():
        yield _row(place, place.name)
        return
    found = sorted(path for path in place.rglob("*") if path.is_file())
    if len(found) <= MOST:
        yield from (_row(path, path.relative_to(place).as_posix()) for path in found)
        return
    told = [(path.relative_to(place).as_posix(), path.stat().st_size) for path in found]
    yield {"name": ".", "count": len(told), "bytes": sum(size for _, size in told), "sha256_of": "names and sizes",
           "sha256": hashlib.sha256(json.dumps(told).encode()).hexdigest()}


def _row(path: Path, name: str) -> dict[str, Any]:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE:
            return {"name": name, "bytes": size, "sha256_of": "content", "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        digest = hashlib.sha256(f"{size} ".encode() + file.read(END))
        file.seek(-END, os.SEEK_END)
        digest.update(file.read())
    return {"name": name, "bytes": size, "sha256_of": "size, first and last megabyte", "sha256": digest.hexdigest()}


def _code(target: str) -> str:
    """Digest the source files of the package that makes the data."""
    spec = importlib.util.find_spec(target.rpartition(".")[0])
    assert spec is not None
    assert spec.origin is not None
    digest = hashlib.sha256()
    for path in sorted(Path(spec.origin).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def log_checkpoints(run: Any, checkpoints: Path, config: RunConfig, upload: bool) -> None:
    """Log the best and the newest checkpoint as versions of one artifact, the newest last, as one version where they are the same."""
    import wandb

    aliases: dict[Path, list[str]] = {}
    for name in (BEST, LAST):
        if (checkpoints / name).exists():
            aliases.setdefault((checkpoints / name).resolve(), []).append(name.removesuffix(".ckpt"))
    for path, names in aliases.items():
        size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")))
        artifact = wandb.Artifact(f"checkpoint-{run.id}", type="model", metadata={
            "step": step_of(path), "bytes": size, "method": config.method, "best_by": config.checkpoint.best, "whole": upload})
        if not upload:
            artifact.add_reference(path.as_uri(), name=path.name, checksum=False)
        elif path.is_dir():
            artifact.add_dir(str(path), name=path.name, policy="immutable", skip_cache=True)
        else:
            artifact.add_file(str(path), name=path.name, policy="immutable", skip_cache=True)
        run.log_artifact(artifact, aliases=[*names, f"step-{step_of(path)}"])
