"""Checkpoints: written whole or not at all, at moments from which a run goes on exactly, and on Ctrl-C or SIGTERM."""

import copy
import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lightning_modules.processes import from_all
from pipelines.errors import ConfigError
from pipelines.requeue import is_queued_again, leave_note, warnings_of_end
from pipelines.runs import BEST, LAST, PART, clear_parts, put_in_place, remove_checkpoint, steps_saved
from pipelines.schema import CheckpointSection
from pipelines.sharded import Parts, load_whole
from pipelines.tracking import MetricsFile


class Interrupted(Exception):
    """Training was asked to stop, and did so after saving a checkpoint."""


class Workers:
    """Keep signals from the processes that a loader forks while `shielded`.

    A terminal and some clusters signal every process of a run. A worker that dies of it would take the step down that is to be saved;
    workers end with their loader.
    """

    shielded = False

    @classmethod
    def after_fork(cls) -> None:
        if cls.shielded:
            signal.pthread_sigmask(signal.SIG_BLOCK, warnings_of_end())


os.register_at_fork(after_in_child=Workers.after_fork)


class WholeFiles(TorchCheckpointIO):
    """Write a checkpoint beside its final name and rename it there: whatever happens, a file under that name is whole.

    Lightning's own writer fills the temporary folder first; from another file system the file is then copied, not renamed,
    and a crash of the machine may leave a name without content.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        part = final.with_name(final.name + PART)
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            put_in_place(part, final)
        finally:
            part.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint whole, a sharded one as if it were the file."""
        if Path(path).is_dir():
            return load_whole(Path(path))
        return super().load_checkpoint(path, map_location, weights_only)


def weights_in(path: Path) -> dict[str, Any]:
    """Read the whole weights of a checkpoint, and nothing else."""
    if path.is_dir():
        return Parts(path).weights()
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)["state_dict"]


class Checkpoints(Callback):
    """Save after every n-th optimizer step, when training ends, and when a signal asks for an end.

    Lightning's ModelCheckpoint saves in the middle of a step: before its metrics are written, and before or after its validation as
    it happens, so a resumed run has gaps. Here the position of the loops is noted when a step ends, the one place from which
    Lightning restarts exactly, and the file is written when the next step begins: after the metrics and validation of the step.
    """

    def __init__(self, folder: Path, config: CheckpointSection) -> None:
        self.folder, self.config = folder, config
        self.requested: int | None = None  # signal that asked for an end
        self.ended_anyway = False  # whether one did on some process, after the last step had begun
        self._previous: dict[int, Any] = {}
        self._position: dict[str, Any] = {}  # of the loops after the last optimizer step
        self._rows = 0  # steps whose metrics are in metrics.csv
        self._saved = 0  # step of the newest checkpoint
        self._best = float("-inf")  # figure of the best validation, the higher the better
        self._is_best = False  # whether it is that of the last step

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows, "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rows, self._best = state_dict["rows"], state_dict.get("best", self._best)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        Workers.shielded = True
        if trainer.is_global_zero:
            clear_parts(self.folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = trainer.global_step
        _refuse_other_steps(self._saved)
        for logger in trainer.loggers:  # not in on_fit_start: under FSDP and DeepSpeed our state is restored after that
            if isinstance(logger, MetricsFile):
                logger.rewind(self._rows)
        loop = trainer.fit_loop
        if loop._combined_loader_states_to_load and loop._combined_loader is not None:  # loaders that were set up too early, see base.py
            loop._combined_loader._load_state_dicts(loop._combined_loader_states_to_load)
            loop._combined_loader_states_to_load = []
        for number in warnings_of_end():
            self._previous[number] = signal.signal(number, self._request)

    def _request(self, number: int, frame: Any) -> None:
        if is_queued_again():  # Slurm may warn and then end the job at once; it kills what does not stop
            self.requested = number
            return
        if self.requested is not None:
            raise KeyboardInterrupt
        self.requested = number
        os.write(2, b"\ninterrupted: saving a checkpoint at the end of this step (once more: stop at once, without saving)\n")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop._should_accumulate():
            return  # gradients of half an accumulation window are in no checkpoint
        self._position = copy.deepcopy(trainer.fit_loop.state_dict())
        self._rows = trainer.fit_loop.epoch_loop._batches_that_stepped + 1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note whether a validation is the best so far; its step is saved when it has ended."""
        name = self.config.best
        if name is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if name not in trainer.callback_metrics:
            known = ", ".join(sorted(key for key in trainer.callback_metrics if key.startswith("val/")))
            raise ConfigError(f"checkpoint.best: there is no metric {name}; a validation gives {known}")
        value = float(trainer.callback_metrics[name]) * (1 if self.config.best_is == "highest" else -1)
        self._is_best = value > self._best
        self._best = max(value, self._best)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        between_steps = self._position and trainer.fit_loop.total_batch_idx == self._position["epoch_loop.batch_progress"]["total"]["ready"]
        if not between_steps:
            return
        end = trainer.strategy.reduce_boolean_decision(self.requested is not None, all=False)  # a signal may have reached one process only
        if end or self._is_due(trainer) or self._is_best:
            self._save(trainer)
        if end:
            if trainer.is_global_zero:
                leave_note(trainer.global_step)  # here: after fit, Lightning may have ended the process
            raise Interrupted

    def _is_due(self, trainer: Trainer) -> bool:
        every = self.config.every_n_steps
        return trainer.global_step // every > self._saved // every

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_signals()
        self.ended_anyway = trainer.strategy.reduce_boolean_decision(self.requested is not None, all=False)
        if self._position and (self.config.save_last or self._is_due(trainer) or self._is_best):
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_signals()

    def _restore_signals(self) -> None:
        Workers.shielded = False
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step == self._saved:
            return
        for logger in trainer.loggers:
            logger.save()
        path = self.folder / f"step={trainer.global_step:08d}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        self._saved = trainer.global_step
        if trainer.is_global_zero:
            _link(LAST, path)
            if self._is_best:
                _link(BEST, path)
            self._forget_old()
        self._is_best = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["loops"]["fit_loop"] = self._position

    def _forget_old(self) -> None:
        if self.config.keep >= 0:
            best = (self.folder / BEST).resolve()
            for path in steps_saved(self.folder)[: -1 - self.config.keep]:
                if path.resolve() != best:
                    remove_checkpoint(path)


def _refuse_other_steps(step: int) -> None:
    """Refuse to train where the processes have not all found the same checkpoint: they see different folders, or an old state of one."""
    steps = sorted(set(from_all(step)))
    if len(steps) > 1:
        raise ConfigError(f"run.root: the processes found checkpoints of different steps ({', '.join(map(str, steps))}); "
                          "it must be a folder that all nodes share")


def _link(name: str, path: Path) -> None:
    """Let `name` stand for the checkpoint `path`."""
    link = path.with_name(name + PART)
    link.symlink_to(path.name)
    os.replace(link, path.with_name(name))
