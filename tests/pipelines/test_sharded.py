"""Checkpoints in parts: the same numbers as in one file, for any number of processes, and whole or not there."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipelines import runs
from pipelines.checkpoints import WholeFiles
from pipelines.runs import clear_parts, is_checkpoint, newest_checkpoint, remove_checkpoint, step_of, steps_saved
from pipelines.sharded import load_whole, save_parts
from tests.exactness import assert_same, latest, rows, state
from tests.lightning_modules.optim.spread_worker import SETTINGS, STEPS, Whole

REPOSITORY = Path(__file__).resolve().parents[2]


def run_on(processes, *words):
    """Start the worker on several gloo processes; return what rank 0 reports."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
               "-m", "tests.pipelines.parts_worker", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=REPOSITORY, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_parts_hold_what_one_process_would_save_and_any_number_of_processes_goes_on_bit_for_bit(tmp_path):
    two, three = tmp_path / "two", tmp_path / "three"
    reports = run_on(2, f"save={two}", f"load={two}", f"memory={two}") + run_on(3, f"load={two}", f"save={three}")
    saved, went_on, refused, [memory] = ([r for r in reports if r["check"] == c] for c in ("saved", "went on", "refused", "memory"))
    assert len(saved) == len(went_on) == 10
    assert [r for r in saved if not (r["weights"] and r["state"] and r["groups"])] == []
    assert [r for r in went_on if not (r["weights"] and r["state"])] == []
    assert {tuple(r["rest"]) for r in saved} == {("state_dict", "global_step")}
    assert {r["sent"] for r in saved} == {0}  # to other processes: nothing is gathered
    assert all(r["most"] < 0.75 * r["all"] for r in saved)
    assert memory["gathered"] > 0.9  # so the measure sees what it should
    assert memory["parts"] < 0.1
    assert [len(r["said"]) for r in refused] == [2, 3]
    for anew, optimizer, model in (said for r in refused for said in r["said"]):
        assert anew == "optim.rank: not that of the saved state; 4 matrices start anew"  # the fifth, of one row, has rank 1
        assert "the saved optimizer state is of [5, 2] parameters by group, not of [7]" in optimizer
        assert model == "the saved weights are of another model: another is in only one of them"
    for setting, (kind, config) in SETTINGS.items():
        assert goes_on_alone(load_whole(three / "checkpoints" / f"{setting}.ckpt"), kind, config), setting


def goes_on_alone(checkpoint, kind, config):
    """Tell whether one process that goes on ends where one ends that never stopped."""
    resumed, whole = Whole(kind, config), Whole(kind, config)
    resumed.module.load_state_dict(checkpoint["state_dict"])
    resumed.optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    resumed.train(checkpoint["global_step"], STEPS)
    whole.train(0, STEPS)
    return all(torch.equal(value, resumed.weights()[name]) for name, value in whole.weights().items())


def checkpoint_of(step, megabytes=4):
    weight, entry = torch.full((megabytes * 250_000,), float(step)), {"step": torch.tensor(float(step))}
    return {"global_step": step, "state_dict": {"weight": weight}, "optimizer_states": [{"state": {0: entry}}]}


def save_step(folder, step):
    save_parts(checkpoint_of(step), folder / "checkpoints" / f"step={step:08d}.ckpt", True)


def is_consistent(path):
    found = load_whole(path)
    step = found["global_step"]
    return step == step_of(path) and bool((found["state_dict"]["weight"] == step).all()) \
        and float(found["optimizer_states"][0]["state"][0]["step"]) == step


def save_and_forget_forever(folder, ready):
    torch.set_num_threads(1)
    for step in range(1, 10**6):
        save_step(folder, step)
        for old in steps_saved(folder / "checkpoints")[:-2]:
            remove_checkpoint(old)
        if step == 2:
            ready.set()


def in_another_process(target, *arguments):
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def test_a_process_killed_while_it_saves_or_deletes_leaves_only_whole_checkpoints(tmp_path):
    half = 0
    for trial in range(12):
        folder = tmp_path / str(trial)
        ready = multiprocessing.get_context("fork").Event()
        process = in_another_process(save_and_forget_forever, folder, ready)
        assert ready.wait(60)
        time.sleep(random.random() * 0.1)
        process.kill()
        process.join()
        left = sorted((folder / "checkpoints").glob("*.ckpt"))
        assert 2 <= len(left) <= 3
        assert steps_saved(folder / "checkpoints") == left
        assert all(is_consistent(path) for path in left)
        assert newest_checkpoint(folder) == left[-1]
        half += bool(list((folder / "checkpoints").glob("*.part")))
        clear_parts(folder / "checkpoints")
        assert sorted((folder / "checkpoints").iterdir()) == left
    assert half > 0, "the test never killed in the middle of a folder"


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def die_in(function, name, *arguments):
    setattr(*name, die)
    function(*arguments)


