"""From a configuration to the parts of a run."""

from datetime import timedelta

import pytest
import torch

from lightning_modules.fira.module import FiraModuleConfig
from lightning_modules.optim.fira import FiraConfig
from pipelines.build import build
from pipelines.callbacks import Throughput
from pipelines.checkpoints import Checkpoints
from pipelines.config import compose
from pipelines.tracking import MetricsFile


def built(*words, folder=None):
    return build(compose(["experiment=fira_debug", *words]), folder)


def test_components_get_the_dataclasses_of_their_own_modules_with_the_values_of_the_words():
    parts = built("optim.lr=0.003", "optim.schedule.name=linear", "module.lora.rank=4")
    assert type(parts.module.config) is FiraModuleConfig
    assert parts.module.config.lora.rank == 4
    assert type(parts.module.optimizer.config) is FiraConfig
    assert (parts.module.optimizer.config.lr, parts.module.optimizer.config.schedule.name) == (0.003, "linear")


def test_data_without_a_seed_of_its_own_take_the_seed_of_the_run():
    assert built("run.seed=7").data.config.seed == 7
    assert built("run.seed=7", "data.seed=3").data.config.seed == 3


@pytest.mark.parametrize(("words", "expected"), [
    (["trainer.val_every_n_steps=5", "trainer.accumulate_grad_batches=3"], (15, None)),
    (["trainer.val_every_n_steps=null"], (1.0, 1)),
])
def test_validation_intervals_are_counted_in_optimizer_steps(words, expected):
    trainer = built(*words).trainer
    assert (trainer.val_check_interval, trainer.check_val_every_n_epoch) == expected


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed"])
def test_processes_of_an_evaluation_wait_a_day_for_each_other_and_those_of_a_training_half_an_hour(strategy):
    config = compose(["experiment=fira_debug", f"strategy={strategy}", "trainer.devices=2", "trainer.accelerator=cpu"])
    found = [build(config, None, work).trainer.strategy._timeout for work in ("train", "evaluate")]
    assert found == [timedelta(minutes=30), timedelta(days=1)]


def test_the_trainer_section_reaches_lightning():
    trainer = built("trainer.max_steps=-1", "trainer.max_epochs=3", "trainer.precision=bf16-mixed", "trainer.gradient_clip_val=0.5",
                    "trainer.limit_val_batches=4", "trainer.max_time=00:01:00:00").trainer
    assert (trainer.max_steps, trainer.max_epochs, trainer.precision, trainer.gradient_clip_val) == (-1, 3, "bf16-mixed", 0.5)
    assert trainer.limit_val_batches == 4
    assert built("trainer.max_steps=9").trainer.max_epochs == -1


@pytest.mark.parametrize(("every", "accumulate", "window"), [(1, 1, 2), (10, 1, 10), (10, 4, 40), (50, 8, 100)])
def test_rates_are_averaged_over_the_batches_between_two_rows(every, accumulate, window):
    trainer = built(f"trainer.log_every_n_steps={every}", f"trainer.accumulate_grad_batches={accumulate}").trainer
    assert next(c for c in trainer.callbacks if isinstance(c, Throughput)).kwargs["window_size"] == window


def test_without_a_folder_there_is_nothing_that_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts = built("logger=wandb")
    assert parts.loggers == parts.trainer.loggers == []
    assert not any(isinstance(callback, Checkpoints) for callback in parts.trainer.callbacks)
    assert not list(tmp_path.iterdir())


def test_with_a_folder_metrics_and_checkpoints_go_there(tmp_path):
    parts = built(folder=tmp_path)
    assert [logger.path for logger in parts.loggers] == [tmp_path / "metrics.csv"]
    saved = next(callback for callback in parts.trainer.callbacks if isinstance(callback, Checkpoints))
    assert saved.folder == tmp_path / "checkpoints"


def test_a_disabled_wandb_is_no_logger(tmp_path):
    assert len(built("logger=wandb", "logger.mode=disabled", folder=tmp_path).loggers) == 1


def test_of_several_processes_only_the_first_starts_the_run_in_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [type(logger) for logger in built("logger=wandb", "logger.mode=offline", folder=tmp_path).loggers] == [MetricsFile]
    assert not (tmp_path / "wandb").exists()


def test_threads_are_set_as_asked():
    before = torch.get_num_threads()
    try:
        built("trainer.threads=3")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
