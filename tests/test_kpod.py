"""The phases of KPOD in one command: made once, interrupted and resumed to the same bits, on one process and on two."""

import csv
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from pipelines.build import build
from pipelines.config import compose
from tests.exactness import assert_same, latest, rows, state

WORDS = ("experiment=kpod_debug", "trainer.threads=1", "trainer.log_every_n_steps=1", "trainer.limit_val_batches=1")
TOLERANCE = 5e-5  # nats: sums over two processes are rounded in another order


@pytest.fixture
def words(tmp_path):
    return ["train", *WORDS, f"run.root={tmp_path}", f"data.cache={tmp_path / 'cache'}", "trainer.max_steps=4"]


def artefacts(cache):
    """Read every array that the phases have left, by kind and name."""
    found = {}
    for path in sorted((cache / "kpod").glob("*/*/*.np[yz]")):
        kind = path.parent.parent.name
        if kind != "nll":
            arrays = np.load(path)
            found[kind, path.name] = dict(arrays) if path.suffix == ".npz" else {"": arrays}
    return found


def assert_equal_artefacts(one, two):
    assert {kind for kind, _ in one} == {"samples", "weights", "difficulty", "schedule"}
    assert_equal_arrays(one, two)


def assert_equal_arrays(one, two):
    assert one.keys() == two.keys()
    for place, arrays in one.items():
        assert arrays.keys() == two[place].keys()
        for name, values in arrays.items():
            assert np.array_equal(values, two[place][name]), (place, name)


def losses(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file)]


def test_each_phase_can_be_the_last_and_is_not_made_again(here, words, tmp_path):
    for until, name in (("weights", "weights.npz"), ("difficulty", "difficulty.npz"), ("schedule", "schedule.npz")):
        done = here(*words, f"module.until={until}")
        assert done.returncode == 0, done.stderr
        assert "finished" in done.stdout
        (made,) = (tmp_path / "cache" / "kpod" / until).glob(f"*/{name}")
        assert str(made.parent) in done.stdout
        assert ("weights: training in" in done.stdout) == (until == "weights")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.np[yz]")}
    whole = here(*words, "run.name=whole")
    assert whole.returncode == 0, whole.stderr
    assert "weights: done before, in" in whole.stdout
    assert "difficulty: one forward" not in whole.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.np[yz]")} == before
    pictures = {path.name for path in (tmp_path / "whole").iterdir()}
    assert pictures >= {"schedule.png", "token_weights.html", "token_weights.png", "accuracy.png", "loss.png"}
    answers = list(csv.DictReader((tmp_path / "whole" / "tables" / "answers.csv").open(newline="")))
    assert len(answers) == 8
    assert all(row["question"] and row["gold"] for row in answers)


def test_what_decides_a_phase_gives_it_a_folder_of_its_own(here, words, tmp_path):
    for change in ("run.seed=1", "run.seed=2", "module.weighting.alpha=0.25", "data.template=hash", "module.student=tiny"):
        done = here(*words, "module.until=weights", "module.weighting.epochs=1", change)
        assert done.returncode == 0, done.stderr
        assert "weights: training in" in done.stdout
    assert len([*(tmp_path / "cache" / "kpod" / "weights").glob("*/weights.npz")]) == 5


def test_token_weights_are_learned_on_the_embedding_that_the_student_starts_from(here, words, tmp_path, monkeypatch):
    from lightning_modules.kpod.module import KpodModule
    from lightning_modules.kpod.weighting.module import WeightingModule

    seen = []
    for kind, read in ((WeightingModule, lambda m: m.network.embedding), (KpodModule, lambda m: m.model.get_input_embeddings().weight)):
        built = kind.configure_model

        def note(module, built=built, read=read):
            built(module)
            seen.append(read(module).detach().clone())

        monkeypatch.setattr(kind, "configure_model", note)
    assert here(*words, "run.seed=5").returncode == 0
    assert len(seen) >= 2
    assert all(torch.equal(seen[0], other) for other in seen)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_stopped_while_it_weighs_tokens_goes_on_there_to_the_same_bits(number, here, fivefold, words, tmp_path):
    words = [*words, "module.weighting.epochs=8"]  # 24 steps, so that the signal comes before the last
    whole = here(*words, "run.name=whole")
    assert whole.returncode == 0, whole.stderr
    again = [word.replace(str(tmp_path / "cache"), str(tmp_path / "other")) for word in words]
    process = fivefold(*again, "run.name=broken", "checkpoint.every_n_steps=2", wait=False)
    printed = []
    for line in process.stdout:
        printed.append(line)
        if line.startswith("step 4/24"):
            process.send_signal(number)
    assert process.wait(timeout=120) in (130, -signal.SIGKILL), printed
    assert not [*(tmp_path / "other" / "kpod" / "weights").glob("*/meta.json")]
    resumed = here(*again, "run.name=broken", "checkpoint.every_n_steps=2")
    assert resumed.returncode == 0, resumed.stderr
    assert ", on from step=" in resumed.stdout
    assert_equal_artefacts(artefacts(tmp_path / "cache"), artefacts(tmp_path / "other"))
    assert_same(state(tmp_path / "whole")["weights"], state(tmp_path / "broken")["weights"])
    assert rows(tmp_path / "whole") == rows(tmp_path / "broken")


