"""The processes of one run: which of them writes, and by what mark all find the same folder. Imports no torch."""

import datetime
import os

from pipelines.slurm import launcher

RANKS = ("RANK", "LOCAL_RANK")  # set by torchrun, and by Lightning for the processes that it starts
MARK = "FIVEFOLD_MARK"  # handed to the processes that Lightning starts


def rank() -> int:
    """Return the number of this process among those of its run; 0 for the first, and for one that is alone."""
    names = ("SLURM_PROCID",) if launcher() == "srun" else RANKS
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 0)


def mark() -> str:
    """Return what tells this launch from others, the same in all its processes: a job step of Slurm, a run of torchrun, or the time."""
    if MARK not in os.environ:
        elastic = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        now = f"{datetime.datetime.now():%Y%m%d-%H%M%S-%f}"[:-3]
        slurm = f"job{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}" if launcher() == "srun" else None
        os.environ[MARK] = slurm or (f"torchrun-{elastic}" if elastic != "none" else now)
    return os.environ[MARK]
