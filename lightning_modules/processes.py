"""What the processes of a run tell each other."""

from typing import Any

import torch.distributed as dist


def from_all(mine: Any) -> list[Any]:
    """Collect an object from every process, in their order."""
    if not dist.is_available() or not dist.is_initialized():
        return [mine]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def from_first(value: Any) -> Any:
    """Hand what the first process has to all."""
    if not dist.is_available() or not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
