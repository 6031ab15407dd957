"""What part of each parameter this process holds: all of it, rows of an FSDP2 shard, or a stretch of one of ZeRO's flat tensors."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.nn import Parameter

from lightning_modules.optim.sharding import Spread, copies_of, rows_of

_spread_later: ContextVar[bool] = ContextVar("spread_later", default=False)


@contextmanager
def spread_later() -> Iterator[None]:
    """Let optimizers that are made inside wait with their state until `distribute` tells them how parameters lie.

    Otherwise each process would first make room for the state of the whole model.
    """
    token = _spread_later.set(True)
    try:
        yield
    finally:
        _spread_later.reset(token)


def is_spread_later() -> bool:
    """Tell whether `spread_later` is in force."""
    return _spread_later.get()


def full_shape(parameter: Tensor) -> tuple[int, ...]:
    """Return the shape of a whole parameter, also where DeepSpeed's ZeRO 3 has left an empty tensor in its place."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


@dataclass(frozen=True)
class Held:
    """The part of a parameter that this process holds."""

    tensor: Tensor  # a parameter, or a flat tensor with many; its `.grad` is the gradient
    stretch: slice | None = None  # of the flat tensor; None: all of it

    @property
    def weight(self) -> Tensor:
        """The numbers held here, sharing memory with the parameter; in its own shape if it is whole."""
        return self._part(self.tensor.detach())

    @property
    def gradient(self) -> Tensor | None:
        """The gradient of those numbers; None where there is none."""
        return None if self.tensor.grad is None else self._part(self.tensor.grad)

    def _part(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, DTensor):
            tensor = tensor.to_local()
        return tensor if self.stretch is None else tensor[self.stretch]


def dtensor_spreads(named: Iterable[tuple[str, Parameter]]) -> tuple[list[Spread], dist.ProcessGroup | None]:
    """Read from FSDP2's parameters how their rows are spread, and over which group; replicas (HSDP) repeat the same work.

    Raises ValueError for shards that are not rows over one mesh dimension, such as those of tensor parallelism.
    """
    spreads: list[Spread] = []
    group: dist.ProcessGroup | None = None
    for name, p in named:
        assert isinstance(p, DTensor)
        sharded = [dim for dim, placement in enumerate(p.placements) if not placement.is_replicate()]
        if len(sharded) > 1 or not all(type(p.placements[dim]) is Shard and p.placements[dim].is_shard(0) for dim in sharded):
            raise ValueError(f"{name}: is sharded as {p.placements}, but its optimizer takes rows over one mesh dimension: "
                             "use strategy=fsdp without tensor parallelism")
        group = p.device_mesh.get_group(sharded[0] if sharded else p.device_mesh.ndim - 1)
        spread = rows_of if sharded else copies_of
        spreads.append(spread(name, tuple(p.shape), dist.get_world_size(group)))
    return spreads, group


def spread_like(parameter: DTensor, part: Tensor) -> DTensor:
    """Say of a part that it is this process's rows of a tensor spread as an FSDP2 parameter is; memory is shared."""
    return DTensor.from_local(part, parameter.device_mesh, parameter.placements, run_check=False,
                              shape=parameter.shape, stride=parameter.stride())
