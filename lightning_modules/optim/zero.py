"""How DeepSpeed's ZeRO lays parameters out, in the terms of whole-matrix optimizers.

Stages 1 and 2 put the parameters of a group end to end and cut the line into one part for each process. Stage 3 cuts each parameter
into equal chunks and puts a process's chunks of a sub-group end to end. In both, a process holds one interval of each parameter, in a
stretch of one of its flat master tensors. What is read here is private to DeepSpeed, and known to be so in 0.19.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter

from lightning_modules.optim.layout import Held, full_shape
from lightning_modules.optim.sharding import Spread

OFFLOADS = ("cpu_offload", "offload_optimizer", "offload_param", "swap_optimizer")
Cut = Callable[[nn.Module], None]

_cut: ContextVar[Cut | None] = ContextVar("cut", default=None)


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


def gradients_before_step(zero: Any, names: Mapping[int, str]) -> Iterator[tuple[str, Tensor]]:
    """Yield what this process holds of each summed gradient between the backward pass and the step; `names` are by id of the parameter.

    A name comes once for each piece of its gradient. DeepSpeed leaves out steps whose gradients are not finite, without a word on where.
    """
    if hasattr(zero, "bf16_groups"):  # BF16_Optimizer
        lines: Iterable[tuple[Any, Any]] = zip(zero.bf16_groups, zero.fp32_groups_gradients, strict=True)
    else:
        groups = zero.fp16_groups if hasattr(zero, "fp16_groups") else zero.params_in_partition
        lines = ((parameters, zero.averaged_gradients.get(index) or []) for index, parameters in enumerate(groups))
    for parameters, gradients in lines:
        for parameter, gradient in zip(parameters, (g for g in gradients if not getattr(g, "_zero_padding", False)), strict=False):
            yield names[id(parameter)], gradient


# Stage 3: parameters of which a process has a chunk only


@contextmanager
def cutting(cut: Cut) -> Iterator[None]:
    """Let networks that are built inside ask for `cut`, which leaves of each parameter the chunk of this process.

    One that was built without memory can then be given its weights matrix by matrix.
    """
    token = _cut.set(cut)
    try:
        yield
    finally:
        _cut.reset(token)


def cut_in_force() -> Cut | None:
    """Return what cuts networks where `cutting` is in force, else None."""
    return _cut.get()


def is_cut(parameter: Tensor) -> bool:
    """Tell whether stage 3 has left this process a chunk only."""
    return getattr(parameter, "ds_tensor", None) is not None


def cut_parameters(network: nn.Module, to_chunk: Callable[[Parameter], None], dtype: torch.dtype, device: torch.device) -> None:
    """Let DeepSpeed's `to_chunk` cut each parameter of a network, in the type that it is computed in; tied ones stay tied.

    Parameters without memory get chunks without values: `fill` is to give them some.
    """
    made: dict[Parameter, Parameter] = {}
    for layer in network.modules():
        for name, parameter in layer._parameters.items():
            if parameter is None or is_cut(parameter):
                continue
            if parameter not in made:
                made[parameter] = _cut_one(parameter, to_chunk, dtype if parameter.is_floating_point() else parameter.dtype, device)
            layer._parameters[name] = made[parameter]


def _cut_one(parameter: Parameter, to_chunk: Callable[[Parameter], None], dtype: torch.dtype, device: torch.device) -> Parameter:
    if parameter.is_meta:
        empty = Parameter(torch.empty(parameter.shape, dtype=dtype, device=device), parameter.requires_grad)
        to_chunk(empty)
        return empty
    whole = parameter.data
    parameter.data = whole.to(device, dtype)
    to_chunk(parameter)
    _keep_unrounded(parameter, whole.reshape(-1)[_chunk(parameter)])
    return parameter


def _chunk(parameter: Tensor) -> slice:
    """Return where this process's chunk of a cut parameter lies in the whole, filling left out."""
    size, count = parameter.ds_tensor.ds_numel, parameter.ds_numel  # type: ignore[attr-defined]
    first = min(dist.get_rank(parameter.ds_process_group) * size, count)  # type: ignore[attr-defined]
    return slice(first, min(first + size, count))


def fill(parameter: Tensor, whole: Any) -> None:
    """Give a cut parameter its values from `whole`, a tensor or a safetensors slice of its shape, and read only the rows needed."""
    chunk, (rows, *_) = _chunk(parameter), full_shape(parameter)
    if chunk.start < chunk.stop:
        row = parameter.ds_numel // rows  # type: ignore[attr-defined]
        first = chunk.start // row
        piece = whole[first : -(-chunk.stop // row)].reshape(-1)[chunk.start - first * row : chunk.stop - first * row]
        parameter.ds_tensor.data[: piece.numel()].copy_(piece)  # type: ignore[attr-defined]
        _keep_unrounded(parameter, piece)


def _keep_unrounded(parameter: Tensor, piece: Tensor) -> None:
    """Keep the chunk as it was before it was rounded, for the float32 masters that come later."""
    if piece.dtype != parameter.dtype and parameter.requires_grad:
        parameter.unrounded = piece.clone()  # type: ignore[attr-defined]


def take_unrounded(named_parameters: Iterable[tuple[str, Parameter]]) -> dict[str, Tensor]:
    """Return the kept chunks by name, and keep them no longer."""
    return {name: p.__dict__.pop("unrounded") for name, p in named_parameters if "unrounded" in p.__dict__}


def overwrite(tensor: Tensor, whole: Tensor) -> None:
    """Write a whole parameter or buffer over what this process holds of it, cut or not, in the type that it is kept in."""
    if is_cut(tensor):
        piece = whole.reshape(-1)[_chunk(tensor)]
        tensor.ds_tensor.data[: piece.numel()].copy_(piece)  # type: ignore[attr-defined]
        if tensor.shape != whole.shape:  # not gathered at present
            return
    tensor.data.copy_(whole)
