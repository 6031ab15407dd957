"""Jobs on a real Slurm of three nodes on this machine: whatever ends them early, they end as if nothing had."""

import contextlib
import os
import re
import signal
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.exactness import assert_same, latest, rows, state
from tests.slurm.cluster import Cluster, missing

pytestmark = pytest.mark.slow
STEPS = 60
EARLY = 5  # the step after which a job is disturbed


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A running Slurm of three nodes."""
    if reason := missing():
        pytest.skip(reason)
    cluster = Cluster(str(tmp_path_factory.mktemp("slurm")), nodes=3)
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def words(root, cache):
    """Words of a run of two processes and some seconds."""
    return ["experiment=fira_debug", "trainer.threads=1", f"run.root={root}", f"data.cache={cache}", f"trainer.max_steps={STEPS}",
            "trainer.val_every_n_steps=30", "trainer.log_every_n_steps=1", "optim.schedule.warmup=2"]


@pytest.fixture(scope="module")
def undisturbed(fivefold_in, words, root):
    """Make, once for each strategy, the run that two processes of this machine train without an interruption."""
    made = {}

    def make(strategy):
        if strategy not in made:
            done = fivefold_in(root, "train", *words, f"strategy={strategy}", "trainer.devices=2", f"run.name=here-{strategy}")
            assert done.returncode == 0, done.stdout + done.stderr
            made[strategy] = root / f"here-{strategy}"
        return made[strategy]

    return make


@pytest.fixture
def submit(slurm, fivefold_in, words, root):
    """Queue a run on two nodes; return the number of its job and its folder."""

    def queue(name, *more, nodes=2):
        flags = ["--nodes", str(nodes), "--time", "30", "--job-name", name]
        done = fivefold_in(root, "submit", *flags, "--", "train", *latest([*words, *more]), env=slurm.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        number = int(re.search(r"job (\d+) is queued", done.stdout).group(1))
        return number, root / name

    return queue


def log(folder):
    path = folder / "job" / "log.txt"
    return path.read_text() if path.exists() else ""


def wait_until(happened, seconds, folder):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, log(folder)
        time.sleep(0.1)


def processes_of(slurm, folder):
    """List the processes that train a run, on whatever node."""
    named = f"config={folder}/job/config.yaml".encode()
    pids = [pid for node in range(1, slurm.nodes + 1) for pid in slurm.processes(node)]
    words = {}
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended by now
            words[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return [pid for pid, found in words.items() if found[0] == sys.executable.encode() and named in found]


def hold(slurm, folder, count=2):
    """Stop all processes of a run in the middle of a step, as early as it has made some; what comes next then finds it there."""
    wait_until(lambda: f"step {EARLY}/" in log(folder), 120, folder)
    held = processes_of(slurm, folder)
    assert len(held) == count, log(folder)
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    return held


def let_go(held):
    for pid in held:
        os.kill(pid, signal.SIGCONT)


def has_pending(pid, number):
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(re.search(r"ShdPnd:\s*(\w+)", status).group(1), 16) >> (number - 1) & 1)


def assert_equal(one, two):
    assert_same(state(one), state(two))
    assert rows(one) == rows(two)
    assert len(rows(one)) == STEPS


def test_a_job_that_reaches_its_time_limit_on_two_nodes_goes_on_and_equals_the_uninterrupted_run(slurm, submit, undisturbed):
    number, folder = submit("limit", "strategy=ddp", "cluster.margin=60")
    held = hold(slurm, folder)
    limit = datetime.now() + timedelta(seconds=62)
    slurm.ask("scontrol", "update", f"JobId={number}", f"EndTime={limit:%Y-%m-%dT%H:%M:%S}")
    wait_until(lambda: all(has_pending(pid, signal.SIGUSR1) for pid in held), 60, folder)  # Slurm looks at limits every half minute
    let_go(held)
    assert slurm.wait_for(number, "COMPLETED", "FAILED", "TIMEOUT")["JobState"] == "COMPLETED", log(folder)
    assert slurm.job(number)["Restarts"] == "1"
    assert re.search(r"queued again: saved at step \d+\n", log(folder))
    assert_equal(undisturbed("ddp"), folder)


def test_scontrol_requeue_of_sharded_training_equals_the_uninterrupted_run_in_one_wandb_run(slurm, submit, undisturbed):
    number, folder = submit("requeued", "strategy=fsdp", "logger=wandb", "logger.mode=offline")
    hold(slurm, folder)
    slurm.ask("scontrol", "requeue", str(number))  # wakes them as well
    slurm.wait_for(number, "PENDING", timeout=30)
    assert slurm.wait_for(number, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", log(folder)
    assert re.search(r"resumed at step [1-9]", log(folder)), log(folder)
    assert_equal(undisturbed("fsdp"), folder)
    kept = {path.name.rpartition("-")[2] for path in (folder / "wandb").glob("offline-run-*")}
    assert kept == {(folder / "wandb-id").read_text()}


def test_a_job_whose_node_is_lost_goes_on_elsewhere_from_its_last_checkpoint_when_nobody_trains_there(slurm, submit, undisturbed):
    number, folder = submit("lost", "strategy=ddp")
    held = hold(slurm, folder)
    slurm.kill_daemon(1)  # that of the first process, which lives on and holds the run
    slurm.wait_for(number, "PENDING", timeout=90)
    job = slurm.wait_for(number, "RUNNING", timeout=90)
    try:
        assert (job["Restarts"], job["NodeList"]) == ("1", "node[2-3]")
        assert "resumed" not in log(folder)
        let_go([pid for pid in held if Path(f"/proc/{pid}").exists()])
        assert slurm.wait_for(number, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", log(folder)
        assert re.search(r"resumed at step [48]\b", log(folder)), log(folder)  # saved every four steps, and held soon after the fifth
        assert_equal(undisturbed("ddp"), folder)
    finally:
        slurm.kill_node(1)
        slurm.start_node(1)


def test_a_cancelled_job_saves_and_is_not_queued_again(slurm, submit):
    number, folder = submit("cancelled", "strategy=single", nodes=1)
    hold(slurm, folder, count=1)
    slurm.ask("scancel", str(number))
    slurm.wait_for(number, "CANCELLED", timeout=60)
    wait_until(lambda: "stopped by Slurm" in log(folder), 30, folder)
    assert slurm.job(number)["Restarts"] == "0"
    step = int(re.search(r"saved at step (\d+)", (folder / "job" / "requeue").read_text()).group(1))
    assert (folder / "checkpoints" / f"step={step:08d}.ckpt").exists()


REFUSED = {
    ("srun --nodes=2 --ntasks=2", "trainer.num_nodes=1"): "srun started 2 nodes x 1 tasks = 2 processes, but trainer.num_nodes=1",
    ("srun --nodes=2 --ntasks=3", "trainer.num_nodes=2 trainer.devices=2"): "srun started 2 + 1 tasks on 2 nodes, and each must have 2",
    ("srun --nodes=1 --ntasks=1 --export=ALL,RANK=3,WORLD_SIZE=8", "trainer.num_nodes=1"): "RANK=3 WORLD_SIZE=8: left over",
    ("", "trainer.num_nodes=2"): "2 nodes, but srun did not start this process",
}


@pytest.mark.parametrize(("launch", "sizes"), REFUSED)
def test_wrong_processes_are_refused_in_one_line(slurm, words, tmp_path, launch, sizes):
    strategy = "single" if sizes == "trainer.num_nodes=1" else "ddp"
    python = f"{sys.executable} -P -m pipelines train {' '.join(words)} strategy={strategy} {sizes}"
    (tmp_path / "job").write_text(f"#!/bin/bash\nexport PYTHONPATH={Path(__file__).resolve().parents[2]}\n{launch} {python}\n")
    number = slurm.ask("sbatch", "--parsable", "--nodes=2", "--ntasks=3", f"--output={tmp_path}/log", f"{tmp_path}/job")
    assert slurm.wait_for(int(number), "COMPLETED", "FAILED", timeout=60)["JobState"] == "FAILED"
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if not line.startswith("srun: ")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert REFUSED[launch, sizes] in lines[0]
