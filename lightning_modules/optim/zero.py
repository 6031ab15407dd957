"""How DeepSpeed's ZeRO lays parameters out, in the terms of whole-matrix optimizers.

Stages 1 and 2 put the parameters of a group end to end and cut the line into one part for each process. Stage 3 cuts each parameter
into equal chunks and puts a process's chunks of a sub-group end to end. In both, a process holds one interval of each parameter, in a
stretch of one of its flat master tensors. What is read here is private to DeepSpeed, and known to be so in 0.19.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from lightning_modules.optim.layout import Held, full_shape
from lightning_modules.optim.sharding import Spread

OFFLOADS = ("cpu_offload", "offload_optimizer", "offload_param", "swap_optimizer")


@dataclass
class ZeroLayout:
    """What an optimizer's `distribute` needs to know."""

    group: dist.ProcessGroup | None
    stay: bool  # few matrices are cut
    spreads: list[Spread] = field(default_factory=list)
    held: dict[str, Held] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    def add(self, spread: Spread, flat: Tensor, first: int) -> None:
        """Note that this process's interval of a parameter begins at index `first` of a flat tensor."""
        size = spread.size(self.rank)
        first = first if size else 0
        self.spreads.append(spread)
        self.held[spread.name] = Held(flat, slice(first, first + size))


def zero_layout(zero: Any, named_parameters: Iterable[tuple[str, Parameter]]) -> ZeroLayout:
    """Read the layout from DeepSpeed's optimizer of stage 1, 2 or 3, or its BF16_Optimizer.

    `named_parameters` are those that the optimizer trains. Raises ValueError for offloading, for experts that lie in groups of their
    own, and for parameters that DeepSpeed does not train.
    """
    if any(getattr(zero, name, False) for name in OFFLOADS):
        raise ValueError("DeepSpeed's offload keeps weights and gradients where the processes cannot exchange them: "
                         "switch it off, and take stage 3 or more processes where memory is short")
    named = list(named_parameters)
    names = {id(p): name for name, p in named}
    chunked = hasattr(zero, "fp32_partitioned_groups_flat")
    groups = zero.sub_group_process_groups if chunked else zero.real_dp_process_group
    if any(group is not groups[0] for group in groups):
        raise ValueError("experts that are spread over groups of processes of their own are not supported; use dense layers")
    layout = ZeroLayout(groups[0], stay=not chunked)
    read = _read_chunks if chunked else _read_parts
    read(zero, names, layout)
    if left_out := [name for name, _ in named if name not in layout.held]:
        raise ValueError(f"DeepSpeed does not train {left_out[0]}: parameters without elements have to be frozen")
    return layout


def _read_parts(zero: Any, names: dict[int, str], layout: ZeroLayout) -> None:
    """Stages 1 and 2: the flat tensors are equal parts of one line."""
    world_size = dist.get_world_size(layout.group)
    for flat, parameters, offsets in _lines(zero):
        size = flat.numel()
        for parameter, offset in zip(parameters, offsets, strict=True):
            shape, count = full_shape(parameter), parameter.numel()
            cuts = [min(max(rank * size - offset, 0), count) for rank in range(world_size + 1)]
            spread = Spread(names[id(parameter)], shape, tuple(itertools.pairwise(cuts)))
            layout.add(spread, flat, offset + cuts[layout.rank] - layout.rank * size)


def _lines(zero: Any) -> Iterator[tuple[Tensor, Sequence[Parameter], Sequence[int]]]:
    """Yield for each group this process's part, the parameters in the order of the line, and where each begins."""
    if hasattr(zero, "bf16_groups"):  # BF16_Optimizer
        for flat, parameters in zip(zero.fp32_groups_flat_partition, zero.bf16_groups, strict=True):
            yield flat, parameters, list(itertools.accumulate((p.numel() for p in parameters[:-1]), initial=0))
    else:
        yield from zip(zero.single_partition_of_fp32_groups, zero.round_robin_bit16_groups, zero.round_robin_bit16_offsets, strict=True)


def _read_chunks(zero: Any, names: dict[int, str], layout: ZeroLayout) -> None:
    """Stage 3: each parameter is cut into equal chunks, the last filled up."""
    world_size = dist.get_world_size(layout.group)
    for flat, parameters in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
        first = 0
        for parameter in parameters:
            chunk, count = parameter.partition_numel(), parameter.ds_numel
            cuts = [min(rank * chunk, count) for rank in range(world_size + 1)]
            layout.add(Spread(names[id(parameter)], full_shape(parameter), tuple(itertools.pairwise(cuts))), flat, first)
            first += chunk


def overwrite(tensor: Tensor, whole: Tensor) -> None:
    """Write a whole parameter or buffer over what this process holds of it, cut or not, in the type that it is kept in."""
    chunk = getattr(tensor, "ds_tensor", None)
    if chunk is not None:
        first = dist.get_rank(tensor.ds_process_group) * chunk.ds_numel  # type: ignore[attr-defined]
        piece = whole.reshape(-1)[first : first + chunk.ds_numel]
        chunk.data[: piece.numel()].copy_(piece)
        if tensor.shape != whole.shape:  # not gathered at present
            return
    tensor.data.copy_(whole)