@pytest.mark.parametrize(("moment", "newest", "in_part"), [
    ((os, "fsync"), 1, {"__0_0.distcp"}), ((os, "replace"), 1, {"__0_0.distcp", ".metadata", "rest.pt"}), ((shutil, "rmtree"), 2, None),
], ids=["in a part", "between the last part and the name", "after the name"])
def test_a_kill_at_any_moment_leaves_a_whole_newest_checkpoint(tmp_path, moment, newest, in_part):
    save_step(tmp_path, 1)
    process = in_another_process(die_in, save_step, moment, tmp_path, 2)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    part = tmp_path / "checkpoints" / "step=00000002.ckpt.part"
    assert ({path.name for path in part.iterdir()} if part.exists() else None) == in_part
    assert step_of(newest_checkpoint(tmp_path)) == newest
    assert all(is_consistent(path) for path in steps_saved(part.parent))
    clear_parts(part.parent)
    save_step(tmp_path, 3)
    assert is_consistent(newest_checkpoint(tmp_path))


def test_a_checkpoint_that_is_being_deleted_is_not_taken_for_whole(tmp_path):
    save_step(tmp_path, 1)
    [path] = steps_saved(tmp_path / "checkpoints")
    process = in_another_process(die_in, remove_checkpoint, (runs.shutil, "rmtree"), path)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert steps_saved(tmp_path / "checkpoints") == []
    clear_parts(tmp_path / "checkpoints")
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_save_that_fails_leaves_the_checkpoint_before_and_nothing_beside_it(tmp_path):
    save_step(tmp_path, 1)
    path = tmp_path / "checkpoints" / "step=00000002.ckpt"
    with pytest.raises(Exception, match="pickle"):
        save_parts({**checkpoint_of(2), "unsaveable": lambda: 0}, path, True)
    assert [p.name for p in path.parent.iterdir()] == ["step=00000001.ckpt"]


@pytest.mark.parametrize("missing", [".metadata", "rest.pt"])
def test_a_folder_that_was_copied_by_half_is_no_checkpoint_and_gives_way_to_a_whole_one(tmp_path, missing):
    save_step(tmp_path, 1)
    save_step(tmp_path, 2)
    path = newest_checkpoint(tmp_path)
    (path / missing).unlink()
    assert not is_checkpoint(path)
    assert newest_checkpoint(tmp_path).name == "step=00000001.ckpt"
    save_step(tmp_path, 2)
    assert newest_checkpoint(tmp_path) == path
    assert is_consistent(path)


COMMON = ["train", "experiment=fira_debug", "trainer.threads=1", "trainer.accelerator=cpu", "trainer.limit_val_batches=2",
          "checkpoint.every_n_steps=2", "optim.gap=3", "trainer.log_every_n_steps=1", "trainer.max_steps=4"]
TWO = ["strategy=fsdp", "trainer.devices=2", "data.batch_size=6"]


