"""fivefold sweep NAME --slurm: the agents of a sweep as an array of jobs, each trial with an srun of its own."""

import dataclasses
from pathlib import Path
from typing import Any

from pipelines.batch import Job, script, snapshot
from pipelines.config import ConfigError
from pipelines.runs import JOB
from pipelines.submit import hand_over, no_cluster
from pipelines.sweep import check, made_online

FILE, LOG = "sweep.sbatch", "log-%a.txt"


def in_slurm(sweep: Any, numbers: dict[str, Any], rest: list[str], dry: bool) -> int:
    """Make the sweep on W&B's server and queue its agents; with `dry`, check all values and show the script."""
    config = check(sweep, [*rest, *([] if any(word.startswith("cluster=") for word in rest) else ["cluster=slurm"])])
    if config.logger.name != "wandb" or config.logger.mode in ("offline", "disabled"):
        raise ConfigError("logger: a sweep in Slurm learns from W&B how its trials end; write logger=wandb logger.mode=auto")
    folder = Path(config.run.root).expanduser().absolute() / (config.run.name or f"sweep-{sweep.name}")
    section = dataclasses.replace(config.run, name=None, root=str(folder))
    job = Job(folder, dataclasses.replace(config, run=section))
    array, trials = numbers["array"], numbers["trials"] or 0
    t = config.trainer
    asked = f"{array} agents, each with {t.num_nodes} nodes x {t.devices} tasks = {t.num_nodes * t.devices} processes a trial"
    if dry:
        print(script(job, FILE, LOG, array, {"SWEEP": "ENTITY/PROJECT/ID", "TRIALS": str(trials)}))
        print(f"{sweep.label}: {len(sweep.corners())} commands compose; {asked}; nothing was made or queued")
        return 0
    if reason := no_cluster():
        raise ConfigError(f"sweep: {reason}. Go to a login node of a Slurm cluster, leave --slurm out, or add --dry-run")
    if folder.exists():
        raise ConfigError(f"run.name: {folder} exists already; sbatch {folder / JOB / FILE} queues more agents for it, "
                          "or choose another name")
    path = made_online(sweep, config, [*_shared(rest), f"run.root={folder}", "cluster=slurm"])
    file = snapshot(job, script(job, FILE, LOG, array, {"SWEEP": path, "TRIALS": str(trials)}), FILE)
    print(f"job {hand_over(file)} is queued: {asked}")
    print(f"sweep: {path}; trials go to {folder}; logs: {folder / JOB / LOG.replace('%a', '*')}")
    return 0


def _shared(rest: list[str]) -> list[str]:
    """Leave out what the sweep itself decides for its trials."""
    return [word for word in rest if not word.startswith(("run.root=", "run.name=", "run.resume=", "cluster="))]
