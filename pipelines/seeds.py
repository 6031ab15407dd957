"""run.seeds=N: the same training under N seeds, one run folder each in one group, and their figures side by side at the end."""

import subprocess
import sys
from pathlib import Path

from pipelines.processes import rank
from pipelines.runs import read_record
from pipelines.schema import RunConfig

OWN = ("run.seeds", "run.seed", "run.name", "run.resume", "logger.group")  # words that each seed has anew


def train_seeds(config: RunConfig, words: list[str]) -> int:
    """Train under seeds run.seed, run.seed + 1, …, going on with what an earlier call of the same name has left; exit status as a run's."""
    from pipelines.resume import mark

    root = Path(config.run.root).expanduser().absolute()
    group = config.run.name or config.logger.group or f"{config.experiment or config.method}-{mark()}"
    kept = [word for word in words if word.partition("=")[0] not in OWN]
    for seed in range(config.run.seed, config.run.seed + config.run.seeds):
        name = f"{group}-s{seed}"
        if read_record(root / name).get("status") == "finished":
            continue
        if rank() == 0:
            print(f"seed {seed}:", flush=True)
        own = [f"run.seed={seed}", f"run.name={name}", f"logger.group={group}", "run.resume=auto"]
        status = subprocess.run([sys.executable, "-m", "pipelines", "train", *kept, *own]).returncode
        if status:
            print(f"seed {seed} ended with {status}; the same command with run.name={group} goes on from there", file=sys.stderr)
            return status
    if rank() > 0:
        return 0
    from pipelines.report import gather

    return gather([str(root), f"group={group}", f"to={root / group}"])