def train_on_two(fivefold_in, cache, root, name, *words):
    done = fivefold_in(root, *COMMON, *TWO, f"run.root={root}", f"run.name={name}", f"data.cache={cache}", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def in_parts(tmp_path_factory, cache, fivefold_in):
    """A run of four steps on two processes with checkpoints in parts, and what it printed."""
    root = tmp_path_factory.mktemp("parts")
    return root / "run", train_on_two(fivefold_in, cache, root, "run", "checkpoint.sharded=true", "checkpoint.keep=1")


def figures(done):
    return {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("val/")}


def test_a_run_in_parts_keeps_as_many_as_asked_and_is_evaluated_like_any_other(in_parts, here):
    folder, done = in_parts
    assert [path.name for path in steps_saved(folder / "checkpoints")] == ["step=00000002.ckpt", "step=00000004.ckpt"]
    assert (folder / "checkpoints" / "last.ckpt").resolve() == newest_checkpoint(folder)
    assert sum(path.suffix == ".distcp" for path in newest_checkpoint(folder).iterdir()) == 2
    again = here("evaluate", f"run={folder}", "trainer.limit_val_batches=4")  # two on each of two processes
    assert again.returncode == 0, again.stderr
    assert figures(again) == pytest.approx(figures(done), rel=1e-5)


def test_a_run_in_parts_is_exported_as_one_file_and_for_transformers(in_parts, here, tmp_path):
    from safetensors.torch import load_file

    folder, _ = in_parts
    done = here("export", f"run={folder}", f"to={tmp_path / 'one.ckpt'}")
    assert done.stdout == f"whole checkpoint of run at step 4: {tmp_path / 'one.ckpt'}\n"
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert_same(saved, WholeFiles().load_checkpoint(newest_checkpoint(folder)))
    assert here("export", f"run={folder}", f"to={tmp_path / 'model'}").returncode == 0
    exported = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(saved["state_dict"][f"model.{name}"], value) for name, value in exported.items())
    merged = here("export", f"run={folder}", "to=two.ckpt", "merge=true")
    assert merged.stderr.startswith("error: merge: a checkpoint file stays as it was trained")
    taken = here("export", f"run={folder}", f"to={tmp_path / 'one.ckpt'}")
    assert taken.stderr.startswith(f"error: to: {tmp_path / 'one.ckpt'} exists")


def test_one_process_goes_on_from_parts_as_from_the_one_file_made_of_them(in_parts, here, tmp_path, cache):
    folder, _ = in_parts
    parts = folder / "checkpoints" / "step=00000002.ckpt"
    assert here("export", f"run={folder}", f"checkpoint={parts}", f"to={tmp_path / 'one.ckpt'}").returncode == 0
    for name, start in (("from-parts", parts), ("from-file", tmp_path / "one.ckpt")):
        done = here(*COMMON, f"run.root={tmp_path}", f"data.cache={cache}", f"run.name={name}", f"run.resume={start}", "data.batch_size=12")
        assert done.returncode == 0, done.stderr
        assert "(resumed at step 2)" in done.stdout
    assert_same(state(tmp_path / "from-parts"), state(tmp_path / "from-file"))
    assert newest_checkpoint(tmp_path / "from-parts").is_file()


@pytest.mark.slow
def test_parts_and_whole_files_are_one_run_bit_for_bit_and_so_are_the_runs_that_go_on_from_them(in_parts, fivefold_in, cache, tmp_path):
    folder, _ = in_parts
    train_on_two(fivefold_in, cache, tmp_path, "whole")
    assert_same(state(tmp_path / "whole"), state(folder))
    assert rows(tmp_path / "whole") == rows(folder)
    moves = {"fsdp": ["strategy=fsdp", "trainer.devices=3", "data.batch_size=4", "checkpoint.sharded=true"],
             "deepspeed": ["strategy=deepspeed", "strategy.stage=3", "trainer.devices=2", "data.batch_size=6"]}
    for name, words in moves.items():
        for kind, run in (("parts", folder), ("file", tmp_path / "whole")):
            start = run / "checkpoints" / "step=00000002.ckpt"
            done = fivefold_in(tmp_path, *COMMON, *words, f"run.root={tmp_path}", f"data.cache={cache}", f"run.name={name}-{kind}",
                               f"run.resume={start}")
            assert done.returncode == 0, done.stdout + done.stderr
        assert_same(state(tmp_path / f"{name}-parts"), state(tmp_path / f"{name}-file"), name)


@pytest.mark.slow
def test_a_run_in_parts_whose_processes_are_all_killed_goes_on_bit_for_bit(in_parts, fivefold_in, cache, tmp_path):
    folder, _ = in_parts
    words = [*latest([*COMMON, "checkpoint.every_n_steps=1"]), *TWO, f"run.root={tmp_path}", "run.name=run", f"data.cache={cache}",
             "checkpoint.sharded=true", "run.resume=auto"]
    process = fivefold_in(tmp_path, *words, wait=False)
    for line in process.stdout:
        if line.startswith("step 2/"):
            time.sleep(random.random() * 0.1)
            os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=120)
    assert steps_saved(tmp_path / "run" / "checkpoints")
    done = fivefold_in(tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(state(tmp_path / "run"), state(folder))
    assert rows(tmp_path / "run") == rows(folder)
    assert not list((tmp_path / "run" / "checkpoints").glob("*.part"))
