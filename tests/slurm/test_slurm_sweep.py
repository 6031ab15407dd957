"""A W&B sweep on a real Slurm: an array of agents, trials of two processes on two nodes, one of them cut off in the middle."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.slurm.cluster import Cluster, free_port, missing

pytestmark = pytest.mark.slow
SERVER = Path(__file__).resolve().parents[3] / "shared" / "tools" / "fake_wandb_server.py"
SWEEP = {
    "method": "grid", "metric": {"name": "val/loss", "goal": "minimize"}, "parameters": {"optim.rank": {"values": [2, 4]}},
    "command": ["${env}", "fivefold", "train", "experiment=fira_debug", "trainer.max_steps=30", "trainer.val_every_n_steps=15",
                "trainer.log_every_n_steps=1", "trainer.threads=1", "strategy=ddp", "trainer.num_nodes=2", "logger=wandb",
                "${args_no_hyphens}"],
}


@pytest.fixture
def slurm(tmp_path_factory):
    """A Slurm of two nodes, with a small W&B server where its controller is."""
    if reason := missing():
        pytest.skip(reason)
    if not SERVER.is_file():
        pytest.skip("needs ../shared/tools, which lies beside the project: a small W&B server")
    pytest.importorskip("sweeps", reason="the small server draws with W&B's own engine, which `make test` installs")
    cluster = Cluster(str(tmp_path_factory.mktemp("slurm")), nodes=2)  # a short path: Slurm's sockets lie there
    cluster.start()
    host, port = f"{cluster.network}.254", free_port(31000)
    server = subprocess.Popen([sys.executable, SERVER, str(port), host], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cluster.server = f"http://{host}:{port}"
    yield cluster
    server.kill()
    cluster.stop()


def seen(slurm, what="_state"):
    with urllib.request.urlopen(f"{slurm.server}/{what}", timeout=10) as answer:
        return json.load(answer)


def until(happened, seconds, said):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, said()
        time.sleep(0.3)


def test_agents_of_an_array_share_the_trials_and_one_that_was_cut_off_goes_on_in_the_same_wandb_run(slurm, fivefold_in, tmp_path, cache):
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(SWEEP, sort_keys=False))
    environment = {**slurm.environment, "WANDB_BASE_URL": slurm.server, "WANDB_API_KEY": "0" * 40}
    done = fivefold_in(tmp_path, "sweep", "own.yaml", "--slurm", "--array", "2", f"run.root={tmp_path}", "cluster.time=30",
                       f"data.cache={cache}", env=environment)
    assert done.returncode == 0, done.stderr
    number = int(re.search(r"job (\d+) is queued: 2 agents, each with 2 nodes x 1 tasks", done.stdout).group(1))
    folder = tmp_path / "sweep-own"

    def logs():
        return "".join(path.read_text() for path in sorted((folder / "job").glob("log-*.txt")))

    first = folder / "job" / "log-0.txt"
    until(lambda: first.exists() and "step 3/30" in first.read_text(), 240, logs)
    slurm.ask("scancel", "--batch", "--signal=USR1", f"{number}_0")  # as Slurm does before the time limit
    until(lambda: slurm.ask("squeue", "--noheader", f"--jobs={number}") == "", 400, logs)
    assert "queued again: saved at step" in first.read_text(), logs()
    assert re.search(r"resumed at step [1-9]", first.read_text()), logs()
    assert logs().count("finished, after") == 2, logs()
    records = [json.loads(path.read_text()) for path in folder.glob("trial-*/run.json")]
    assert [record["status"] for record in records] == ["finished"] * 2
    assert sorted(len(record["started"]) for record in records) == [1, 2]
    runs = seen(slurm)["runs"]  # one of each trial: the second processes have told W&B nothing
    assert sorted(run["config"]["optim.rank"] for run in runs) == [2, 4]
    for run in runs:
        steps = [row["trainer/global_step"] for row in seen(slurm, f"_hist/{run['name']}") if "train/loss" in row]
        assert sorted(set(steps)) == list(range(30)), run["name"]