@pytest.mark.slow
def test_a_run_killed_between_two_parts_of_its_difficulties_goes_on_there_to_the_same_bits(here, fivefold, words, tmp_path):
    words = [*words, "data.problems=2500", "module.token_weights=off", "module.difficulty_weights=off", "module.until=schedule"]
    again = [word.replace(str(tmp_path / "cache"), str(tmp_path / "other")) for word in words]
    process = fivefold(*again, "run.name=broken", wait=False)
    while not (parts := sorted((tmp_path / "other" / "kpod").glob("nll/*/nll-*.npy"))):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not [*(tmp_path / "other" / "kpod").glob("difficulty/*/meta.json")]
    written = [part.stat().st_mtime_ns for part in parts]
    assert here(*again, "run.name=broken", "run.resume=auto").returncode == 0
    assert [part.stat().st_mtime_ns for part in parts] == written  # not worked out again
    assert here(*words, "run.name=whole").returncode == 0
    one, two = artefacts(tmp_path / "cache"), artefacts(tmp_path / "other")
    assert {kind for kind, _ in one} == {"samples", "difficulty", "schedule"}
    assert_equal_arrays(one, two)


def test_a_resumed_run_whose_difficulties_are_gone_is_refused(here, words, tmp_path):
    assert here(*words, "run.name=run").returncode == 0
    for kind in ("difficulty", "nll"):
        shutil.rmtree(tmp_path / "cache" / "kpod" / kind)
    done = here(*latest([*words, "run.name=run", "run.resume=auto", "trainer.max_steps=8"]))
    assert done.returncode == 2
    assert "run.resume: the difficulties that this run began with are gone" in done.stderr


def test_with_all_parts_off_a_run_is_plain_fine_tuning(tmp_path):
    """Against a loop of transformers' own loss and torch's AdamW."""
    off = ["module.token_weights=off", "module.progressive=false", "trainer.max_steps=6", "optim.lr=0.003",
           "optim.schedule.name=constant", "optim.schedule.warmup=0", "trainer.gradient_clip_val=off", f"data.cache={tmp_path}"]
    config = compose([*WORDS, *off])
    built = build(config, None)
    built.trainer.fit(built.module, datamodule=built.data)

    plain = build(config, None)
    plain.data.setup()
    plain.module._trainer = built.trainer
    built.trainer.callbacks[1].setup(built.trainer, plain.module, "fit")  # the seed of the weights
    plain.module.configure_model()
    model = plain.module.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    batches = iter(plain.data.train_dataloader())
    for _ in range(6):
        batch = next(batches)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for (name, ours), theirs in zip(built.module.model.named_parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=2e-6), name


@pytest.mark.parametrize("student", [
    "data.layout=seq2seq", "data.layout=seq2seq data.prefix_placement=decoder trainer.precision=bf16-mixed",
    "module.lora.rank=4 module.schedule.first=last module.normaliser=weights", "optim=fira optim.rank=8 data.template=hash",
])
def test_any_student_goes_through_all_phases_and_is_evaluated_again_to_the_same_figures(student, here, words, tmp_path):
    done = here(*words, *student.split(), "run.name=run")
    assert done.returncode == 0, done.stderr
    evaluated = here("evaluate", f"run={tmp_path / 'run'}", "trainer.threads=1")
    assert evaluated.returncode == 0, evaluated.stderr
    figures = [[line.split() for line in text.rpartition("finished" if text is done.stdout else "evaluated")[2].splitlines()
                if line.startswith("val/")] for text in (done.stdout, evaluated.stdout)]
    assert len(figures[0]) >= 5
    assert figures[0] == figures[1]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp optim=fira optim.rank=8", "deepspeed"])
def test_two_processes_learn_what_one_learns(strategy, here, fivefold, words, tmp_path):
    same = [*words, "trainer.accumulate_grad_batches=2", "optim.schedule.name=constant", "optim.schedule.warmup=0"]
    optimizer = strategy.split()[1:]
    alone = here(*same, *optimizer, "run.name=one", "data.batch_size=4")
    assert alone.returncode == 0, alone.stderr
    both = fivefold(*same, "run.name=two", "data.batch_size=2", f"strategy={strategy.split()[0]}", *optimizer, "trainer.devices=2")
    assert both.returncode == 0, both.stdout + both.stderr
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    difference = max(abs(a - b) for a, b in zip(one, two, strict=True))
    print(f"strategy={strategy}: largest difference of the loss {difference:.2e}")
    assert difference < TOLERANCE
    answers = [(tmp_path / name / "tables" / "answers.csv").read_text() for name in ("one", "two")]
    assert answers[0] == answers[1]  # each question once, with the same text
    assert len(answers[0].splitlines()) > 8


def test_a_signal_in_the_last_step_of_a_phase_ends_the_run_before_what_comes_next(here, words, tmp_path, monkeypatch):
    from lightning_modules.kpod.weighting.module import WeightingModule

    step = WeightingModule.training_step

    def last(module, batch, batch_idx):
        if module.trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return step(module, batch, batch_idx)

    monkeypatch.setattr(WeightingModule, "training_step", last)
    done = here(*words, "run.name=run")
    assert done.returncode == 130, done.stderr
    assert "done; interrupted before what comes next" in done.stdout
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    assert not (tmp_path / "cache" / "kpod" / "schedule").exists()
    again = here(*words, "run.name=run", "run.resume=auto")
    assert again.returncode == 0, again.stderr
    assert "done before, in" in again.stdout
