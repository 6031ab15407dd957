"""The contract of every method: it composes, fits, checkpoints, resumes and evaluates. A new method joins by existing.

A method called NAME brings configs/method/NAME.yaml and configs/experiment/NAME_debug.yaml, a run of seconds on one CPU core.
"""

import json
import re

import pytest
import torch

from pipelines.catalog import choices_of
from pipelines.config import compose

METHODS = choices_of("method")


def figures(text):
    """Read the metrics out of a printed table of results."""
    return dict(re.findall(r"(val/\S+)\s+([-+.\d]+)", text))


def test_there_is_a_debug_experiment_for_each_method():
    assert METHODS
    assert {f"{method}_debug" for method in METHODS} <= set(choices_of("experiment"))


@pytest.mark.parametrize("experiment", choices_of("experiment"))
def test_every_experiment_composes(experiment):
    config = compose([f"experiment={experiment}"])
    assert config.experiment == experiment
    assert config.method in METHODS


@pytest.mark.parametrize("method", METHODS)
def test_a_method_fits_checkpoints_resumes_and_evaluates(method, fivefold, tmp_path, cache):
    words = ["train", f"experiment={method}_debug", f"run.root={tmp_path}", "run.name=contract", f"data.cache={cache}"]
    first = fivefold(*words, "trainer.max_steps=5", "checkpoint.every_n_steps=2", "checkpoint.save_last=false")
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "contract"
    assert {p.name for p in folder.iterdir()} >= {"config.yaml", "run.json", "metrics.csv", "checkpoints", "loss.png"}
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"

    second = fivefold("train", f"experiment={method}_debug", f"run.root={tmp_path}", f"run.resume={folder}", f"data.cache={cache}",
                      "trainer.max_steps=8", "checkpoint.every_n_steps=2")
    assert second.returncode == 0, second.stderr
    assert "resumed at step 4" in second.stdout
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 8

    evaluated = fivefold("evaluate", f"run={folder}")
    assert evaluated.returncode == 0, evaluated.stderr
    assert figures(evaluated.stdout)
    assert figures(evaluated.stdout) == figures(second.stdout.rpartition("step 8")[2])


@pytest.mark.parametrize("method", METHODS)
def test_a_dry_run_prints_the_plan_and_writes_nothing(method, fivefold, tmp_path, cache):
    done = fivefold("train", f"experiment={method}_debug", f"run.root={tmp_path / 'runs'}", f"data.cache={cache}", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "optimizer state" in done.stdout
    assert "% saved" in done.stdout
    assert not (tmp_path / "runs").exists()
