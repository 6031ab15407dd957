"""fivefold train: compose, build, fit, and say what came out."""

import shutil
import sys
import time
import warnings

from datamodules.text import DataError
from pipelines import describe
from pipelines.config import ConfigError, ConfigWarning, compose, split_flags
from pipelines.processes import rank
from pipelines.requeue import is_queued_again
from pipelines.resume import Place, place_for, way_on, with_settings_of_run
from pipelines.runs import JOB, PICTURE, claim, command_line, end_record, never_began, start_record
from pipelines.schema import RunConfig
from pipelines.seeds import train_seeds
from pipelines.slurm import check_step, in_job

FLAGS = ("--help", "--cfg", "--dry-run")


def run(argv: list[str]) -> int:
    """Train as the words in `argv` say; exit status 0, or 130 after an interruption that saved a checkpoint."""
    flags, words = split_flags(argv, FLAGS)
    words = with_settings_of_run(words)
    if describe.answer(flags, words):
        return 0
    config = compose(words)
    check_step(config)
    if config.cluster.name == "slurm" and not in_job():
        text = "cluster=slurm: no effect, because fivefold train runs here. Write fivefold submit -- train …"
        warnings.warn(ConfigWarning(text), stacklevel=2)
    if "--dry-run" in flags:
        return dry_run(config)
    if config.run.seeds > 1:
        return train_seeds(config, words)
    return try_out(config) if config.trainer.fast_dev_run else train(config)


def train(config: RunConfig) -> int:
    """Fit a new or resumed run and write its record, results and picture."""
    place = place_for(config)
    if rank() > 0:
        return _follow(config, place)
    lock = claim(place.folder)
    start_record(config, place.folder, place.step, command_line())
    for note in place.notes:
        print(note)
    print(f"run folder: {place.folder}" + (f" (resumed at step {place.step})" if place.checkpoint else ""), flush=True)
    began = time.monotonic()
    try:
        results, status = _fit(config, place, began)
    except SystemExit:  # how Lightning passes a Ctrl-C on
        _give_up(place, KeyboardInterrupt())
        raise KeyboardInterrupt from None
    except BaseException as error:
        _give_up(place, error)
        raise
    else:
        end_record(place.folder, status, results)  # before others may take the folder
    finally:
        lock.close()
    describe.results_table(results, place.folder, status)
    if status != "finished":
        print("the job is queued again and goes on from there" if is_queued_again() else way_on(place.folder), flush=True)
    return _exit_status(status)


def _follow(config: RunConfig, place: Place) -> int:
    """Train as one of several processes that is not the first: it writes nothing."""
    _, status = _fit(config, place, time.monotonic())
    return _exit_status(status)


def _exit_status(status: str) -> int:
    """Return 130 for an interrupted run, and 0 where its batch script goes by the note: after any other, srun ends those still at work."""
    return 0 if status == "finished" or is_queued_again() else 130


def _give_up(place: Place, error: BaseException) -> None:
    """Record a run that ended too early; one that could not even begin, because of the user's words or data, leaves no folder."""
    if isinstance(error, ConfigError | DataError) and never_began(place.folder) and not (place.folder / JOB).exists():
        shutil.rmtree(place.folder)
        return
    stopped = isinstance(error, KeyboardInterrupt)
    end_record(place.folder, "interrupted" if stopped else "failed", {})
    note = way_on(place.folder)
    if note and stopped:
        print(note, file=sys.stderr)
    elif note:
        error.add_note(note)


def _fit(config: RunConfig, place: Place, began: float) -> tuple[dict[str, float], str]:
    """Run Lightning; return the last validation figures, with the seconds since `began`, and how the run ended."""
    from lightning_modules.base import NothingToTrain
    from pipelines.build import build
    from pipelines.checkpoints import Interrupted
    from pipelines.phases import run_phases
    from pipelines.pictures import draw_loss
    from pipelines.tracking import close_wandb

    built = build(config, place.folder)
    trainer, done = built.trainer, False
    results: dict[str, float] = {}
    try:
        run_phases(config, built)
        trainer.fit(built.module, datamodule=built.data, ckpt_path=place.checkpoint, weights_only=True if place.checkpoint else None)
        built.validate_if_needed()
        results, done = {"step": trainer.global_step, **built.record.metrics}, True
    except Interrupted:
        results = {"step": trainer.global_step}
    except NothingToTrain as made:
        done = True
        if rank() == 0:
            print(made)
    finally:
        results["seconds"] = time.monotonic() - began
        if rank() == 0:
            draw_loss(place.folder / "metrics.csv", place.folder / PICTURE)
            close_wandb(built.loggers, config, place.folder, results if done else None)
    return results, "finished" if done else "interrupted"


def try_out(config: RunConfig) -> int:
    """Take one batch of training and of validation, and write nothing."""
    from pipelines.build import build

    built = build(config, None)
    built.trainer.fit(built.module, datamodule=built.data)
    print("one batch was trained on and one validated; nothing was written")
    return 0


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
