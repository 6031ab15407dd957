"""fivefold train: compose, build, fit, and say what came out."""

import time
from pathlib import Path

from pipelines import describe
from pipelines.config import ConfigError, compose, split_flags
from pipelines.schema import RunConfig

FLAGS = ("--help", "--cfg", "--dry-run")


def run(argv: list[str]) -> int:
    """Train as the words in `argv` say; exit status 0, or 130 after an interruption that saved a checkpoint."""
    flags, words = split_flags(argv, FLAGS)
    if describe.answer(flags, words):
        return 0
    config = compose(words)
    return dry_run(config) if "--dry-run" in flags else train(config)


def train(config: RunConfig) -> int:
    """Fit a new or resumed run and write its record, results and picture."""
    from pipelines.runs import command_line, end_record, place_for, start_record

    place = place_for(config)
    if place.checkpoint and config.trainer.max_steps > 0 and place.step >= config.trainer.max_steps:
        raise ConfigError(f"trainer.max_steps: {place.folder.name} has trained {place.step} steps already; give more than that to go on")
    if config.run.resume == "auto" and not place.checkpoint:
        print(f"nothing to resume under {place.folder.parent}: starting from step 0")
    start_record(config, place, command_line())
    print(f"run folder: {place.folder}" + (f" (resumed at step {place.step})" if place.checkpoint else ""))
    began = time.monotonic()
    try:
        results, status = _fit(config, place.folder, place.checkpoint, place.step)
    except BaseException as error:
        end_record(place.folder, "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed", {})
        raise
    results["seconds"] = time.monotonic() - began
    end_record(place.folder, status, results)
    describe.results_table(results, place.folder, status)
    return 0 if status == "finished" else 130


def _fit(config: RunConfig, folder: Path, checkpoint: Path | None, step: int) -> tuple[dict[str, float], str]:
    """Run Lightning; return the last validation figures and how the run ended."""
    from pipelines.build import build
    from pipelines.callbacks import Interrupt
    from pipelines.pictures import draw_loss

    built = build(config, folder, step)
    trainer = built.trainer
    trainer.fit(built.module, datamodule=built.data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    interrupt = next(c for c in trainer.callbacks if isinstance(c, Interrupt))  # type: ignore[attr-defined]
    results: dict[str, float] = {"step": trainer.global_step}
    if interrupt.saved is None:
        if config.checkpoint.save_last and not config.trainer.fast_dev_run:
            trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
        if built.record.validated_step != trainer.global_step and config.trainer.limit_val_batches != 0:
            trainer.validate(built.module, datamodule=built.data, verbose=False)
        results.update(built.record.metrics)
    draw_loss(folder / "metrics.csv", folder / "loss.png")
    _close_wandb(trainer.loggers, folder)
    return results, "interrupted" if interrupt.saved else "finished"


def _close_wandb(loggers: list, folder: Path) -> None:
    from lightning.pytorch.loggers import WandbLogger

    for logger in loggers:
        if isinstance(logger, WandbLogger):
            if (folder / "loss.png").exists():
                logger.log_image("loss", [str(folder / "loss.png")])
            logger.experiment.finish()


def dry_run(config: RunConfig) -> int:
    """Build everything up to the first step, print what a run would do, write nothing."""
    from pipelines.build import build
    from pipelines.preview import Preview, PreviewDone

    built = build(config, None)
    built.trainer.callbacks.append(Preview(config))  # type: ignore[attr-defined]
    try:
        built.trainer.fit(built.module, datamodule=built.data)
    except PreviewDone:
        return 0
    return 1
