"""Folders and commands that several tests use."""

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from pipelines.processes import MARK


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """One data cache for the whole session, so that the embedded data are tokenised once."""
    return tmp_path_factory.getbasetemp().parent / "fivefold-cache"


@pytest.fixture(scope="session")
def fivefold_in():
    """Run the command line in a process of its own, from a given folder."""

    def start(folder: Path, *words: str, wait: bool = True, env: dict | None = None):
        os.environ.pop(MARK, None)  # what is started here is a launch of its own, whatever this process has trained before
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_SILENT": "true", **(env or {})}
        command = [sys.executable, "-P", "-m", "pipelines", *words]
        if not wait:
            return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                    start_new_session=True)
        return subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, timeout=300)

    return start


@pytest.fixture
def fivefold(fivefold_in, tmp_path):
    """Run the command line in a process of its own, from another folder, as a user would."""
    return partial(fivefold_in, tmp_path)


@pytest.fixture
def logged_out(monkeypatch, tmp_path):
    """Hide the W&B credentials of whoever runs the tests; wandb must be told to look at the environment again."""
    import wandb

    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def small_wandb(logged_out, monkeypatch):
    """Log in to a small W&B server of this process's own."""
    import wandb

    from tests.pipelines.small_wandb import SmallWandb

    server = SmallWandb()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", f"secret{0:034}")
    wandb.teardown()
    yield server
    wandb.teardown()
    server.close()


@dataclass(frozen=True)
class Done:
    """What a command line returned and printed."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def here(capsys, monkeypatch, tmp_path):
    """Run the command line in this process: the same as `fivefold`, without the seconds that imports take."""
    import torch

    from pipelines.__main__ import main

    def run(*words: str) -> Done:
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        code = main([*words])
        return Done(code, *capsys.readouterr())

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def debug(cache, tmp_path):
    """Words of a training run of seconds: 14 steps under tmp_path, validated every 6, on one thread."""
    return ["train", "experiment=fira_debug", f"run.root={tmp_path}", f"data.cache={cache}", "trainer.threads=1",
            "trainer.max_steps=14", "trainer.log_every_n_steps=1", "trainer.val_every_n_steps=6"]
