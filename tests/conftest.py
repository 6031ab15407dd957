"""Folders and commands that several tests use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """One data cache for the whole session, so that the embedded data are tokenised once."""
    return tmp_path_factory.getbasetemp().parent / "fivefold-cache"


@pytest.fixture
def fivefold(cache, tmp_path):
    """Run the command line in a process of its own, from another folder, as a user would."""

    def start(*words: str, wait: bool = True, **more):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_SILENT": "true"}
        command = [sys.executable, "-P", "-m", "pipelines", *words]
        if not wait:
            return subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more)
        return subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=300, **more)

    return start
