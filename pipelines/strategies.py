"""single | ddp | fsdp | deepspeed -> Lightning strategies, on GPUs and, for tests and CPU clusters, on CPUs.

A checkpoint is the same file under each of them: whole weights in float32 and the whole state of our optimizers, written by the first
process. Under FSDP2 it can be a folder instead, with the parts of all processes (sharded.py); every strategy reads both. A run can
therefore go on under another strategy and another number of processes.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.optim import Optimizer

from lightning_modules.optim.adamw import AdamW
from lightning_modules.optim.sharding import copies_of
from pipelines.schema import RunConfig
from pipelines.sharded import Parts, SavedStates, save_parts

PATIENT = timedelta(days=1)  # processes of an evaluation meet when all have answered, and some have much more to answer


def make_strategy(config: RunConfig, patient: bool = False) -> Strategy | str:
    """Make the strategy that the strategy section names; `patient` processes wait for each other as long as an evaluation may need."""
    section = config.strategy
    waits: dict[str, Any] = {"timeout": PATIENT} if patient else {}
    if section.name == "ddp":
        return Copies(find_unused_parameters=section.find_unused_parameters, **waits)
    if section.name == "fsdp":
        return Shards(data_parallel_size=config.trainer.devices * config.trainer.num_nodes, tensor_parallel_size=1,
                      sharded=config.checkpoint.sharded, **waits)
    if section.name == "deepspeed":
        from pipelines.zero_strategy import Zero

        return Zero(stage=section.stage, gradient_clip_val=config.trainer.gradient_clip_val, accelerator=config.trainer.accelerator,
                    **waits)
    return "auto"


class Copies(DDPStrategy):
    """DistributedDataParallel: each process has all weights; projected matrices are updated by one owner each, for all."""

    def setup_optimizers(self, trainer: Any) -> None:
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            if isinstance(optimizer, AdamW):
                optimizer.distribute([copies_of(name, shape, self.world_size) for name, shape in optimizer.shapes.items()], None)


class Shards(ModelParallelStrategy):
    """FSDP2: weights, gradients and state lie in rows; the method shards its network in `configure_model`.

    With `sharded` a checkpoint is a folder to which each process writes its part, else one file as everywhere; both can be loaded.
    """

    def __init__(self, sharded: bool = False, **sizes: Any) -> None:
        super().__init__(save_distributed_checkpoint=False, **sizes)
        self.sharded = sharded

    def setup_optimizers(self, trainer: Any) -> None:
        """Make the optimizers; ValueError for those that cannot tell their part of the state."""
        super().setup_optimizers(trainer)
        others = [type(optimizer).__name__ for optimizer in self.optimizers if not isinstance(optimizer, AdamW)]
        if self.sharded and others:
            raise ValueError(f"checkpoint.sharded: works with optim=adamw, fira or galore, not with {others[0]}; "
                             "choose one of them or checkpoint.sharded=false")

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Let Lightning hand the saved states to `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Gather the whole weights on the first process, or return the rows that are here."""
        assert self.model is not None
        return get_model_state_dict(self.model, options=None if self.sharded else WHOLE)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's rows of whole weights, or read them from the parts."""
        assert self.model is not None
        if PARTS in checkpoint:
            checkpoint[PARTS].fill_weights(get_model_state_dict(self.model), strict)
        else:
            set_model_state_dict(self.model, checkpoint["state_dict"], options=replace(WHOLE, strict=strict))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Gather the whole state on the first process, or return the part that is here."""
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return inner.held_state() if self.sharded and isinstance(inner, AdamW) else inner.state_dict()

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part of whole states, or read it from the parts."""
        for index, (optimizer, state) in enumerate(zip(self.optimizers, checkpoint["optimizer_states"], strict=True)):
            if PARTS in checkpoint:
                if not isinstance(optimizer, AdamW):
                    raise ValueError(f"run.resume: the checkpoint is of optim=adamw, fira or galore, not of {type(optimizer).__name__}")
                state = {**state, "state": SavedStates(checkpoint[PARTS], index, optimizer)}
            optimizer.load_state_dict(state)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write one file from the first process, or a folder from all."""
        if self.sharded:
            save_parts(checkpoint, Path(filepath), self.is_global_zero)
        else:
            Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the file on every process; of a folder only what is not a tensor, and what else it holds."""
        if not Path(checkpoint_path).is_dir():
            return Strategy.load_checkpoint(self, checkpoint_path, weights_only)
        parts = Parts(Path(checkpoint_path))
        return {**parts.rest(), PARTS: parts}


PARTS = "parts"  # where a loaded checkpoint keeps the reader of its tensors
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
