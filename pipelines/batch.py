"""The batch script of a run, and the folder that keeps all it needs: its code, its settings, the site's file."""

import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.config import ConfigError, to_yaml
from pipelines.doctor import OURS
from pipelines.runs import JOB
from pipelines.schema import RunConfig

SOURCE = Path(__file__).resolve().parent.parent  # the folder that our packages lie in
PLACES = (SOURCE / "slurm", Path(sys.prefix) / "share" / "fivefold" / "slurm")  # of train.sbatch: from source, installed
SIZES = {"time": "--time", "partition": "--partition", "account": "--account", "qos": "--qos", "constraint": "--constraint",
         "memory": "--mem", "cpus": "--cpus-per-task"}  # keys of the cluster section -> options of sbatch


@dataclass(frozen=True)
class Job:
    """A run that is to be queued: its folder, and its settings, which name the same folder."""

    folder: Path
    config: RunConfig


def script(job: Job, file: str = "train.sbatch", log: str = "log.txt", array: int = 0, more: Mapping[str, str] = {}) -> str:
    """Write the batch script: options, variables with `more` of them, and `file` of slurm/ as it is; `array` counts copies of the job."""
    cluster = job.config.cluster
    variables = {**more, "FOLDER": str(job.folder), "PYTHON": cluster.python or ("python3" if cluster.container else sys.executable),
                 "REQUEUES": str(cluster.requeues), "TRIES": str(cluster.tries)}
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options(job, log, array)), ""]
    lines += [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    lines += [f"CONTAINER=({shlex.join(_container(job))})", "", _file(file).read_text()]
    return "\n".join(lines)


def options(job: Job, log: str = "log.txt", array: int = 0) -> list[str]:
    """List the options of sbatch: one task a device, always counted by node, since totals may be spread unevenly.

    `log` names a file in the job folder; in it, %a is the number of a copy.
    """
    trainer, cluster = job.config.trainer, job.config.cluster
    found = [f"--job-name={_quoted(job.folder.name)}", f"--nodes={trainer.num_nodes}", f"--ntasks-per-node={trainer.devices}"]
    if trainer.accelerator != "cpu":
        kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
        found.append(f"--gpus-per-node={kind}{trainer.devices}")
    sizes = {option: getattr(cluster, key) for key, option in SIZES.items()}
    found += [f"{option}={_quoted(str(value))}" for option, value in sizes.items() if value is not None]
    found += [f"--output={_quoted(str(job.folder / JOB / log)).replace('%%a', '%a')}", "--open-mode=append", "--requeue",
              f"--signal=B:USR1@{cluster.margin}", f"--chdir={_quoted(str(Path.cwd()))}"]
    found += [f"--array=0-{array - 1}"] if array else []
    return found + list(cluster.options)


def _quoted(value: str) -> str:
    """Quote a value as sbatch reads it in a script, not as a shell does; it takes % for the start of a pattern."""
    if '"' in value or "\n" in value:
        raise ConfigError(f"submit: {value!r} has a quotation mark or a line break, which sbatch does not take; choose another")
    value = value.replace("%", "%%")
    return f'"{value}"' if set(value) & set(" '#\\&|()<>;*?[]$`") else value


def _container(job: Job) -> list[str]:
    """Return the options of srun for a container, which sees the run folders as the nodes do."""
    cluster = job.config.cluster
    if cluster.container is None:
        return []
    root = job.folder.parent
    mounts = f"{root}:{root}" + (f",{cluster.mounts}" if cluster.mounts else "")
    return [f"--container-image={cluster.container}", f"--container-mounts={mounts}"]


def snapshot(job: Job, text: str, file: str = "train.sbatch") -> Path:
    """Copy into the run folder all that the job reads, `text` as its script, and return that; an earlier job's log is kept."""
    place = job.folder / JOB
    site = Path(job.config.cluster.env).expanduser() if job.config.cluster.env else _file("env.sh")
    if not site.is_file():
        raise ConfigError(f"cluster.env: no such file {site}")
    shutil.rmtree(place / "code", ignore_errors=True)
    for package in OURS:
        shutil.copytree(SOURCE / package, place / "code" / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    shutil.copyfile(site, place / "env.sh")
    (place / "config.yaml").write_text(to_yaml(job.config))
    path = place / file
    path.write_text(text)
    return path


def _file(name: str) -> Path:
    found = next((place / name for place in PLACES if (place / name).is_file()), None)
    if found is None:
        raise ConfigError(f"submit: slurm/{name} is missing from {' and '.join(map(str, PLACES))}; install fivefold again")
    return found
