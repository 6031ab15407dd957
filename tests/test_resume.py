"""An interrupted run that goes on equals the uninterrupted one bit for bit."""

import json
import os
import random
import shlex
import signal

import pytest

from pipelines.runs import steps_saved
from tests.exactness import assert_same, latest, rows, state
from tests.signals import signal_after

SETTINGS = [
    pytest.param([], 2, id="one process, killed twice"),
    pytest.param(["data.workers=2", "trainer.accumulate_grad_batches=3"], 1, id="workers and accumulation"),
    pytest.param(["optim=adamw", "optim.lr=0.003", "trainer.limit_train_batches=5", "checkpoint.every_n_steps=5"], 1,
                 id="saved where epochs end"),
    pytest.param(["trainer.limit_train_batches=5", "trainer.accumulate_grad_batches=2", "checkpoint.every_n_steps=3"], 1,
                 id="accumulation cut by the end of an epoch"),
    pytest.param(["module.lora.rank=4", "module.lora.dropout=0.3", "trainer.precision=bf16-mixed", "trainer.gradient_clip_val=0.5"], 1,
                 id="dropout, mixed precision and clipping"),
    pytest.param(["optim.basis=randomized", "optim.refresh_stagger=true", "trainer.val_every_n_steps=null", "trainer.limit_train_batches=6",
                  "trainer.max_steps=-1", "trainer.max_epochs=3"], 1, id="whole epochs"),
    pytest.param(["data.source=files", "data.train=[novel.txt]", "trainer.max_steps=16"], 1, id="a file, seen more than once"),
]


def text_file(folder):
    words = random.Random(3)
    lines = [" ".join(words.choice(["whale", "sea", "ship", "captain", "the", "of", "white"]) for _ in range(12)) for _ in range(160)]
    (folder / "novel.txt").write_text("\n".join(lines))


@pytest.mark.slow
@pytest.mark.parametrize(("words", "kills"), SETTINGS)
def test_a_run_killed_at_a_random_step_and_resumed_equals_the_uninterrupted_one(here, fivefold, debug, tmp_path, words, kills):
    text_file(tmp_path)
    words = latest([*debug, *words])
    whole = here(*words, "run.name=whole")
    assert whole.returncode == 0, whole.stderr
    last = state(tmp_path / "whole")["step"]
    seed = random.randrange(10**6)
    random.seed(seed)
    for step in sorted(random.sample(range(2, last - 1), kills)):
        process = fivefold(*words, "run.name=broken", "run.resume=auto", wait=False)
        printed = signal_after(process, step, lambda pid: os.kill(pid, signal.SIGKILL))
        assert f"step {step}/" in printed, (seed, printed)
        assert "finished" not in printed, (seed, printed)
    resumed = here(*words, "run.name=broken", "run.resume=auto")
    assert resumed.returncode == 0, (seed, resumed.stderr)
    where = f"killed with seed {seed}, then {next(line for line in resumed.stdout.splitlines() if line.startswith('run folder'))}"
    assert_same(state(tmp_path / "whole"), state(tmp_path / "broken"), where)
    assert [int(row["step"]) for row in rows(tmp_path / "broken")] == list(range(last)), where
    assert rows(tmp_path / "whole") == rows(tmp_path / "broken"), where
    assert figures(whole) == figures(resumed), where


def figures(done):
    return [line.split() for line in done.stdout.rpartition("finished")[2].splitlines() if line.startswith("val/")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_at_the_end_of_the_step_and_the_printed_command_goes_on_without_a_gap(number, here, fivefold, debug, tmp_path):
    words = [*debug, "trainer.accumulate_grad_batches=2", "data.workers=2", "checkpoint.every_n_steps=100"]
    whole = here(*words, "run.name=whole")
    assert whole.returncode == 0, whole.stderr
    process = fivefold(*words, "run.name=bro ken", wait=False)
    printed = signal_after(process, 7, lambda pid: os.killpg(pid, number))  # workers included, as a terminal does
    assert process.returncode == 130, printed
    assert "Traceback" not in printed
    assert json.loads((tmp_path / "bro ken" / "run.json").read_text())["status"] == "interrupted"
    command = next(line.partition("with: ")[2] for line in printed.splitlines() if line.startswith("go on from step"))
    resumed = here(*shlex.split(command)[1:])
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed at step" in resumed.stdout
    assert "resumed at step 0" not in resumed.stdout
    assert_same(state(tmp_path / "whole"), state(tmp_path / "bro ken"))
    assert rows(tmp_path / "whole") == rows(tmp_path / "bro ken")


def test_a_second_signal_stops_at_once_and_keeps_the_last_checkpoint(fivefold, debug, tmp_path):
    process = fivefold(*latest([*debug, "trainer.max_steps=100000", "checkpoint.every_n_steps=8"]), "run.name=run", wait=False)
    for line in process.stdout:
        if line.startswith("step 9/"):
            break
    process.send_signal(signal.SIGSTOP)  # so that both signals wait for it together
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    printed = process.stdout.read()
    assert process.wait(timeout=120) == 130, printed
    assert "Traceback" not in printed
    assert "run.resume=" in printed
    assert [path.name for path in steps_saved(tmp_path / "run" / "checkpoints")][-1] == "step=00000008.ckpt"
