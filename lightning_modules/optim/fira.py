"""Fira: full-rank training of large language models under low-rank constraint (Chen et al., arXiv 2410.01623, Algorithm 1).

Adam keeps two moments for each weight. Fira keeps them only for R, the gradient G seen in the basis P of its r leading directions,
and lets the rest of the gradient, G - P R, train along with a plain step whose size it borrows: how much Adam stretches row j of R
tells how much to stretch row j of the rest.

    N = c_t M / (sqrt(V) + eps)                      Adam's direction in the basis, moments of R, c_t the bias correction
    phi_j = |N_j| / |R_j|                            norm-based scaling, one factor for each index of the long side (Eq. 9)
    S = phi (G - P R)                                the residual, limited to grow by at most gamma a step (Algorithm 1)
    W <- W - lr alpha (P N + S)                      variant "paper"
    W <- W - lr (alpha P N + phi (G - alpha P R))    variant "official": what the authors' package computes and trained with

Both are one formula, U = f G + (alpha N - c f R) P', with f = phi or alpha phi and c = alpha or 1. It is written over G, so that
no second matrix of that size is needed, and two products with the basis are enough while c is not near 1.
"""

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from lightning_modules.optim.adamw import AdamW, AdamWConfig, Named, State, adam_, check_keys, computed_dtype
from lightning_modules.optim.groups import split_by_target
from lightning_modules.optim.projection import find_basis, seed_of, squared_row_norms, tall_view, with_canonical_signs

CANCELS = 0.9  # above this c, |G - c P R| from the norms of G and R would be lost in rounding
ROUNDING = 256.0  # a row of G - P R below so many units of rounding of R is noise; the largest seen is 130, with basis=subspace


