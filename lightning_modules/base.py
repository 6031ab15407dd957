"""What all methods share: where they may run and how their optimizer and schedule come from the config."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_modules.optim.schedule import make_schedule


@dataclass(frozen=True)
class OptimizerFactory:
    """The optimizer that the user chose, not yet tied to parameters; a method may call it once for each network."""

    kind: type[Optimizer]
    config: Any  # the dataclass of `kind`; its `schedule` field is a ScheduleConfig

    def __call__(self, named_parameters: Iterable[tuple[str, Parameter]]) -> Optimizer:
        return self.kind(named_parameters, self.config)  # type: ignore[arg-type, call-arg]

    def schedule(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """Make the learning-rate schedule of `optimizer`; `total_steps` counts optimizer steps."""
        return make_schedule(optimizer, self.config.schedule, total_steps)


class MethodModule(LightningModule):
    """A method: its networks and losses. Subclasses take `(config, optimizer)`.

    `STRATEGIES` names the strategies on which the method is exact; `compose` refuses the others.
    """

    STRATEGIES = ("single",)

    def __init__(self, config: Any, optimizer: OptimizerFactory) -> None:
        super().__init__()
        self.config = config
        self.optimizer = optimizer

    def shard(self, network: nn.Module, blocks: Iterable[nn.Module]) -> nn.Module:
        """Spread a network's weights by rows where the strategy is FSDP2, each of `blocks` gathered on its own; else leave it."""
        if self.device_mesh is not None:
            mesh = self.device_mesh["data_parallel"]
            for block in blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(network, mesh=mesh)
        return network

    def configure_optimizers(self) -> Any:
        """Give Lightning one optimizer over all trainable parameters, its schedule stepping with it."""
        trainable = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        optimizer = self.optimizer(trainable)
        schedule = self.optimizer.schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "train/lr"}}
