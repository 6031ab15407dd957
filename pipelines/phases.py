"""Trainings that come before a method's own: each is an ordinary fit in a folder that outlives the run, skipped where it is done."""

import time
from dataclasses import replace
from typing import IO, Literal

from lightning.pytorch.loggers.logger import Logger

from lightning_modules.base import MethodModule, Phase
from pipelines.build import Built, make_trainer
from pipelines.callbacks import RunRecord, seed_at
from pipelines.checkpoints import Checkpoints, Interrupted
from pipelines.errors import ConfigError
from pipelines.pictures import draw_loss
from pipelines.processes import rank
from pipelines.requeue import leave_note
from pipelines.runs import PICTURE, claim, newest_checkpoint
from pipelines.schema import RunConfig
from pipelines.tracking import MetricsFile, Tracker


def run_phases(config: RunConfig, built: Built) -> None:
    """Train each phase of a method that is not done yet; an interrupted one goes on from its newest checkpoint."""
    if type(built.module).phases is MethodModule.phases:
        return
    built.data.prepare_data()
    built.data.setup("fit")
    seed_at(config.run.seed, "weights")  # a phase may look at the weights that the method will start from
    for phase in built.module.phases(built.data):
        lock = _hold(phase, alone=config.trainer.devices * config.trainer.num_nodes == 1)
        try:
            if phase.done:
                _say(f"{phase.name}: done before, in {phase.folder}")
            else:
                _train(_of_phase(config, phase), phase, built.loggers)
        finally:
            if lock is not None:
                lock.close()


def _hold(phase: Phase, alone: bool) -> IO[str] | None:
    """Keep other runs from training a phase; a run of one process waits while another trains it, and has it then."""
    if phase.done or rank() > 0:
        return None
    waits = False
    while True:
        try:
            return claim(phase.folder)
        except ConfigError:
            if not alone:
                raise
        if not waits:
            _say(f"{phase.name}: waiting for another run that trains it in {phase.folder}")
        waits = True
        time.sleep(1)


def _of_phase(config: RunConfig, phase: Phase) -> RunConfig:
    """Keep of a run's settings what a phase shares: devices, seeds, logging. How long it trains is its own."""
    several = config.trainer.devices * config.trainer.num_nodes > 1
    precision: Literal["bf16-mixed", "32-true"] = "bf16-mixed" if config.trainer.precision == "bf16-mixed" else "32-true"
    trainer = replace(config.trainer, max_epochs=phase.epochs, max_steps=-1, precision=precision, accumulate_grad_batches=1,
                      gradient_clip_val=1.0, val_every_n_steps=None, limit_train_batches=None, limit_val_batches=None, overfit_batches=0)
    return replace(config, trainer=trainer, strategy=replace(config.strategy, name="ddp" if several else "single"),
                   checkpoint=replace(config.checkpoint, best=None))


def _train(config: RunConfig, phase: Phase, loggers: list[Logger]) -> None:
    checkpoint = newest_checkpoint(phase.folder)
    _say(f"{phase.name}: training in {phase.folder}" + (f", on from {checkpoint.stem}" if checkpoint else ""))
    trainer = make_trainer(config, phase.folder, RunRecord(), [MetricsFile(phase.folder), *_beside(loggers, phase.name)])
    try:
        trainer.fit(phase.module, datamodule=phase.data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    except Interrupted:
        _say(f"{phase.name}: interrupted after {trainer.global_step} steps; the same command goes on from there")
        raise
    else:
        if any(isinstance(one, Checkpoints) and one.ended_anyway for one in trainer.callbacks):  # type: ignore[attr-defined]
            _say(f"{phase.name}: done; interrupted before what comes next, with which the same command goes on")
            if rank() == 0:
                leave_note(0)
            raise Interrupted
    finally:
        if rank() == 0:
            draw_loss(phase.folder / "metrics.csv", phase.folder / PICTURE)


def _beside(loggers: list[Logger], name: str) -> list[Logger]:
    """Log a phase in the run's own W&B run, under its name."""
    return [logger.beside(name) for logger in loggers if isinstance(logger, Tracker)]


def _say(line: str) -> None:
    if rank() == 0:
        print(line, flush=True)

