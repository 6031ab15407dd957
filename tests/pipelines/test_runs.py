"""What a run folder holds, and who may write to it."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from pipelines.config import ConfigError, compose, from_yaml
from pipelines.runs import _git, claim, end_record, never_began, newest_checkpoint, read_record, start_record, step_of, steps_saved


def checkpoint(folder, step, cut=None):
    path = folder / "checkpoints" / f"step={step:08d}.ckpt"
    path.parent.mkdir(exist_ok=True)
    torch.save({"global_step": step, "weight": torch.zeros(50)}, path)
    if cut is not None:
        path.write_bytes(path.read_bytes()[:cut])
    return path


def test_the_step_of_a_checkpoint_is_in_its_name_behind_its_link_or_in_its_content(tmp_path):
    path = checkpoint(tmp_path, 12)
    (tmp_path / "last.ckpt").symlink_to(path)
    copied = tmp_path / "copied.ckpt"
    copied.write_bytes(path.read_bytes())
    assert [step_of(p) for p in (path, tmp_path / "last.ckpt", copied)] == [12, 12, 12]


@pytest.mark.parametrize("cut", [0, 1, 100, 1000, -1])
def test_a_half_checkpoint_is_never_the_newest(tmp_path, cut):
    whole = checkpoint(tmp_path, 4)
    checkpoint(tmp_path, 8, cut)
    (tmp_path / "checkpoints" / "step=00000009.ckpt.part").write_bytes(whole.read_bytes())
    assert newest_checkpoint(tmp_path) == whole


def test_checkpoints_are_ordered_by_number_however_long_it_is(tmp_path):
    paths = [checkpoint(tmp_path, step) for step in (99_999_999, 100_000_000, 7)]
    assert steps_saved(tmp_path / "checkpoints") == [paths[2], paths[0], paths[1]]


def test_there_is_no_newest_checkpoint_in_a_folder_without_any(tmp_path):
    assert newest_checkpoint(tmp_path) is None


def test_a_record_says_what_ran_where_and_keeps_every_start(tmp_path):
    config = compose(["experiment=fira_debug", "run.notes=first try", "run.seed=5"])
    start_record(config, tmp_path, 0, ["fivefold", "train", "experiment=fira_debug"])
    assert read_record(tmp_path)["status"] == "running"
    end_record(tmp_path, "interrupted", {"step": 4})
    start_record(config, tmp_path, 4, ["fivefold", "train", "run.resume=auto"])
    end_record(tmp_path, "finished", {"step": 8, "val/loss": 1.5})
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["results"] == {"step": 8, "val/loss": 1.5}
    assert record["seed"] == 5
    assert [start["from_step"] for start in record["started"]] == [0, 4]
    assert record["started"][1]["command"] == ["fivefold", "train", "run.resume=auto"]
    assert record["started"][0]["packages"]["torch"] == torch.__version__
    assert record["started"][0]["python"].split(".") == [str(part) for part in sys.version_info[:3]]


def test_the_config_file_of_a_run_gives_the_same_run_again_without_resuming(tmp_path):
    config = compose(["experiment=fira_debug", "optim.lr=0.003", f"run.resume={tmp_path}"])
    start_record(config, tmp_path, 0, [])
    again = from_yaml(tmp_path / "config.yaml")
    assert again.run.resume is None
    assert (again.optim, again.data, again.module, again.trainer) == (config.optim, config.data, config.module, config.trainer)


def test_the_commit_and_changes_are_those_of_the_source_tree_not_of_the_current_folder(tmp_path):
    source = tmp_path / "tree" / "code.py"
    source.parent.mkdir()
    source.write_text("x = 1\n")
    assert _git(source) == (None, None)

    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", "-C", str(source.parent), *identity, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init")
    assert _git(source) == (None, None)
    git("add", "code.py")
    git("commit", "-m", "one")
    assert _git(source) == (git("rev-parse", "HEAD"), False)
    source.write_text("x = 2\n")
    assert _git(source) == (git("rev-parse", "HEAD"), True)


def test_a_run_that_left_no_trace_of_a_step_has_not_begun(tmp_path):
    assert not never_began(tmp_path)  # some folder, not a run's
    start_record(compose(["experiment=fira_debug"]), tmp_path, 0, [])
    assert never_began(tmp_path)
    checkpoint(tmp_path, 3)
    assert not never_began(tmp_path)


HOLD = """
import os, sys, time
from pathlib import Path
from pipelines.runs import claim
lock = claim(Path(sys.argv[1]))
if os.fork() == 0:
    time.sleep(30)  # a worker that outlives its parent
    os._exit(0)
print("held", flush=True)
time.sleep(30)
"""


def test_a_run_folder_belongs_to_one_process_until_that_dies(tmp_path):
    folder = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=r"run\.resume: .*is being trained by another process"):
            claim(folder)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        claim(folder).close()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