@dataclass(frozen=True)
class FiraConfig(AdamWConfig):
    lr: float = 0.01
    """peak learning rate; the low-rank part moves at lr x alpha"""
    eps: float = 1e-6
    """added to the root of the second moment, before bias correction"""
    rank: int = 128
    """directions kept of each projected matrix"""
    gap: int = 200
    """steps between two refreshes of the basis (T in the paper)"""
    alpha: float = 0.25
    """weight of the low-rank part; paper: 0.25 below 1B parameters, 0.0625 from there"""
    variant: Literal["official", "paper"] = "official"
    """official: the authors' package; paper: Algorithm 1, which differs unless alpha is 1"""
    scaling: Literal["column", "matrix"] = "column"
    """one scaling factor for each index of the long side, or one for the matrix (Eq. 10)"""
    residual: bool = True
    """train outside the basis as well; off: GaLore"""
    only_scaling: bool = False
    """scale the whole gradient and drop the low-rank part (the paper's Fira-only-scaling)"""
    limiter_gamma: float | None = 1.01
    """largest growth of the residual's norm in a step; null: no limit"""
    basis: Literal["svd", "gram", "randomized", "subspace"] = "svd"
    """how the basis is found: exactly (svd, gram) or from a seeded sketch; subspace starts from the last basis and is cheapest"""
    refresh_stagger: bool = False
    """spread the refreshes of the matrices over the gap instead of making all in one step"""
    canonical_sign: bool = False
    """fix the signs of the basis, for equal results on different devices; the official package does not"""
    targets: list[str] = field(default_factory=lambda: ["attn", "mlp"])
    """regular expressions; matrices whose name matches one are projected, all else gets plain Adam"""
    seed: int = 0
    """seeds the sketches of basis=randomized and subspace"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rank", "gap", "alpha"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: must be above 0, not {getattr(self, name)}")
        if self.limiter_gamma is not None and not self.limiter_gamma >= 1:
            raise ValueError(f"limiter_gamma: must be 1 or above, or null for no limit, not {self.limiter_gamma}")
        if self.only_scaling and not self.residual:
            raise ValueError("only_scaling: leaves nothing to train with residual=false; choose one of the two")
        if not self.targets:
            raise ValueError("targets: must name at least one pattern, such as [attn, mlp]; choose optim=adamw to project nothing")
        for pattern in self.targets:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"targets: '{pattern}' is not a regular expression ({error})") from error

    def without_effect(self) -> dict[str, str]:
        """Name the keys of a residual that is off, and the seed of an exact basis."""
        idle = {} if self.residual else dict.fromkeys(("variant", "scaling", "limiter_gamma"), "residual=false leaves the residual out")
        return idle | ({"seed": f"basis={self.basis} draws nothing"} if self.basis in ("svd", "gram") else {})

    @property
    def in_residual(self) -> float:
        """How much of P R is taken out of the gradient (c in the formula above)."""
        if self.only_scaling:
            return 0.0
        return 1.0 if self.variant == "paper" else self.alpha


class Fira(AdamW):
    """Fira on the matrices that `config.targets` names, Adam with the same learning rate on all other parameters.

    A step turns gradients into updates in their own memory. With `residual=False` this is GaLore (Zhao et al. 2024). Raises ValueError
    for a target without a matrix.
    """

    config: FiraConfig

    def __init__(self, named_parameters: Iterable[tuple[str, Parameter]], config: FiraConfig) -> None:
        self.offsets: dict[str, int] = {}  # projected matrix -> steps by which its refreshes come before the multiples of the gap
        self.without_basis: set[str] = set()  # matrices that wait for a first gradient other than 0
        super().__init__(named_parameters, config)

    def grouped(self, named: Named) -> list[Named]:
        """Part the matrices to project from the other parameters."""
        projected, rest = split_by_target(named, self.config.targets)
        spacing = self.config.gap / len(projected) if self.config.refresh_stagger else 0
        self.offsets = {name: int(index * spacing) for index, (name, _) in enumerate(projected)}
        return [projected, rest]

    def costs(self) -> dict[str, float]:
        """Estimate the work of a step on each matrix: two products with the basis, and its share of a refresh."""
        sides = {name: sorted(self.shapes[name]) for name in self.offsets}
        return {name: 4.0 * lo * hi * min(self.config.rank, lo) + 20.0 * hi * lo * lo / self.config.gap for name, (lo, hi) in sides.items()}

    def new_entry(self, name: str) -> State:
        """Make the state of one parameter; that of a projected matrix is kept by its owner only."""
        if name not in self.offsets:
            return super().new_entry(name)
        self.without_basis.add(name)
        return self._matrix_entry(name) if self.exchange is None or self.exchange.owns(name) else {}

    def _matrix_entry(self, name: str, device: torch.device | str | None = None) -> State:
        weight, (lo, hi) = self.held[name].weight, sorted(self.shapes[name])
        rank, kept, device = min(self.config.rank, lo), self.kept_dtype(weight), device or weight.device
        return {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros(hi, rank, dtype=kept, device=device),
            "exp_avg_sq": torch.zeros(hi, rank, dtype=kept, device=device),
            "basis": torch.zeros(lo, rank, dtype=kept, device=device),  # 0: none yet
            "residual_norm": torch.zeros((), dtype=computed_dtype(weight), device=device),  # of the last limited residual; 0: none yet
        }

    def waits(self, names: Iterable[str]) -> bool:
        """Refreshes look at their gradient on the host."""
        return any(name in self.offsets and self._is_due(name) for name in names)

    def update(self, gradients: Mapping[str, Tensor]) -> None:
        """Step the projected matrices, then all else, then decay."""
        rates = self.rates()
        for name, update in self._updates({name: gradient for name, gradient in gradients.items() if name in self.offsets}):
            weight = self.held[name].weight
            weight.add_(update.view_as(weight), alpha=-rates[name])
        self.adam({name: gradient for name, gradient in gradients.items() if name not in self.offsets})
        self.decay(gradients)

    def _updates(self, gradients: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield the update of each matrix, or the part of it that is held here; 16-bit gradients are copied to float32."""
        if self.exchange is not None:
            yield from self.exchange.run({name: gradient.reshape(-1) for name, gradient in gradients.items()}, self._turn_into_update)
            return
        for name, gradient in gradients.items():
            matrix = gradient.to(computed_dtype(gradient))
            self._turn_into_update(name, matrix)
            yield name, matrix

    def _turn_into_update(self, name: str, gradient: Tensor) -> None:
        """Overwrite the whole gradient (m, n) of a matrix whose state is here with its update."""
        state = self.entries[name]
        if self._is_due(name):
            self._refresh(name, gradient)
        state["step"] += 1
        write_update(gradient, state, self.config)

    def _is_due(self, name: str) -> bool:
        """Tell whether a matrix gets a new basis at this step: at its first, and at every multiple of the gap."""
        return name in self.without_basis or (int(self.entries[name]["step"]) + self.offsets[name]) % self.config.gap == 0

    def _refresh(self, name: str, gradient: Tensor) -> None:
        """Find a new basis; a gradient of zeros has none to offer and leaves the old one."""
        if not bool(gradient.any()):
            return
        config, state = self.config, self.entries[name]
        previous = None if name in self.without_basis else state["basis"].to(gradient.dtype)
        basis = find_basis(gradient, config.rank, config.basis, previous, seed_of(config.seed, name, int(state["step"])))
        state["basis"].copy_(with_canonical_signs(basis) if config.canonical_sign else basis)
        self.without_basis.discard(name)

    def eps_at(self, step: int) -> float:
        """Return the eps that makes torch's kernel add the formula's."""
        return kernel_eps(step, self.config)

    def whole_entry(self, name: str) -> State:
        """Copy the state of one parameter; that of a matrix comes from its owner."""
        exchange = self.exchange
        if exchange is None or name not in self.offsets:
            return super().whole_entry(name)
        gathered: State = {}
        for key, value in self._matrix_entry(name, "meta").items():
            counts = [value.numel() if rank == exchange.owners[name] else 0 for rank in range(exchange.world_size)]
            mine = self.entries[name][key].reshape(-1) if exchange.owns(name) else exchange.like
            pieces = exchange.to_first(mine, counts)
            if pieces:
                gathered[key] = torch.cat(pieces).view(value.shape).to(value.dtype).cpu()
        return gathered

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a whole state as AdamW does; a matrix whose rank has changed starts anew, with a warning."""
        self.restarted = 0
        super().load_state_dict(state_dict)
        if self.restarted:
            warnings.warn(f"optim.rank: not that of the saved state; {self.restarted} matrices start anew", stacklevel=2)

    def load_entry(self, name: str, saved: State) -> None:
        """Take the state of one parameter, if this process keeps it."""
        if name not in self.offsets:
            return super().load_entry(name, saved)
        own = self._matrix_entry(name)
        check_keys(type(self).__name__, name, own, saved)
        fits = all(own[key].shape == saved[key].shape for key in own)
        self.restarted += not fits
        if not self.entries[name]:
            return None
        for key, value in self.entries[name].items():
            value.copy_(saved[key] if fits else own[key])
        has_basis = bool(self.entries[name]["basis"].any())
        (self.without_basis.discard if has_basis else self.without_basis.add)(name)
        return None

def write_update(gradient: Tensor, state: dict[str, Tensor], config: FiraConfig) -> None:
    """Advance the moments of one matrix and write its update U over its gradient (m x n), for W <- W - lr U."""
    tall, basis = tall_view(gradient), state["basis"].to(gradient.dtype)  # (hi, lo), (lo, r)
    low = tall @ basis  # R (hi, r)
    if not config.residual:
        tall.addmm_(adam_direction(low, state, config), basis.mT, beta=0, alpha=config.alpha)
        return
    taken_out = config.in_residual
    explicit = taken_out > CANCELS or (taken_out > 0 and state["basis"].dtype == torch.bfloat16)
    if explicit:  # a third product, but no memory: the gradient becomes the residual
        tall.addmm_(low, basis.mT, alpha=-taken_out)
    low_norms, rest_norms = squared_row_norms(low), squared_row_norms(tall)  # (hi,)
    direction = adam_direction(low, state, config)  # N (hi, r)
    factors = scaling_factors(squared_row_norms(direction), low_norms, rest_norms, config)
    if explicit:  # what rounding leaves of an exactly low-rank gradient counts as 0: it would re-arm the limiter at next to nothing
        rest_norms = torch.where(rest_norms > (ROUNDING * torch.finfo(low.dtype).eps) ** 2 * low_norms, rest_norms, 0.0)
    else:  # P'P = 1, so |G - c P R|^2 = |G|^2 - (2 c - c^2) |R|^2
        rest_norms = (rest_norms - (2 * taken_out - taken_out**2) * low_norms).clamp_min(0)
    norm = (factors.square() * rest_norms).sum().sqrt()
    official = config.variant == "official"
    correction = bias_correction(int(state["step"]), config) if official else 1.0  # the package limits before it corrects
    factors = (factors * limit(norm / correction, state["residual_norm"], config.limiter_gamma))[:, None]  # (hi, 1)
    if not official:
        factors *= config.alpha
    tall.mul_(factors)
    if not config.only_scaling:
        inside = direction.mul_(config.alpha)
        if not explicit:
            inside.addcmul_(low, factors, value=-taken_out)
        tall.addmm_(inside, basis.mT)


def adam_direction(low: Tensor, state: dict[str, Tensor], config: FiraConfig) -> Tensor:
    """Advance the moments with R (hi, r) and return N = c_t M / (sqrt(V) + eps) (hi, r): what Adam would add to a weight of 0."""
    direction = torch.zeros_like(low)
    step = int(state["step"])
    adam_([direction], [low], [state["exp_avg"]], [state["exp_avg_sq"]], step, -1.0, config, kernel_eps(step, config))
    return direction


def scaling_factors(direction: Tensor, low: Tensor, whole: Tensor, config: FiraConfig) -> Tensor:
    """Return phi (hi,) from the squared row norms (hi,) of N, R and of the gradient or residual (Eq. 9, for a matrix Eq. 10).

    Where R is rounding noise beside the gradient the ratio means nothing; it is 0 there instead of a number near infinity.
    """
    if config.scaling == "matrix":
        direction, low, whole = (x.sum().expand_as(x) for x in (direction, low, whole))
    noise = torch.finfo(low.dtype).eps ** 2 * whole
    return torch.where(low > noise, direction.sqrt() / (low.sqrt() + 1e-8), 0.0)


def limit(norm: Tensor, previous: Tensor, gamma: float | None) -> Tensor:
    """Return the factor that keeps `norm` within gamma times `previous`, and store the limited norm there (Algorithm 1).

    A previous norm of 0 or one that is not finite means "none yet"; a norm of 0 is not remembered, since growth from it is undefined.
    """
    if gamma is None:
        return torch.ones_like(norm)
    known = (previous > 0) & previous.isfinite()
    factor = torch.where(known, gamma / (norm / (previous + 1e-8)).clamp_min(gamma), 1.0)
    previous.copy_(torch.where(norm > 0, norm * factor, previous))
    return factor


def bias_correction(step: int, config: FiraConfig) -> float:
    """Return c_t = sqrt(1 - beta2^t) / (1 - beta1^t) for the step t, counted from 1."""
    return math.sqrt(1 - config.beta2**step) / (1 - config.beta1**step)


def kernel_eps(step: int, config: FiraConfig) -> float:
    """Divide eps by the bias correction of sqrt(V): the formula adds it before that correction, torch's kernel after."""
    return config.eps / math.sqrt(1 - config.beta2**step)
