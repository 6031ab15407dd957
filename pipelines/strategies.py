"""single | ddp | fsdp | deepspeed -> Lightning strategies, on GPUs and, for tests and CPU clusters, on CPUs.

A checkpoint is the same file under each of them: whole weights in float32 and the whole state of our optimizers, written by the first
process. A run can therefore go on under another strategy and another number of processes.
"""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.optim import Optimizer

from lightning_modules.optim.adamw import AdamW
from lightning_modules.optim.sharding import copies_of
from pipelines.schema import RunConfig


def make_strategy(config: RunConfig) -> Strategy | str:
    """Make the strategy that the strategy section names."""
    section = config.strategy
    if section.name == "ddp":
        return Copies(find_unused_parameters=section.find_unused_parameters)
    if section.name == "fsdp":
        return Shards(data_parallel_size=config.trainer.devices * config.trainer.num_nodes, tensor_parallel_size=1)
    if section.name == "deepspeed":
        from pipelines.zero_strategy import Zero

        return Zero(stage=section.stage, gradient_clip_val=config.trainer.gradient_clip_val, accelerator=config.trainer.accelerator)
    return "auto"


class Copies(DDPStrategy):
    """DistributedDataParallel: each process has all weights; projected matrices are updated by one owner each, for all."""

    def setup_optimizers(self, trainer: Any) -> None:
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            if isinstance(optimizer, AdamW):
                optimizer.distribute([copies_of(name, shape, self.world_size) for name, shape in optimizer.shapes.items()], None)


class Shards(ModelParallelStrategy):
    """FSDP2: weights, gradients and state lie in rows; the method shards its network in `configure_model`."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__(save_distributed_checkpoint=False, **sizes)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Let Lightning hand the saved states to `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Gather the whole weights on the first process."""
        assert self.model is not None
        return get_model_state_dict(self.model, options=WHOLE)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's rows of whole weights."""
        assert self.model is not None
        set_model_state_dict(self.model, checkpoint["state_dict"], options=WHOLE)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Gather the whole state on the first process."""
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return inner.state_dict()

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part of whole states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write one file, from the first process."""
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the file on every process."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)


WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
