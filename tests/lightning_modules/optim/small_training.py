"""Gradients as training has them, and a handful of parameters to take them."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import Parameter

from lightning_modules.optim.fira import Fira, FiraConfig

SHAPES = {"blocks.0.attn.q": (12, 12), "blocks.0.mlp.up": (20, 8), "blocks.0.mlp.down": (8, 20), "embed": (15, 6), "norm": (7,)}


def drifting_gradients(shape: tuple[int, ...], steps: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Iterator[Tensor]:
    """Yield gradients of a few strong directions that turn slowly, a power-law tail, and noise; of a vector, the first row."""
    random = torch.Generator().manual_seed(seed)
    rows, columns = shape if len(shape) == 2 else (1, *shape)
    left, right = (torch.randn(side, side, generator=random, dtype=torch.float64) for side in (rows, columns))
    spectrum = torch.arange(1, min(rows, columns) + 1, dtype=torch.float64) ** -1.0
    for _ in range(steps):
        left, right = (x + 0.1 * torch.randn(x.shape, generator=random, dtype=torch.float64) for x in (left, right))
        u, v = (torch.linalg.qr(x).Q[:, : len(spectrum)] for x in (left, right))
        yield ((u * spectrum) @ v.T + 0.02 * torch.randn(rows, columns, generator=random, dtype=torch.float64)).to(dtype).reshape(shape)


def gradients_of_all(steps: int, dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
    """List the gradients of every parameter for each step."""
    streams = [drifting_gradients(shape, steps, seed, dtype) for seed, shape in enumerate(SHAPES.values())]
    return [dict(zip(SHAPES, gradients, strict=True)) for gradients in zip(*streams, strict=True)]


def small_fira(dtype: torch.dtype = torch.float32, device: str = "cpu", **config: object) -> tuple[dict[str, Parameter], Fira]:
    """Make parameters, drawn once and for all, and Fira on those of attention and MLP."""
    random = torch.Generator().manual_seed(0)
    parameters = {name: Parameter(torch.randn(shape, generator=random).to(dtype).to(device)) for name, shape in SHAPES.items()}
    return parameters, Fira(parameters.items(), FiraConfig(**{"lr": 0.01, "rank": 3, "gap": 5, **config}))


def train(parameters: dict[str, Parameter], optimizer: torch.optim.Optimizer, gradients: Iterable[dict[str, Tensor]]) -> None:
    """Make a step with each of the gradients."""
    for step in gradients:
        for name, gradient in step.items():
            parameters[name].grad = gradient.clone().to(parameters[name])
        optimizer.step()


def same_bits(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    """Tell whether all tensors are equal, bit for bit, and of the same types."""
    return some.keys() == others.keys() and all(a.dtype == others[n].dtype and torch.equal(a, others[n]) for n, a in some.items())


def everything(parameters: dict[str, Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copy all weights and all state under one name each."""
    state = {f"{name}.{key}": value.clone() for name, p in parameters.items() for key, value in optimizer.state[p].items()}
    return {name: p.detach().clone() for name, p in parameters.items()} | state
