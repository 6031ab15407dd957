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
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.adam import adam

from lightning_modules.optim.adamw import AdamWConfig
from lightning_modules.optim.groups import split_by_target
from lightning_modules.optim.nonfinite import FiniteGradients
from lightning_modules.optim.projection import find_basis, seed_of, squared_row_norms, tall_view, with_canonical_signs
from lightning_modules.optim.state import copied, fits, matched

CANCELS = 0.9  # above this c, |G - c P R| from the norms of G and R would be lost in rounding


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
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    """type of moments and basis; float64 parameters keep float64"""
    nonfinite: Literal["raise", "skip"] = "raise"
    """gradients with inf or NaN: stop and name the parameter, or leave the step out"""
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


@dataclass(frozen=True)
class Place:
    """What tells one projected matrix from another."""

    name: str
    offset: int  # steps by which its refreshes come earlier than the multiples of the gap


class Fira(Optimizer):
    """Fira on the matrices that `config.targets` names, Adam with the same learning rate on all other parameters.

    A step uses the gradients up: it turns them into updates in their own memory and sets `.grad` to None. State exists from the
    start. With `residual=False` this is GaLore (Zhao et al. 2024). Raises ValueError for a target without a matrix, and
    FloatingPointError for gradients that are not finite.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, Parameter]], config: FiraConfig) -> None:
        self.config = config
        projected, rest = split_by_target(named_parameters, config.targets)
        groups = [{"params": projected, "projected": True}, {"params": rest, "projected": False}]
        super().__init__([group for group in groups if group["params"]], {"lr": config.lr})
        self.places = {p: Place(name, index * config.gap // len(projected) if config.refresh_stagger else 0)
                       for index, (name, p) in enumerate(projected)}
        self.without_basis = set(self.places)  # matrices that wait for a first gradient other than 0
        for _, p in (*projected, *rest):
            self.state[p] = self._new_state(p)
        self.finite = FiniteGradients(config.nonfinite, deferred=any(p.device.type != "cpu" for p in self.state))

    def _new_state(self, p: Parameter) -> dict[str, Tensor]:
        """Make the state of a parameter before its first step; `step` stays on the host, so that reading it waits for no device."""
        computed = _compute_dtype(p)
        kept = torch.float64 if computed == torch.float64 else getattr(torch, self.config.state_dtype)
        if p not in self.places:
            return {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p, dtype=kept), "exp_avg_sq": torch.zeros_like(p, dtype=kept)}
        hi, lo = max(p.shape), min(p.shape)
        rank = min(self.config.rank, lo)
        return {
            "step": torch.tensor(0.0),
            "exp_avg": p.new_zeros(hi, rank, dtype=kept),
            "exp_avg_sq": p.new_zeros(hi, rank, dtype=kept),
            "basis": p.new_zeros(lo, rank, dtype=kept),  # 0: none yet
            "residual_norm": p.new_zeros((), dtype=computed),  # of the last limited residual; 0: none yet
        }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step with the gradients at hand; parameters without a gradient, and their state, stay as they are."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        live = {name: p for group in self.param_groups for name, p in zip(group["param_names"], group["params"]) if p.grad is not None}
        if sparse := [name for name, p in live.items() if p.grad.layout != torch.strided]:
            raise RuntimeError(f"the gradient of {sparse[0]} is sparse; build its embedding with sparse=False")
        matrices, rest = ([p for p in live.values() if (p in self.places) == projected] for projected in (True, False))
        if not self.finite.skip(list(live), [p.grad for p in live.values()], urgent=any(map(self._is_due, matrices))):
            for p in matrices:
                self._step_matrix(p, p.grad, self.param_groups[0]["lr"])
            self._step_rest(rest, [p.grad for p in rest], self.param_groups[-1]["lr"])
        for p in live.values():
            p.grad = None
        return loss

    def _is_due(self, p: Parameter) -> bool:
        """Tell whether a matrix gets a new basis at this step: at its first, and at every multiple of the gap."""
        return p in self.without_basis or (int(self.state[p]["step"]) + self.places[p].offset) % self.config.gap == 0

    def _step_matrix(self, p: Parameter, gradient: Tensor, lr: float) -> None:
        state = self.state[p]
        gradient = gradient.to(_compute_dtype(p))  # (m, n); a copy only for 16-bit gradients
        if self._is_due(p):
            self._refresh(p, gradient)
        state["step"] += 1
        write_update(gradient, state, self.config)
        p.add_(gradient, alpha=-lr)
        if self.config.weight_decay:
            p.mul_(1 - lr * self.config.weight_decay)

    def _refresh(self, p: Parameter, gradient: Tensor) -> None:
        """Find a new basis; a gradient of zeros has none to offer and leaves the old one."""
        if not bool(gradient.any()):
            return
        config, state = self.config, self.state[p]
        previous = None if p in self.without_basis else state["basis"].to(gradient.dtype)
        basis = find_basis(gradient, config.rank, config.basis, previous, seed_of(config.seed, self.places[p].name, int(state["step"])))
        state["basis"].copy_(with_canonical_signs(basis) if config.canonical_sign else basis)
        self.without_basis.discard(p)

    def _step_rest(self, parameters: list[Parameter], gradients: list[Tensor], lr: float) -> None:
        """Adam on everything that is not projected, those of equal age together."""
        by_age: dict[int, list[tuple[Parameter, Tensor]]] = {}
        for p, gradient in zip(parameters, gradients, strict=True):
            self.state[p]["step"] += 1
            by_age.setdefault(int(self.state[p]["step"]), []).append((p, gradient))
        for age, pairs in by_age.items():
            states = [self.state[p] for p, _ in pairs]
            adam_([p for p, _ in pairs], [g for _, g in pairs], [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states],
                  age, lr, self.config)
        if self.config.weight_decay:
            for p in parameters:
                if p.ndim >= 2:
                    p.mul_(1 - lr * self.config.weight_decay)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state in plain tensors; raise FloatingPointError if the last step was spoilt."""
        self.finite.settle()
        return copied(super().state_dict())

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state, keeping this optimizer's types, devices and settings; only the learning rate is loaded.

        A matrix whose rank has changed starts anew, with a warning. Raises ValueError for the state of another model or optimizer.
        """
        restarted = 0
        for p, saved in matched(self, state_dict):
            own = self.state[p] = self._new_state(p)
            if not fits(own, saved):
                restarted += 1
                continue
            for key, value in own.items():
                value.copy_(saved[key])
        self.without_basis = {p for p in self.places if not bool(self.state[p]["basis"].any())}
        if restarted:
            warnings.warn(f"optim.rank: not that of the saved state; {restarted} matrices start anew", stacklevel=2)


def _compute_dtype(p: Tensor) -> torch.dtype:
    return torch.promote_types(p.dtype, torch.float32)


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
    if not explicit:  # P'P = 1, so |G - c P R|^2 = |G|^2 - (2 c - c^2) |R|^2
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
    adam_([direction], [low], [state["exp_avg"]], [state["exp_avg_sq"]], int(state["step"]), -1.0, config)
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


def adam_(weights: Sequence[Tensor], gradients: Sequence[Tensor], exp_avgs: Sequence[Tensor], exp_avg_sqs: Sequence[Tensor],
          step: int, lr: float, config: FiraConfig) -> None:
    """Make Adam's step t on lists of tensors with torch's fused kernel: W <- W - lr c_t M / (sqrt(V) + eps).

    The kernel adds its eps after the bias correction of V; divided by that correction it is the eps of the formula. Tensors whose
    types differ from their moments' are computed in float32 and rounded once.
    """
    def computed(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [t.to(torch.promote_types(w.dtype, torch.float32)) for t, w in zip(tensors, weights, strict=True)]

    new_weights, new_avgs, new_squares = computed(weights), computed(exp_avgs), computed(exp_avg_sqs)
    steps = [torch.full((), step - 1.0, device=w.device) for w in weights]
    eps = config.eps / math.sqrt(1 - config.beta2**step)
    adam(new_weights, computed(gradients), new_avgs, new_squares, [], steps, foreach=None, fused=True, amsgrad=False,
         beta1=config.beta1, beta2=config.beta2, lr=lr, weight_decay=0.0, eps=eps, maximize=False)
    for kept, new in ((weights, new_weights), (exp_avgs, new_avgs), (exp_avg_sqs, new_squares)):
        for old, value in zip(kept, new, strict=True):
            if old is not value:
                old.copy_(value)
