"""What a sample is worth to all others: the change of the mean loss when it is given more weight (Koh and Liang 2017; OTGNet eq. 12).

    worth(v) = ∇L^T (H + λ)^-1 ∇l(v),    L the mean of all l, H its Hessian

Positive: more weight on v lowers L. The curvature is that of Gauss and Newton, J^T (diag p - p p^T) J, which is the Hessian's positive
part; the inverse is found by conjugate gradients or by LiSSA's series, or is left out, which leaves the product of gradients. One product
of the Jacobian with the direction then gives the worth of all samples at once.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.func import jvp, vjp

Curvature = Literal["gradient", "lissa", "cg"]
Parameters = dict[str, Tensor]
Logits = Callable[[Parameters], Tensor]  # parameters -> logits (n, C) of all samples


def worth(logits: Logits, parameters: Parameters, label: Tensor, curvature: Curvature, damping: float = 0.01, steps: int = 20,
          by_mean: bool = False) -> Tensor:
    """Return the worth of each sample (n,), with labels (n,); logits of closed classes are -inf.

    `damping` is λ; `steps` bounds the iterations. `by_mean`: the product adds up the means of all parameters, not their sums, so that a
    large matrix counts no more than a bias.
    """
    said, pull, *_ = vjp(logits, parameters)
    chances = torch.softmax(said, -1)
    error = chances.clone()
    error[torch.arange(len(label)), label] -= 1  # dl/dlogits
    gradient = pull(error / len(label))[0]
    direction = gradient

    def curve(vector: Parameters) -> Parameters:
        moved = _finite(jvp(logits, (parameters,), (vector,))[1])
        bent = chances * (moved - (chances * moved).sum(-1, keepdim=True))
        product = pull(bent / len(label))[0]
        return {name: product[name] + damping * vector[name] for name in vector}

    if curvature == "cg":
        direction = conjugate_gradients(curve, gradient, steps)
    elif curvature == "lissa":
        direction = lissa(curve, gradient, steps)
    if by_mean:
        direction = {name: value / value.numel() for name, value in direction.items()}
    moved = _finite(jvp(logits, (parameters,), (direction,))[1])
    return (error * moved).sum(-1)


def _finite(moved: Tensor) -> Tensor:
    """Let logits that are -inf not move."""
    return torch.nan_to_num(moved, nan=0.0, posinf=0.0, neginf=0.0)


def _dot(one: Parameters, other: Parameters) -> Tensor:
    return torch.stack([(one[name] * other[name]).sum() for name in one]).sum()


def _plus(one: Parameters, other: Parameters, factor: Tensor | float) -> Parameters:
    return {name: one[name] + factor * other[name] for name in one}


def conjugate_gradients(product: Callable[[Parameters], Parameters], target: Parameters, steps: int, tolerance: float = 1e-6) -> Parameters:
    """Solve A x = target for a symmetric positive A given by its product, in at most `steps` iterations."""
    x = {name: torch.zeros_like(value) for name, value in target.items()}
    rest, along = target, target
    size = _dot(rest, rest)
    first = size
    for _ in range(steps):
        if size <= tolerance**2 * first:
            break
        bent = product(along)
        step = size / _dot(along, bent)
        x, rest = _plus(x, along, step), _plus(rest, bent, -step)
        size, before = _dot(rest, rest), size
        along = _plus(rest, along, size / before)
    return x


def lissa(product: Callable[[Parameters], Parameters], target: Parameters, steps: int) -> Parameters:
    """Sum the series x <- target + (1 - A / s) x, over s, with s the largest eigenvalue of A by power iteration, so that it converges."""
    vector, scale = target, torch.ones(())
    for _ in range(10):
        length = _dot(vector, vector).sqrt()
        if length == 0:
            return target
        vector = product({name: value / length for name, value in vector.items()})
        scale = _dot(vector, vector).sqrt()
    scale = 1.1 * scale
    x = target
    for _ in range(steps):
        x = _plus(_plus(target, x, 1.0), product(x), -1.0 / scale)
    return {name: value / scale for name, value in x.items()}
