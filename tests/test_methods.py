"""The contract of every method: it composes, fits, checkpoints, resumes and evaluates. A new method joins by existing.

A method called NAME brings configs/method/NAME.yaml and configs/experiment/NAME_debug.yaml, a run of seconds on one CPU core.
"""

import json
import shutil

import pytest

from pipelines.catalog import choices_of, path_of
from pipelines.config import compose
from pipelines.runs import steps_saved
from tests.exactness import assert_same, rows, state

METHODS = choices_of("method")


@pytest.fixture
def words(request, tmp_path, cache, monkeypatch):
    """Words of a run of eight steps, called `whole`, a checkpoint after every third; a method caches in a home of its own."""
    monkeypatch.setenv("HOME", str(cache))
    return ["train", f"experiment={request.param}_debug", f"run.root={tmp_path}", "run.name=whole", "trainer.threads=1",
            "trainer.max_steps=8", "trainer.log_every_n_steps=1", "checkpoint.every_n_steps=3", "checkpoint.keep=-1"]


def figures(done):
    """Read the metrics of validation out of the table of results."""
    return [line.split() for line in done.stdout.splitlines() if line.startswith("val/")]


def test_there_is_a_debug_experiment_for_each_method():
    assert METHODS
    assert {f"{method}_debug" for method in METHODS} <= set(choices_of("experiment"))


@pytest.mark.parametrize("experiment", choices_of("experiment"))
def test_every_experiment_composes(experiment):
    text = path_of("experiment", experiment).read_text()
    own_text = ["data.root=somewhere"] if "source: files" in text or "source: folder" in text else []
    config = compose([f"experiment={experiment}", *own_text])
    assert config.experiment == experiment
    assert config.method in METHODS


@pytest.mark.parametrize("words", METHODS, indirect=True)
def test_a_method_fits_records_its_run_and_evaluates_to_the_same_figures(words, here, tmp_path):
    done = here(*words)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "whole"
    assert {path.name for path in folder.iterdir()} >= {"config.yaml", "run.json", "metrics.csv", "checkpoints", "loss.png"}
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert [int(row["step"]) for row in rows(folder)] == list(range(8))
    assert all("train/loss" in row for row in rows(folder))
    evaluated = here("evaluate", f"run={folder}")
    assert evaluated.returncode == 0, evaluated.stderr
    assert figures(evaluated)
    assert figures(evaluated) == figures(done)


@pytest.mark.parametrize("words", METHODS, indirect=True)
def test_a_method_that_lost_its_last_steps_makes_them_again_bit_for_bit(words, here, tmp_path):
    whole = here(*words)
    assert whole.returncode == 0, whole.stderr
    broken = shutil.copytree(tmp_path / "whole", tmp_path / "broken", symlinks=True)
    for path in steps_saved(broken / "checkpoints")[1:]:
        path.unlink()
    record = json.loads((broken / "run.json").read_text())
    (broken / "run.json").write_text(json.dumps({**record, "status": "running"}))  # as a kill would have left it
    resumed = here(*[word.replace("=whole", "=broken") for word in words], "run.resume=auto")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed at step 3)" in resumed.stdout
    assert_same(state(tmp_path / "whole"), state(broken))
    assert rows(tmp_path / "whole") == rows(broken)
    assert figures(whole) == figures(resumed)


@pytest.mark.parametrize("words", METHODS, indirect=True)
def test_a_dry_run_prints_the_plan_and_writes_nothing(words, here, tmp_path):
    done = here(*words, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "optimizer state" in done.stdout
    assert "% saved" in done.stdout
    assert not (tmp_path / "whole").exists()
