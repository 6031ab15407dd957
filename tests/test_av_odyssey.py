"""AV-Odyssey's method in the launcher: examinations that are cut off go on anywhere, and the small model trains alike on two processes."""

import contextlib
import json
import os
import signal
import time

import pytest
import torch

from pipelines.runs import newest_checkpoint
from tests.exactness import figures, kept

ORACLE = ["evaluate", "method=av_odyssey", "module.adapter=oracle", "data.profiles=[hard]", "data.questions=90", "data.eval_batch_size=1",
          "logger=csv", "trainer.accelerator=cpu", "trainer.threads=1"]


def answers(folder):
    return (folder / "answers.jsonl").read_bytes()


@pytest.mark.slow
def test_an_examination_killed_on_two_processes_goes_on_with_one_to_the_same_file(fivefold_in, here, tmp_path):
    whole = here(*ORACLE, f"run.root={tmp_path}", "run.name=whole")
    assert whole.returncode == 0, whole.stderr
    words = [*ORACLE, f"run.root={tmp_path}", "run.name=cut"]
    begun = fivefold_in(tmp_path, *words, "strategy=ddp", "trainer.devices=2", wait=False)
    folder, end = tmp_path / "cut", time.monotonic() + 120
    while not (folder / "parts").is_dir() or len(kept(folder)) < 5:
        assert time.monotonic() < end
        time.sleep(0.01)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    with contextlib.suppress(ProcessLookupError):
        while True:  # until the other process has noticed
            os.killpg(begun.pid, 0)
            assert time.monotonic() < end
            time.sleep(0.1)
    before = kept(folder)
    assert 5 <= len(before) < 360
    again = here(*words, "run.resume=auto")
    assert again.returncode == 0, again.stderr
    assert answers(folder) == answers(tmp_path / "whole")
    assert sorted(kept(folder)) == sorted(f"hard_{number}_{place}" for number in (27, 28, 29, 30) for place in range(1, 91))  # each once
    assert ["val/accuracy", "1"] in [line.split() for line in again.stdout.splitlines()]


@pytest.mark.slow
def test_the_small_model_learns_to_hear(fivefold_in, tmp_path):
    """The promise of the README, at its own size; guessing gets 50 % (the specification's goal is 95 %, its gate 90 %)."""
    done = fivefold_in(tmp_path, "train", "method=av_odyssey", "logger=csv", "trainer.threads=1", f"data.cache={tmp_path / 'cache'}",
                       f"run.root={tmp_path}", "run.name=run", "trainer.accelerator=cpu")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    scores = {f"{profile}/{task}": found[f"val/{profile}/{task}"] for profile in ("paper", "hard")
              for task in ("count", "loudness", "pitch", "duration")}
    assert min(scores.values()) >= 0.9, scores


@pytest.mark.parametrize(("words", "message"), [
    (["module.adapter=oracle", "data=synthetic"], "module.adapter: must be one of replay, qwen2_5_omni"),
    (["data=deaftest_seen"], "module.adapter: must be one of oracle, replay, qwen2_5_omni"),
    (["module.adapter=oracle", "trainer.limit_val_batches=1"], "trainer: limit_val_batches, overfit_batches and fast_dev_run must be left"),
    (["module.adapter=oracle", "trainer.overfit_batches=1"], "trainer: limit_val_batches, overfit_batches and fast_dev_run must be left"),
    (["module.adapter=oracle", "data.profiles=[hard,adaptive]", "data.control=silent"], "data.control: must be none where profiles names"),
    (["module.adapter=oracle", "data=deaftest_seen", "data.profile=noise"], "data.profile: must be paper, hard or mixed where"),
])
def test_what_cannot_be_examined_is_refused_in_one_line(words, message, here, tmp_path):
    done = here("evaluate", "method=av_odyssey", *words, "logger=csv", f"run.root={tmp_path}", "trainer.accelerator=cpu")
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_weights_of_another_model_are_refused_in_one_line(here, tmp_path):
    done = here("train", "experiment=av_odyssey_debug", "trainer.max_steps=1", f"data.cache={tmp_path / 'cache'}", "run.name=run",
                "trainer.threads=1", f"run.root={tmp_path}")
    assert done.returncode == 0, done.stderr
    done = here("evaluate", f"run={tmp_path / 'run'}", "module.adapter=oracle")
    assert "module.adapter: the checkpoint is of another model than oracle: only one of them has " in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("words", "profiles"), [
    (["data=deaftest", "data.profile=hard"], {"hard"}), (["data=deaftest"], {"paper", "hard"}),
    (["data=deaftest", "data.profile=hard", "data.profiles=[noise]"], {"noise"}),
    (["data=deaftest_seen", "data.profile=hard"], {"hard"})])
