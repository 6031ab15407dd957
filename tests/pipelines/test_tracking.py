"""metrics.csv, and W&B without a question, a hang or a server."""

import csv
import time

import pytest
import torch
import wandb

from pipelines import tracking
from pipelines.config import ConfigError, compose
from pipelines.tracking import MetricsFile, close_wandb, kind_of_work, labels, wandb_logger, wandb_mode


def read(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def log(metrics, step, **values):
    metrics.log_metrics({name.replace("_", "/"): value for name, value in values.items()}, step)
    metrics.save()


def test_a_step_has_one_row_however_often_something_is_logged_at_it(tmp_path):
    metrics = MetricsFile(tmp_path)
    log(metrics, 0, train_loss=2.5, epoch=0)
    log(metrics, 0, train_lr=0.25)
    log(metrics, 1, train_loss=1.5)
    log(metrics, 1, val_loss=1.25)
    assert read(tmp_path) == [{"step": "0", "epoch": "0", "train/loss": "2.5", "train/lr": "0.25"},
                              {"step": "1", "train/loss": "1.5", "val/loss": "1.25"}]


def test_every_call_of_save_leaves_a_complete_file(tmp_path):
    metrics = MetricsFile(tmp_path)
    for step in range(30):
        for name in ("train_loss", "val_loss" if step % 7 == 6 else "train_lr"):
            log(metrics, step, **{name: step / 4})
            assert [row["step"] for row in read(tmp_path)] == [str(s) for s in range(step + 1)]
            assert read(tmp_path)[-1][name.replace("_", "/")] == str(step / 4)


def test_rewinding_keeps_the_steps_before_and_lets_the_others_come_again(tmp_path):
    whole = MetricsFile(tmp_path)
    for step in range(6):
        log(whole, step, train_loss=step / 2, **({"val_loss": 1.0} if step == 2 else {}))
    expected = read(tmp_path)
    again = MetricsFile(tmp_path)
    again.rewind(4)
    assert read(tmp_path) == expected[:4]
    for step in (4, 5):
        log(again, step, train_loss=step / 2)
    assert read(tmp_path) == expected


def test_a_row_that_was_cut_off_is_dropped_even_if_what_is_left_looks_like_an_earlier_step(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,epoch,train/loss\n1,0,2.0\n15,0,1.5\n1")
    metrics = MetricsFile(tmp_path)
    metrics.rewind(100)
    log(metrics, 16, train_loss=1.25)
    assert [row["step"] for row in read(tmp_path)] == ["1", "15", "16"]


def test_rewinding_to_the_start_and_without_a_file_leave_nothing_behind(tmp_path):
    MetricsFile(tmp_path).rewind(0)
    assert not list(tmp_path.iterdir())
    metrics = MetricsFile(tmp_path)
    log(metrics, 3, train_loss=1.0)
    again = MetricsFile(tmp_path)
    again.rewind(0)
    log(again, 0, train_lr=0.5)
    assert read(tmp_path) == [{"step": "0", "train/lr": "0.5"}]


def test_auto_is_online_only_with_credentials_for_the_server_in_use(logged_out, monkeypatch, tmp_path):
    assert wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    wandb.teardown()
    key = "k" * 40
    (tmp_path / "netrc").write_text(f"machine elsewhere.example.org login user password {key}\n")
    assert wandb_mode("auto") == "offline"
    (tmp_path / "netrc").write_text(f"machine wandb.example.org login user password {key}\n")
    assert wandb_mode("auto") == "online"
    (tmp_path / "netrc").write_text("broken {")
    assert wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", key)
    assert wandb_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode("auto") == "disabled"
    assert wandb_mode("offline") == "offline"


def track(tmp_path, *words):
    """Log one step to W&B under the folder; return what its files are called."""
    config = compose(["experiment=fira_debug", "logger=wandb", *words])
    logger = wandb_logger(config, tmp_path)
    logger.log_metrics({"train/loss": torch.tensor(1.5).item()}, step=0)
    close_wandb([logger], config, tmp_path, {"val/loss": 1.25})
    return sorted(path.name for path in (tmp_path / "wandb").glob("*run-*"))


def test_without_a_login_a_run_is_kept_on_disk_and_resumed_under_the_same_id(logged_out, tmp_path, capsys):
    first = track(tmp_path)
    identity = (tmp_path / "wandb-id").read_text()
    time.sleep(1)  # the folder's name holds the second
    second = track(tmp_path)
    assert len(first) == 1
    assert len(second) == 2
    assert all(name.startswith("offline-run-") and name.endswith(identity) for name in second)
    assert f"wandb sync {tmp_path}/wandb/offline-run-* sends it" in capsys.readouterr().out


def test_asking_for_online_without_a_login_is_refused_instead_of_a_prompt(logged_out, tmp_path):
    with pytest.raises(ConfigError, match=r"logger\.mode: online, but W&B is not logged in; run wandb login, or write logger\.mode=auto"):
        track(tmp_path, "logger.mode=online")


@pytest.mark.parametrize(("key", "url"), [("a" * 40, "http://127.0.0.1:9"), ("short", "http://127.0.0.1:9")])
def test_a_server_that_cannot_be_used_costs_a_warning_and_a_moment_not_the_run(logged_out, monkeypatch, tmp_path, capsys, key, url):
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setattr(tracking, "INIT_SECONDS", 1.0)
    began = time.monotonic()
    assert track(tmp_path)[0].startswith("offline-run-")
    assert time.monotonic() - began < 30
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 1
    assert "W&B is kept on disk" in warned[0]


def test_a_server_that_goes_away_in_the_middle_of_a_run_costs_a_moment_and_a_line(small_wandb, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 2.0)
    config = compose(["experiment=fira_debug", "logger=wandb", "logger.checkpoints=off", "logger.data=false"])
    logger = wandb_logger(config, tmp_path)
    small_wandb.close()
    logger.log_metrics({"train/loss": 1.5}, step=0)
    began = time.monotonic()
    close_wandb([logger], config, tmp_path, {"val/loss": 1.25})
    assert time.monotonic() - began < 30
    assert f"wandb sync {tmp_path}/wandb/run-* sends the rest" in capsys.readouterr().err
    assert len(list(tmp_path.glob("wandb/run-*/run-*.wandb"))) == 1


def test_the_tags_are_the_users_and_what_the_run_is(tmp_path):
    config = compose(["experiment=fira_debug", "optim=galore", "run.tags=[mine,fira]"])
    assert labels(config) == ["mine", "fira", "fira_debug", "optim=galore"]
    with pytest.raises(ConfigError, match=r"run\.tags: W&B takes tags of 1 to 64 characters, not 'x{65}'"):
        compose(["method=fira", f"run.tags=[{'x' * 65}]"])


def test_the_type_of_job_is_the_command_or_the_search_that_a_training_belongs_to(logged_out, monkeypatch, tmp_path):
    assert [kind_of_work(tmp_path / "run", work) for work in ("train", "evaluate")] == ["train", "evaluate"]
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")  # as W&B's agent does
    assert kind_of_work(tmp_path / "run", "train") == "sweep"
    monkeypatch.delenv("WANDB_SWEEP_ID")
    (tmp_path / "sweep.yaml").touch()  # as a local search does
    assert kind_of_work(tmp_path / "trial-000", "train") == "sweep"
