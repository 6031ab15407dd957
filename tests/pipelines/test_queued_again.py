"""The batch script of a run, by bash and without a Slurm: when it queues its job again, when it gives up and why, when it has finished."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipelines import requeue
from pipelines.requeue import main, stalled, wait_for_others
from pipelines.runs import end_record
from tests.pipelines.fake_slurm import FakeSlurm

REPOSITORY = Path(__file__).resolve().parents[2]
SAVES = "echo 'saved at step 8' >$FIVEFOLD_REQUEUE"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    fake = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", fake.path)
    return fake


@pytest.fixture
def folder(here, slurm, tmp_path):
    """The folder of a run that was queued, with three requeues and two tries."""
    done = here("submit", "--job-name", "run", "--", "train", "experiment=fira_debug", f"run.root={tmp_path}", "cluster.requeues=3",
                "cluster.tries=2")
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


@pytest.fixture
def job(folder, slurm):
    """Start the batch script as slurmd would, for its n-th start, with something in the place of the training."""

    def start(training, restarts=0, wait=True, **more):
        environment = {**os.environ, "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node1", "SLURM_RESTART_COUNT": str(restarts),
                       "TRAINING": training, "PYTHONPATH": str(REPOSITORY), **more}
        process = subprocess.Popen(["bash", str(folder / "job" / "train.sbatch")], env=environment, text=True, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT)
        return (process.communicate(timeout=60)[0], process.returncode) if wait else process

    return start


def has_started(folder, *steps, status="running"):
    record = json.loads((folder / "run.json").read_text())
    record.update(started=[{"from_step": step, "time": 1.0} for step in steps], status=status)
    (folder / "run.json").write_text(json.dumps(record))


def save(folder, step):
    (folder / "checkpoints").mkdir(exist_ok=True)
    torch.save({"global_step": step}, folder / "checkpoints" / f"step={step:08d}.ckpt")


def trainings(slurm):
    return [call for call in slurm.calls("srun") if "pipelines train" in call]


def test_a_run_that_saved_is_queued_again_and_one_that_ended_is_not(job, slurm):
    said, status = job(SAVES)
    assert (status, slurm.calls("scontrol")) == (0, ["requeue 4711"])
    assert "queued again: saved at step 8" in said
    said, status = job("exit 0")
    assert (status, slurm.calls("scontrol")) == (0, ["requeue 4711"])
    assert said.rstrip().endswith("finished")


def test_a_run_that_failed_is_not_queued_again_and_its_status_is_the_jobs(job, slurm):
    said, status = job("echo 'error: no such file'; exit 7")
    assert (status, slurm.calls("scontrol")) == (7, [])
    assert "the run failed with exit status 7" in said


def test_the_limit_of_requeues_ends_a_job_with_the_words_to_go_on(job, slurm, folder):
    said, status = job(SAVES, restarts=2)
    assert (status, len(slurm.calls("scontrol"))) == (0, 1)
    said, status = job(SAVES, restarts=3)
    assert (status, len(slurm.calls("scontrol"))) == (1, 1)
    assert "error: queued again 3 times, which is the limit (cluster.requeues=3)." in said
    assert f"fivefold submit -- train run.resume='{folder}' cluster.requeues=N" in said
    before = len(trainings(slurm))
    said, status = job(SAVES, restarts=4)  # Slurm itself has queued it again, because nodes failed
    assert (status, len(trainings(slurm))) == (1, before)
    assert "which is the limit" in said


def test_a_crash_loop_stops_after_the_tries_and_says_why(job, slurm, folder):
    has_started(folder, 0)
    _, status = job(SAVES, restarts=1)
    assert (status, len(trainings(slurm))) == (0, 1)
    has_started(folder, 0, 0)
    said, status = job(SAVES, restarts=2)
    assert (status, len(trainings(slurm))) == (1, 1)
    assert "error: given up: 2 starts in a row began at the same step and saved nothing after it (cluster.tries=2)" in said
    save(folder, 4)
    _, status = job(SAVES, restarts=2)
    assert (status, len(trainings(slurm))) == (0, 2)


def test_a_job_that_is_queued_again_after_its_run_has_finished_ends_as_finished(job, slurm, folder):
    save(folder, 9)
    has_started(folder, 0, 4, status="finished")
    said, status = job("exit 9", restarts=2)
    assert (status, trainings(slurm)) == (0, [])
    assert said.rstrip().endswith("finished, in an earlier start")
    assert "error" not in said


def test_a_cancelled_job_is_not_queued_again_and_a_refused_requeue_is_an_error(job, slurm):
    said, status = job(SAVES, STATE="COMPLETING")
    assert (status, slurm.calls("scontrol")) == (1, [])
    assert "stopped by Slurm" in said
    said, status = job(SAVES, REFUSES="1")
    assert (status, slurm.calls("scontrol")) == (1, ["requeue 4711"])
    assert "error: scontrol requeue failed. To go on: fivefold submit -- train run.resume=" in said


@pytest.mark.parametrize(("training", "note"), [
    (f"trap \"{SAVES}; exit 0\" USR1; echo ready; while :; do sleep 0.05; done", "saved at step 8"),
    ("echo ready; exec sleep 60", "stopped before its first step"),  # still importing: the signal kills it
])
def test_the_warning_before_the_limit_reaches_the_processes_and_the_job_is_queued_again(training, note, job, slurm):
    process = job(training, wait=False)
    for line in process.stdout:
        if line.startswith("ready"):
            break
    time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    said = process.communicate(timeout=60)[0]
    assert (process.returncode, slurm.calls("scontrol")) == (0, ["requeue 4711"])
    assert f"queued again: {note}" in said


def test_what_another_launch_left_in_the_shell_does_not_reach_the_processes(job):
    said, _ = job("env | sort", RANK="5", LOCAL_RANK="1", WORLD_SIZE="8", MASTER_ADDR="elsewhere", SLURM_CPUS_PER_TASK="3")
    names = dict(line.partition("=")[::2] for line in said.splitlines())
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"} & set(names)
    assert names["SRUN_CPUS_PER_TASK"] == "3"


@pytest.mark.parametrize(("starts", "saved", "count"), [
    ([], None, 0), ([0], None, 1), ([0, 0], None, 2), ([0, 0], 4, 0), ([0, 4, 4], 4, 2), ([4, 0, 4], 4, 1), ([0, 4], 8, 0),
])
def test_starts_that_got_nowhere_are_those_since_the_newest_checkpoint(starts, saved, count, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    has_started(tmp_path, *starts)
    if saved:
        save(tmp_path, saved)
    assert stalled(tmp_path) == count


def test_a_start_waits_until_a_process_that_still_trains_has_ended(tmp_path, capsys, monkeypatch):
    hold = ("import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); "
            "sys.stdin.readline()")
    command = [sys.executable, "-c", hold, str(tmp_path / ".lock")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    assert not wait_for_others(tmp_path, 0)
    monkeypatch.setattr("pipelines.requeue.WAIT", 0.0)
    assert main(tmp_path, 3) == 1
    assert "processes of an earlier start still train in" in capsys.readouterr().out
    other.communicate("go\n")
    assert wait_for_others(tmp_path, 0)
    with (tmp_path / ".lock").open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # and the lock was given back
    assert main(tmp_path, 3) == 0


def test_a_run_that_ends_well_while_its_next_start_waits_is_not_started_again(tmp_path, monkeypatch):
    (tmp_path / "run.json").write_text("{}")
    has_started(tmp_path, 0, 4)
    monkeypatch.setattr(requeue, "wait_for_others", lambda folder, seconds: not end_record(folder, "finished", {}))
    assert main(tmp_path, 3) == requeue.FINISHED
