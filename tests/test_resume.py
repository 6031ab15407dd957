"""An interrupted run that goes on equals the uninterrupted one bit for bit."""

import random
import signal

import pytest
import torch

SETTINGS = [
    pytest.param(["data.workers=0"], id="one process"),
    pytest.param(["data.workers=2", "trainer.accumulate_grad_batches=3"], id="workers and accumulation"),
    pytest.param(["optim=adamw", "optim.lr=0.003", "trainer.limit_train_batches=5"], id="short epochs"),
]


def train(fivefold, tmp_path, cache, name, *words, **more):
    return fivefold("train", "experiment=fira_debug", f"run.root={tmp_path}", f"run.name={name}", f"data.cache={cache}",
                    "trainer.max_steps=14", "trainer.log_every_n_steps=1", "trainer.val_every_n_steps=6", *words, **more)


def interrupt_after(process, step, number):
    """Send signal `number` as soon as the run has reported `step`; return everything it printed."""
    printed = []
    for line in process.stdout:
        printed.append(line)
        if line.startswith(f"step {step}/"):
            process.send_signal(number)
    process.wait(timeout=120)
    return "".join(printed)


def state(folder):
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return {"weights": checkpoint["state_dict"], "optimizer": checkpoint["optimizer_states"], "schedule": checkpoint["lr_schedulers"],
            "step": checkpoint["global_step"]}


def assert_same(one, two, path="checkpoint"):
    assert type(one) is type(two), path
    if isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype, path
        assert torch.equal(one, two), path
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), path
        for key in one:
            assert_same(one[key], two[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), path
        for number, (a, b) in enumerate(zip(one, two)):
            assert_same(a, b, f"{path}.{number}")
    else:
        assert one == two, path


@pytest.mark.slow
@pytest.mark.parametrize("words", SETTINGS)
def test_a_run_killed_at_a_random_step_and_resumed_equals_the_uninterrupted_one(fivefold, tmp_path, cache, words):
    whole = train(fivefold, tmp_path, cache, "whole", *words)
    assert whole.returncode == 0, whole.stderr
    step = random.randint(5, 12)
    process = train(fivefold, tmp_path, cache, "broken", *words, wait=False)
    interrupt_after(process, step, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "broken" / "checkpoints" / "last.ckpt").exists()
    resumed = train(fivefold, tmp_path, cache, "broken", *words, "run.resume=auto")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed at step" in resumed.stdout
    assert_same(state(tmp_path / "whole"), state(tmp_path / "broken"))


@pytest.mark.slow
def test_ctrl_c_saves_at_the_end_of_the_step_and_the_metrics_go_on_without_a_gap(fivefold, tmp_path, cache):
    words = ["trainer.accumulate_grad_batches=2"]
    whole = train(fivefold, tmp_path, cache, "whole", *words)
    assert whole.returncode == 0, whole.stderr
    process = train(fivefold, tmp_path, cache, "broken", *words, wait=False)
    printed = interrupt_after(process, 7, signal.SIGINT)
    assert process.returncode == 130, printed
    assert "run.resume=" in printed
    resumed = train(fivefold, tmp_path, cache, "broken", *words, "run.resume=auto")
    assert resumed.returncode == 0, resumed.stderr
    assert_same(state(tmp_path / "whole"), state(tmp_path / "broken"))
    whole_rows, broken_rows = (losses(tmp_path / name / "metrics.csv") for name in ("whole", "broken"))
    assert len(whole_rows) == 14
    assert whole_rows == broken_rows


def losses(path):
    import csv

    with path.open(newline="") as file:
        return [(row["step"], row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
