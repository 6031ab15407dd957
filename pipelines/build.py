"""Config -> datamodule, module and Trainer. The only place where a Trainer is made."""

import dataclasses
import importlib
import inspect
import typing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment

from lightning_modules.base import MethodModule, OptimizerFactory
from pipelines.callbacks import Findings, LearningRate, RunRecord, SeedEachBatch, Throughput
from pipelines.checkpoints import Checkpoints, WholeFiles
from pipelines.heap import keep_freed_memory
from pipelines.logs import set_up_logs
from pipelines.nonfinite import NonFinite
from pipelines.out_of_memory import OutOfMemory
from pipelines.overfit import keep_to
from pipelines.processes import rank
from pipelines.profile import StepProfile
from pipelines.progress import progress_bar
from pipelines.schema import Component, RunConfig
from pipelines.slurm import in_job, launcher
from pipelines.strategies import make_strategy
from pipelines.tracking import MetricsFile, wandb_logger, wandb_mode


@dataclass
class Built:
    """Everything that a command needs to train or evaluate."""

    data: LightningDataModule
    module: MethodModule
    trainer: Trainer
    record: RunRecord
    loggers: list[Logger]

    def validate_if_needed(self) -> None:
        """Validate a run whose last step was not: one that was killed between its last checkpoint and its end. Nothing is logged."""
        trainer = self.trainer
        if self.record.validated_step != trainer.global_step and trainer.limit_val_batches != 0:
            trainer.loggers = []
            trainer.validate(self.module, datamodule=self.data, verbose=False)


def build(config: RunConfig, folder: Path | None, work: str = "train") -> Built:
    """Make the parts of a run; with `folder` None nothing is written to disk (dry runs, evaluation). `work` is what W&B calls it."""
    set_up_logs()
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    if config.trainer.keep_memory:
        keep_freed_memory()
    seed_everything(config.run.seed, workers=True, verbose=False)
    data, module = make_data(config), make_module(config)
    if config.trainer.overfit_batches:
        keep_to(data, config.trainer.overfit_batches)
    record, loggers = RunRecord(), _loggers(config, folder, work)
    return Built(data, module, make_trainer(config, folder, record, loggers, patient=work == "evaluate"), record, loggers)


def make_data(config: RunConfig) -> LightningDataModule:
    """Make the datamodule; nothing is read yet."""
    return _component(config.data, seed=config.run.seed)


def make_module(config: RunConfig) -> MethodModule:
    """Make the module with the optimizer that it will use; its networks may come later, in `configure_model`."""
    optimizer = OptimizerFactory(*_load(config.optim))
    kind, values = _load(config.module)
    return kind(values, optimizer)


def stand_in_trainer(config: RunConfig, data: Any) -> SimpleNamespace:
    """Make what a module asks its trainer for while its networks and optimizers are built, where nothing is trained."""
    t = config.trainer
    return SimpleNamespace(datamodule=data, precision=t.precision, max_steps=max(t.max_steps, 1), max_epochs=None,
                           accumulate_grad_batches=t.accumulate_grad_batches)


def make_trainer(config: RunConfig, folder: Path | None, record: RunRecord, loggers: list[Logger], patient: bool = False) -> Trainer:
    """Translate the trainer section for Lightning; validation intervals are counted in optimizer steps, `patient` is make_strategy's."""
    t = config.trainer
    every = t.val_every_n_steps
    return Trainer(
        accelerator=t.accelerator, devices=t.devices, num_nodes=t.num_nodes, precision=t.precision,
        strategy=make_strategy(config, patient),
        max_steps=t.max_steps, max_epochs=t.max_epochs if t.max_epochs is not None else -1, max_time=t.max_time,
        accumulate_grad_batches=t.accumulate_grad_batches, gradient_clip_val=t.gradient_clip_val,
        val_check_interval=every * t.accumulate_grad_batches if every else None,
        check_val_every_n_epoch=None if every else 1,
        limit_train_batches=t.overfit_batches or t.limit_train_batches,
        limit_val_batches=t.overfit_batches or None if t.limit_val_batches is None else t.limit_val_batches,
        log_every_n_steps=t.log_every_n_steps, deterministic=t.deterministic, fast_dev_run=t.fast_dev_run,
        profiler=None if t.profiler == "pytorch" else t.profiler, use_distributed_sampler=False,
        default_root_dir=folder, enable_model_summary=False, enable_checkpointing=False,
        num_sanity_val_steps=0 if folder is None else 2, plugins=[WholeFiles(), *_environment()],
        logger=loggers, callbacks=_callbacks(config, folder, record),
    )


def _environment() -> list[ClusterEnvironment]:
    """Tell Lightning who starts the processes in a job of Slurm, where it guesses by the job's name; elsewhere it finds out."""
    if not in_job() or launcher() == "torchrun":
        return []
    if launcher() == "here":
        return [LightningEnvironment()]
    from pipelines.srun import SrunStep

    return [SrunStep()]


def _callbacks(config: RunConfig, folder: Path | None, record: RunRecord) -> list[Callback]:
    t = config.trainer
    window = min(max(t.log_every_n_steps * t.accumulate_grad_batches, 2), 100)  # batches between two rows of metrics
    callbacks: list[Callback] = [record, SeedEachBatch(config.run.seed), LearningRate(), Throughput(window), progress_bar(),
                                 NonFinite(t.detect_anomaly and t.devices * t.num_nodes == 1, scaled=t.precision == "16-mixed")]
    if folder is None:
        return callbacks
    debugs = t.detect_anomaly or t.profiler == "pytorch"
    callbacks += [StepProfile(folder)] if t.profiler == "pytorch" else []
    return [*callbacks, OutOfMemory(folder, history=debugs), Findings(folder), Checkpoints(folder / "checkpoints", config.checkpoint)]


def _loggers(config: RunConfig, folder: Path | None, work: str) -> list[Logger]:
    if folder is None:
        return []
    loggers: list[Logger] = [MetricsFile(folder)]
    if rank() == 0 and config.logger.name == "wandb" and wandb_mode(config.logger.mode) != "disabled":
        loggers.append(wandb_logger(config, folder, work))  # other processes would start the same run once more
    return loggers


def _load(component: Component) -> tuple[type, Any]:
    """Import the class of `component` and move the values into the dataclass that its constructor really takes."""
    module, _, name = component.target.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    wanted = typing.get_type_hints(kind.__init__)["config"]
    return kind, _same_values(wanted, component.config)


def _same_values(wanted: Any, value: Any) -> Any:
    """Rebuild `value` (a dataclass read from source) as an instance of `wanted`, nested dataclasses included."""
    hints = typing.get_type_hints(wanted)
    return wanted(**{
        f.name: _same_values(hints[f.name], getattr(value, f.name)) if dataclasses.is_dataclass(hints[f.name]) else getattr(value, f.name)
        for f in dataclasses.fields(value)
    })


def _component(component: Component, seed: int) -> Any:
    """Make a component; a `seed` field left at None takes the run's seed."""
    kind, config = _load(component)
    if "seed" in inspect.signature(type(config)).parameters and config.seed is None:
        config = dataclasses.replace(config, seed=seed)
    return kind(config)