def test_a_profile_is_what_is_examined_unless_others_are_named(words, profiles, here, tmp_path):
    done = here("evaluate", "method=av_odyssey", "module.adapter=oracle", *words, "data.questions=2", "logger=csv", f"run.root={tmp_path}",
                "run.name=run", "trainer.accelerator=cpu", "trainer.threads=1")
    assert done.returncode == 0, done.stderr
    found = figures(done)
    assert {name.split("/")[1] for name in found if name.count("/") == 2} == profiles
    assert found["val/accuracy"] == 1


def test_under_a_control_nothing_is_compared_and_a_model_that_has_learnt_nothing_is_called_so(here, tmp_path):
    for name, words in (("silent", ["module.adapter=oracle", "data.control=silent"]), ("small", [])):
        done = here("evaluate", "method=av_odyssey", *words, "data.questions=2", "logger=csv", f"run.root={tmp_path}", f"run.name={name}",
                    "trainer.accelerator=cpu", "trainer.threads=1")
        assert done.returncode == 0, done.stderr
    silent, small = ((tmp_path / name / "report.html").read_text() for name in ("silent", "small"))
    assert ("beside published models" in silent, "beside published models" in small) == (False, True)
    assert "Under data.control=silent" in silent
    assert "The model has random weights and has learnt nothing." in small


@pytest.mark.slow
def test_two_processes_train_the_small_model_like_one(fivefold_in, tmp_path):
    """Halves of the same batches; gradients are averaged, and sums rounded in another order."""
    words = ["train", "experiment=av_odyssey_debug", "trainer.max_steps=6", "trainer.limit_val_batches=0", "trainer.val_every_n_steps=null",
             f"data.cache={tmp_path / 'cache'}", "trainer.threads=1", f"run.root={tmp_path}"]
    alone = fivefold_in(tmp_path, *words, "run.name=alone", "data.batch_size=8")
    assert alone.returncode == 0, alone.stderr
    both = fivefold_in(tmp_path, *words, "run.name=both", "data.batch_size=4", "strategy=ddp", "trainer.devices=2")
    assert both.returncode == 0, both.stderr
    one, two = (torch.load(newest_checkpoint(tmp_path / name), weights_only=True)["state_dict"] for name in ("alone", "both"))
    for name, value in one.items():
        assert torch.allclose(value.float(), two[name].float(), atol=2e-3), name


def test_a_model_that_learns_nothing_says_how_it_is_examined(here, tmp_path):
    done = here("train", "method=av_odyssey", "module.adapter=oracle", f"run.root={tmp_path}", "logger=csv")
    assert done.returncode == 0, done.stderr
    assert "module.adapter=oracle learns nothing; fivefold evaluate method=av_odyssey examines it" in done.stdout


@pytest.mark.parametrize(("word", "message"), [
    ("data.profiles=[paper,loud]", "paper, paper_clipped, hard, mixed, varied, noise, timbre, confound, adaptive, not loud"),
    ("data.profiles=[adaptive]", "data.profiles: must name one that is scored beside adaptive, such as [hard,adaptive]"),
    ("module.small.width=30", "module.small.width: must be an even multiple of heads = 4, not 30"),
    ("data.items=0", "data.items: must be 1 or above"),
    ("data.seed=-1", "data.seed: must be 0 or above, not -1"),
    ("data.profiles=[hard,hard]", "data.profiles: must name each profile once, not hard twice"),
    ("data.profiles=[paper,mixed]", "data.profiles: must not name mixed beside others, some of whose questions it is made of"),
])
def test_what_cannot_be_is_refused_in_one_line(word, message, here):
    done = here("train", "method=av_odyssey", word)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_smallest_gaps_that_are_heard_are_told_beside_scores(here, tmp_path):
    """The oracle hears levels and pitches exactly, and lengths to one of its frames of 20 ms."""
    done = here("evaluate", "method=av_odyssey", "module.adapter=oracle", "data.profiles=[hard,adaptive]", "data.questions=1",
                "data.staircases=2", f"run.root={tmp_path}", "run.name=run", "logger=csv", "trainer.accelerator=cpu", "trainer.threads=1")
    assert done.returncode == 0, done.stderr
    found = {name: float(value) for name, value in (line.split() for line in done.stdout.splitlines() if line.startswith("val/noticeable"))}
    assert found["val/noticeable/loudness"] == pytest.approx(0.05)
    assert found["val/noticeable/pitch"] == pytest.approx(0.02, abs=0.02)
    assert found["val/noticeable/duration"] < 0.02
    rows = (tmp_path / "run" / "tables" / "noticeable.csv").read_text().splitlines()
    assert len(rows) == 4
    assert (tmp_path / "run" / "noticeable.png").read_bytes()[:4] == b"\x89PNG"
