"""Jobs that are queued again: the note that a run leaves for its batch script, and when that is enough. Imports no torch.

Slurm warns a job some time before its limit (SIGUSR1) or takes its nodes away (SIGTERM). The run then saves at the end of a step and
leaves a note; its batch script, slurm/train.sbatch, finds the note and queues the job again. The script also runs this file before it
starts the processes, to stop a job that gets nowhere.
"""

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

from pipelines.runs import JOB, LOCK, newest_checkpoint, read_record, step_of
from pipelines.slurm import in_job

NOTE = "FIVEFOLD_REQUEUE"  # in the environment of a job: where the note goes
FINISHED = 3  # exit status by which slurm/train.sbatch learns that nothing is left to do
WAIT = 180.0  # seconds in which processes of an earlier start, on a node that Slurm has lost, must have ended


def warnings_of_end() -> tuple[signal.Signals, ...]:
    """List the signals after which a run saves and stops; in a job of Slurm also the one that is sent before the time limit."""
    return (signal.SIGINT, signal.SIGTERM, *((signal.SIGUSR1,) if in_job() else ()))


def is_queued_again() -> bool:
    """Tell whether a batch script waits for a note."""
    return NOTE in os.environ


def leave_note(step: int) -> None:
    """Ask the batch script to queue the job again; the run is saved at `step`."""
    if is_queued_again():
        Path(os.environ[NOTE]).write_text(f"saved at step {step}\n")


def stalled(folder: Path) -> int:
    """Count the latest starts of a run that all began where its newest checkpoint stands: none of them got any further."""
    newest = newest_checkpoint(folder)
    step = step_of(newest) if newest else 0
    count = 0
    for start in reversed(read_record(folder).get("started", [])):
        if start["from_step"] != step:
            break
        count += 1
    return count


def wait_for_others(folder: Path, seconds: float) -> bool:
    """Wait until no process of an earlier start trains in a run folder; False if one still does after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        with (folder / LOCK).open("a") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError:
                if time.monotonic() >= end:
                    return False
        time.sleep(1)


def main(folder: Path, tries: int) -> int:
    """Return 0 if a job may start its processes, FINISHED if its run has ended well, and 1 with a line that says why not."""
    if read_record(folder).get("status") == "finished":  # the job was queued again between the end of its run and its own
        return FINISHED
    count = stalled(folder)
    if count >= tries:
        print(f"error: given up: {count} starts in a row began at the same step and saved nothing after it (cluster.tries={tries}). "
              f"What stopped them stands above in {folder / JOB / 'log.txt'}; then fivefold submit -- train run.resume={folder}")
        return 1
    if not wait_for_others(folder, WAIT):
        print(f"error: processes of an earlier start still train in {folder} after {WAIT:.0f} s; end them on their node")
        return 1
    return FINISHED if read_record(folder).get("status") == "finished" else 0  # by then, it may have come to its end


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
