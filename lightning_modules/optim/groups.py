"""Which parameters a low-rank optimizer projects, and what that saves."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_modules.optim.layout import full_shape

Named = list[tuple[str, Parameter]]


def split_by_target(named_parameters: Iterable[tuple[str, Parameter]], targets: Iterable[str]) -> tuple[Named, Named]:
    """Part the matrices whose name matches one of the regular expressions `targets` from all other parameters.

    Raises ValueError for a pattern that matches no matrix: a slip there would silently train everything at full rank.
    """
    named = list(named_parameters)
    matrices = [name for name, p in named if len(full_shape(p)) == 2]
    for pattern in targets:
        if not any(re.search(pattern, name) for name in matrices):
            shown = ", ".join(sorted({re.sub(r"\d+", "*", name) for name in matrices})[:12])
            raise ValueError(f"optim.targets: '{pattern}' matches no matrix. Matrices here: {shown or 'none'}")
    chosen = {name for name in matrices if any(re.search(pattern, name) for pattern in targets)}
    return [(n, p) for n, p in named if n in chosen], [(n, p) for n, p in named if n not in chosen]


@dataclass(frozen=True)
class ParameterReport:
    """How an optimizer treats one parameter, and what its state costs."""

    name: str
    shape: tuple[int, ...]
    projected: bool
    rank: int | None  # of the projection; None without one
    state_bytes: int
    adamw_bytes: int  # two moments in float32


def describe(optimizer: Optimizer) -> list[ParameterReport]:
    """Report every parameter of an optimizer, in the order of its groups; state that is made on the first step counts as Adam's."""
    return [_report(optimizer, name, p) for group in optimizer.param_groups
            for name, p in zip(group.get("param_names", [str(i) for i in range(len(group["params"]))]), group["params"], strict=True)]


def _report(optimizer: Optimizer, name: str, parameter: Parameter) -> ParameterReport:
    state, adamw = optimizer.state.get(parameter, {}), 2 * 4 * parameter.numel()
    held = sum(v.numel() * v.element_size() for v in state.values()) if state else adamw
    basis = state.get("basis")
    return ParameterReport(name, tuple(parameter.shape), basis is not None, None if basis is None else basis.shape[1], held, adamw)
