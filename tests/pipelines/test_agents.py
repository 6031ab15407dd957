"""Agents of a sweep in Slurm, by bash and without a Slurm or W&B: what each trial is started with, and when an agent comes again."""

import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from tests.pipelines.fake_slurm import FakeSlurm

REPOSITORY = Path(__file__).resolve().parents[2]
AGENT = """#!/bin/bash
# stands for python: as W&B's agent it starts one trial, until there are none
if [[ $* == "-P -m wandb agent --count 1 me/fivefold/abc" ]]; then
    number=$(cat "$FAKE/number" 2>/dev/null || echo 0)
    if [ "$number" -ge "$THERE_ARE" ]; then exit 0; fi
    echo $((number + 1)) >"$FAKE/number"
    WANDB_RUN_ID=run$number WANDB_SWEEP_ID=abc WANDB_API_KEY=secret fivefold train 'data.template="a b"' optim.rank=$number
    exit 0
fi
exit 9
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    fake = FakeSlurm(tmp_path / "slurm", srun=f'while [[ $1 == --* ]]; do shift; done; printf "%s\\n" "$WANDB_RUN_ID" "$@" '
                     f'>>{tmp_path}/trials; eval "$TRAINING"', scancel=f"kill -USR1 $(cat {tmp_path}/step)")
    monkeypatch.setenv("PATH", fake.path)
    monkeypatch.setattr("pipelines.agents.made_online", lambda sweep, config, rest: fake.made.append(rest) or "me/fivefold/abc")
    fake.made = []
    return fake


@pytest.fixture
def folder(here, slurm, tmp_path):
    python = tmp_path / "python"
    python.write_text(AGENT)
    python.chmod(0o755)
    done = here("sweep", "fira_rank", "--slurm", "--array", "3", f"run.root={tmp_path}", "logger=wandb", "run.name=search",
                "trainer.num_nodes=2", "strategy=ddp", "cluster.time=60", "cluster.requeues=2", f"cluster.python={python}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("job 4711 is queued: 3 agents, each with 2 nodes x 1 tasks = 2 processes a trial\n")
    return tmp_path / "search"


@pytest.fixture
def agent(folder, slurm):
    def start(training, there_are=2, restarts=0, wait=True, **more):
        environment = {**os.environ, "SLURM_JOB_ID": "4712", "SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "1", "TRAINING": training,
                       "SLURM_RESTART_COUNT": str(restarts), "FAKE": str(slurm.folder), "THERE_ARE": str(there_are), **more}
        process = subprocess.Popen(["bash", str(folder / "job" / "sweep.sbatch")], env=environment, text=True, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT)
        return (process.communicate(timeout=60)[0], process.returncode) if wait else process

    return start


def test_the_script_asks_for_an_array_and_the_sweep_is_made_with_the_folder_of_its_trials(folder, slurm):
    options = re.findall(r"^#SBATCH (.*)$", (folder / "job" / "sweep.sbatch").read_text(), re.MULTILINE)
    assert {"--array=0-2", "--nodes=2", "--ntasks-per-node=1", "--time=60", f"--output={folder}/job/log-%a.txt"} <= set(options)
    (words,) = slurm.made
    assert set(words) >= {f"run.root={folder}", "cluster=slurm", "strategy=ddp", "trainer.num_nodes=2"}
    assert "run.name=search" not in words


def test_every_trial_has_an_srun_of_its_own_and_the_words_of_the_agent_as_they_are(agent, slurm, tmp_path):
    said, status = agent("exit 0")
    assert status == 0
    assert said.rstrip().endswith("finished, after 2 trials")
    calls = slurm.calls("srun")
    assert len(calls) == 2
    assert all(call.startswith("--label --kill-on-bad-exit=1 ") for call in calls)
    lines = (tmp_path / "trials").read_text().splitlines()
    one = ["-P", "-m", "pipelines", "train", 'data.template="a b"']
    python = str(tmp_path / "python")
    assert lines == ["run0", python, *one, "optim.rank=0", "run.name=trial-run0", "run.resume=auto",
                     "run1", python, *one, "optim.rank=1", "run.name=trial-run1", "run.resume=auto"]


def test_a_trial_that_was_cut_off_goes_on_in_the_next_start_before_any_other(agent, folder, slurm, tmp_path):
    said, status = agent("echo 'saved at step 8' >$FIVEFOLD_REQUEUE")
    assert (status, slurm.calls("scontrol")) == (0, ["requeue 4712"])
    assert "queued again: saved at step 8" in said
    kept = (folder / "job" / "agent-1" / "trial").read_text()
    assert "secret" not in kept
    first = (tmp_path / "trials").read_text()
    said, status = agent("exit 0", restarts=1)
    assert status == 0
    again = (tmp_path / "trials").read_text().removeprefix(first)
    assert again.startswith(first)  # the same words and the same run of W&B
    assert again.count("optim.rank") == 2
    assert "going on with a trial: train" in said
    assert shlex.split(said.partition("going on with a trial: ")[2].splitlines()[0])[1] == 'data.template="a b"'


def test_the_warning_before_the_limit_reaches_the_trial_and_the_limit_of_requeues_holds(agent, slurm, tmp_path):
    training = (f"trap \"echo 'saved at step 3' >\\$FIVEFOLD_REQUEUE; exit 0\" USR1; echo $$ >{tmp_path}/step; echo ready; "
                "while :; do sleep 0.05; done")
    for restarts, status in ((0, 0), (2, 1)):
        process = agent(training, wait=False, restarts=restarts)
        for line in process.stdout:
            if line.startswith("ready"):
                break
        process.send_signal(signal.SIGUSR1)
        said = process.communicate(timeout=60)[0]
        assert process.returncode == status, said
    assert slurm.calls("scontrol") == ["requeue 4712"]
    assert "error: queued again 2 times, which is the limit (cluster.requeues=2)" in said


def test_an_agent_goes_on_after_a_trial_that_failed_and_stops_after_three(agent):
    said, status = agent("exit 1", there_are=2)
    assert status == 0
    assert said.rstrip().endswith("finished, after 2 trials")


def test_three_trials_in_a_row_that_fail_end_an_agent(agent, tmp_path):
    said, status = agent("exit 1", there_are=9)
    assert status == 1
    assert "error: 3 trials in a row failed" in said
    assert (tmp_path / "trials").read_text().count("optim.rank") == 3


def test_a_dry_run_shows_the_script_and_what_does_not_fit_is_refused_before_a_sweep_is_made(here, slurm, tmp_path, monkeypatch):
    words = ["sweep", "fira_rank", "--slurm", "logger=wandb", f"run.root={tmp_path / 'runs'}"]
    done = here(*words, "--array", "4", "--dry-run")
    assert done.returncode == 0
    assert "#SBATCH --array=0-3\n" in done.stdout
    assert "commands compose; 4 agents, each with 1 nodes x 1 tasks = 1 processes a trial; nothing was made or queued" in done.stdout
    assert subprocess.run(["bash", "-n"], input=done.stdout.rpartition("\nconfigs")[0], text=True, capture_output=True).stderr == ""
    for more, said in ((["--array", "x"], "array: must be a whole number above 0, not x"), (["logger.mode=offline"], "write logger=wandb"),
                       (["optim.rnk=1"], "optim.rnk: no such key"), (["trainer.num_nodes=2", "strategy=single"], "strategy")):
        done = here(*words, *more)
        assert (done.returncode, done.stdout) == (2, ""), more
        assert said in done.stderr
    monkeypatch.setenv("PATH", "")
    done = here(*words)
    assert (done.returncode, "no sbatch on this machine" in done.stderr) == (2, True)
    assert slurm.made == []
    assert slurm.calls("sbatch") == []
