"""What a training run says, records and leaves behind, also when it fails."""

import csv
import json
import re

import pytest
import torch

from lightning_modules.fira.module import FiraModule
from pipelines.runs import newest_checkpoint, read_record
from tests.exactness import latest, rows, state


@pytest.fixture
def train(here, debug):
    return lambda *words: here(*latest([*debug, "trainer.max_steps=6", "trainer.val_every_n_steps=4", "run.name=run", *words]))


def test_a_run_shows_its_data_each_step_each_validation_and_the_results_and_nothing_else(train, tmp_path):
    done = train()
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    patterns = [
        rf"run folder: {tmp_path}/run",
        r"(training a tokenizer with 512 tokens)?",
        r"train: \d+ documents, [\d.]+ MB of text, \d+ tokens",
        r"valid: \d+ documents, [\d.]+ MB of text, \d+ tokens",
        r"step 1/6  loss \d\.\d{4}  lr 0\.00e\+00",
        *[rf"step {step}/6  loss \d\.\d{{4}}  lr \S+  [\d,]+ tokens/s  \d:\d\d:\d\d left" for step in (2, 3, 4)],
        r"step 4  val/byte_perplexity [\d.]+  val/loss [\d.]+  val/perplexity [\d.]+",
        r"step 5/6  .*",
        r"step 6/6  loss \d\.\d{4}  lr \S+  [\d,]+ tokens/s",
        r"step 6  val/.*",
        r"finished",
        r"step +6", r"val/loss +[\d.]+", r"val/perplexity +[\d.]+", r"val/byte_perplexity +[\d.]+", r"seconds +[\d.]+",
        rf"run folder: {tmp_path}/run",
    ]
    if not lines[1].startswith("training"):
        del patterns[1]
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)


def test_a_run_leaves_settings_record_metrics_checkpoints_and_picture(train, tmp_path):
    train()
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {".lock", "config.yaml", "run.json", "metrics.csv", "checkpoints", "loss.png"}
    record = read_record(folder)
    assert record["status"] == "finished"
    assert record["results"]["step"] == 6
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == [str(step) for step in range(6)]
    assert [bool(row["val/loss"]) for row in rows] == [False, False, False, True, False, True]
    assert float(rows[-1]["val/perplexity"]) == record["results"]["val/perplexity"]


def test_the_schedule_of_a_run_of_epochs_ends_at_its_last_step(train, tmp_path):
    train("trainer.max_steps=-1", "trainer.max_epochs=2", "trainer.limit_train_batches=7", "trainer.accumulate_grad_batches=2",
          "optim.lr=0.02", "optim.schedule.warmup=0", "optim.schedule.name=linear", "optim.schedule.min_lr_ratio=0.25")
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rates = [float(row["train/lr"]) for row in csv.DictReader(file)]
    assert rates == pytest.approx([0.02 - 0.015 * step / 8 for step in range(8)])
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 8
    assert checkpoint["lr_schedulers"][0]["_last_lr"] == pytest.approx([0.005, 0.005])


@pytest.fixture
def spoilt(monkeypatch):
    """Make the loss of the sixth batch infinite."""
    real = FiraModule.training_step

    def step(self, batch, batch_idx):
        return real(self, batch, batch_idx) * (float("inf") if self.trainer.global_step == 5 else 1.0)

    monkeypatch.setattr(FiraModule, "training_step", step)


def test_gradients_that_are_not_finite_end_a_run_in_one_line_that_names_the_parameter_and_the_way_on(train, tmp_path, spoilt, monkeypatch):
    done = train("trainer.max_steps=9", "trainer.detect_anomaly=false")
    assert done.returncode == 1
    way_on = rf"go on from step 4 with: fivefold train run\.resume={tmp_path}/run"
    assert re.fullmatch(r"error: NotFinite: the gradient of model\.\S+ .*is not finite; .*; this was step 6.*; "
                        rf"{way_on} \(add --traceback to see where\)\n", done.stderr)
    assert read_record(tmp_path / "run")["status"] == "failed"
    newest = newest_checkpoint(tmp_path / "run")
    assert newest.name == "step=00000004.ckpt"
    assert all(weight.isfinite().all() for weight in torch.load(newest, weights_only=True)["state_dict"].values())
    assert (tmp_path / "run" / "loss.png").exists()


def test_a_run_that_failed_goes_on_where_it_was_once_the_cause_is_gone(train, here, tmp_path, spoilt, monkeypatch):
    train("trainer.max_steps=9")
    monkeypatch.undo()
    done = here("train", f"run.resume={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert "(resumed at step 4)" in done.stdout
    record = read_record(tmp_path / "run")
    assert (record["status"], record["results"]["step"]) == ("finished", 9)
    assert [start["from_step"] for start in record["started"]] == [0, 4]


def test_words_or_data_that_cannot_be_used_leave_no_folder(train, tmp_path):
    done = train("data.source=files", "data.root=nowhere")
    assert done.returncode == 2
    assert re.fullmatch(r"error: [^\n]*nowhere[^\n]*\n", done.stderr)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_resumed(train, tmp_path):
    assert train().returncode == 0
    before = (tmp_path / "run" / "run.json").read_text()
    done = train("run.resume=auto")
    assert done.returncode == 2
    assert done.stderr.startswith("error: run.resume: run has finished, after 6 steps; ")
    assert (tmp_path / "run" / "run.json").read_text() == before


def test_a_finished_run_can_be_made_longer(train, tmp_path):
    assert train("trainer.max_steps=5", "checkpoint.every_n_steps=100").returncode == 0
    done = train("run.resume=auto", "trainer.max_steps=8")
    assert done.returncode == 0, done.stderr
    assert "changed since this run began: trainer.max_steps was 5, now 8; checkpoint.every_n_steps was 100, now 4" in done.stdout
    assert "(resumed at step 5)" in done.stdout
    assert state(tmp_path / "run")["step"] == 8
    assert [int(row["step"]) for row in rows(tmp_path / "run")] == list(range(8))


def test_changed_settings_are_refused_before_anything_is_written(train, tmp_path):
    train()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "status": "running"}))
    done = train("run.resume=auto", "optim.alpha=0.5")
    assert done.returncode == 2
    assert "optim.alpha was 0.25, now 0.5" in done.stderr
    assert done.stderr.count("\n") == 1
    assert read_record(tmp_path / "run")["started"] == record["started"]


def test_the_current_folder_is_left_alone(here, debug, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    words = [word for word in debug if not word.startswith("run.root")]
    here(*latest([*words, "trainer.max_steps=2", f"run.root={elsewhere}"]))
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def test_one_batch_can_be_tried_without_leaving_anything(train, tmp_path):
    done = train("trainer.fast_dev_run=true")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
