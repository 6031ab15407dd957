"""Networks of which each process holds a part: every forward pass gathers the rest, so that all processes have to make equally many."""

from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method


def sharded(model: nn.Module) -> bool:
    """Tell whether a forward pass gathers weights from other processes: under FSDP2, and under DeepSpeed's ZeRO-3."""
    return isinstance(model, FSDPModule) or any(hasattr(p, "ds_id") for p in model.parameters())


def in_step(model: nn.Module) -> bool:
    """Tell whether this process has to make as many forward passes as the others."""
    return sharded(model) and dist.get_world_size() > 1


def gather_to_generate(model: Any) -> None:
    """Let `generate` gather, too, what FSDP2 has parted of the network's outermost parameters; once, and of no effect elsewhere."""
    if isinstance(model, FSDPModule) and "generate" not in vars(model):
        register_fsdp_forward_method(model, "generate")  # type: ignore[arg-type]
