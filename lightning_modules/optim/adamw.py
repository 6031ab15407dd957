"""AdamW over named parameters, whole or spread over processes: the full-rank baseline, and the frame of whole-matrix optimizers.

State belongs to names. `distribute` tells how the parameters lie when a process does not hold them whole. A saved state is the same
for every layout, so that a run can go on under another strategy and another number of processes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.adam import adam

from lightning_modules.optim.layout import Held, dtensor_spreads, full_shape, is_spread_later, spread_like
from lightning_modules.optim.nonfinite import FiniteGradients, not_finite
from lightning_modules.optim.schedule import ScheduleConfig
from lightning_modules.optim.sharding import Exchange, Spread

Named = list[tuple[str, Parameter]]
State = dict[str, Tensor]
MOMENTS = ("exp_avg", "exp_avg_sq")
SIMD = 16  # float32 numbers in the widest register


@dataclass(frozen=True)
class AdamWConfig:
    lr: float = 1e-3
    """peak learning rate"""
    beta1: float = 0.9
    """decay of the first moment"""
    beta2: float = 0.999
    """decay of the second moment"""
    eps: float = 1e-8
    """added to the root of the bias-corrected second moment"""
    weight_decay: float = 0.0
    """decoupled weight decay of matrices; vectors (norms, biases) have none"""
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    """type of the optimizer's state; float64 parameters keep float64"""
    nonfinite: Literal["raise", "skip"] = "raise"
    """gradients with inf or NaN: stop and name the parameter, or leave the step out"""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """learning rate over the run"""

    def __post_init__(self) -> None:
        for name in ("lr", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: must be above 0, not {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: must lie in 0..1 (1 excluded), not {getattr(self, name)}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay: must be 0 or above, not {self.weight_decay}")


class AdamW(Optimizer):
    """AdamW (Loshchilov & Hutter 2019) with torch's fused kernel; only parameters with two or more dimensions decay.

    State exists from the start. A step uses the gradients up and sets `.grad` to None. Raises FloatingPointError for gradients that
    are not finite. Parameters that FSDP2 has sharded are recognised; for other layouts call `distribute` before the first step.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, Parameter]], config: AdamWConfig) -> None:
        self.config = config
        named = list(named_parameters)
        groups = [members for members in self.grouped(named) if members]
        super().__init__([{"params": members, "index": index} for index, members in enumerate(groups)], {"lr": config.lr})
        self.names = [list(group["param_names"]) for group in self.param_groups]  # kept here, because ZeRO puts flat tensors into groups
        self.shapes = {name: full_shape(p) for name, p in named}
        self.held = {name: Held(p) for name, p in named}
        self.finite = FiniteGradients(config.nonfinite, deferred=any(p.device.type != "cpu" for _, p in named))
        self.exchange: Exchange | None = None
        self.entries: dict[str, State] = {}
        if any(isinstance(p, DTensor) for _, p in named):
            self.distribute(*dtensor_spreads(named))
        elif not is_spread_later():
            self._start_state()

    def grouped(self, named: Named) -> list[Named]:
        """Part the parameters into groups; here they are one."""
        return [named]

    def distribute(self, spreads: list[Spread], group: dist.ProcessGroup | None, held: Mapping[str, Held] | None = None,
                   stay: bool = False) -> None:
        """Tell how the parameters lie among the processes of `group`, before the first step; state starts anew.

        `held` says what this process holds where that is not the parameters themselves; `stay` keeps whole matrices where most of
        them lies, for layouts that cut few matrices.
        """
        self.held.update(held or {})
        like = torch.empty(0, dtype=max((computed_dtype(h.tensor) for h in self.held.values()), key=lambda d: d.itemsize),
                           device=next(iter(self.held.values())).tensor.device)
        self.exchange = Exchange(spreads, self.costs(), like, group, stay)
        self._start_state()

    def costs(self) -> dict[str, float]:
        """Name the parameters that must be whole to be updated, with the work of a step; here there are none."""
        return {}

    def _start_state(self) -> None:
        self.state.clear()
        for name, held in self.held.items():
            self.entries[name] = self.new_entry(name)
            if held.stretch is None:
                self.state[held.tensor] = self.entries[name]  # where torch's own tools look

    def new_entry(self, name: str) -> State:
        """Make the state of one parameter before its first step; `step` stays on the host, so that reading it waits for no device."""
        weight = self.held[name].weight
        kept = self.kept_dtype(weight)
        return {"step": torch.tensor(0.0), **{key: torch.zeros_like(weight, dtype=kept) for key in MOMENTS}}

    def kept_dtype(self, weight: Tensor) -> torch.dtype:
        """Choose the type in which state of a weight is kept."""
        return torch.float64 if weight.dtype == torch.float64 else getattr(torch, self.config.state_dtype)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step with the gradients at hand; parameters without a gradient, and their state, stay as they are."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        present = {id(p) for group in self.param_groups for p in group["params"]}  # ZeRO steps through its groups one by one
        held = {name: h for name, h in self.held.items() if id(h.tensor) in present}
        gradients = {name: gradient for name, h in held.items() if (gradient := h.gradient) is not None}
        if sparse := [name for name, gradient in gradients.items() if gradient.layout != torch.strided]:
            raise RuntimeError(f"the gradient of {sparse[0]} is sparse; build its embedding with sparse=False")
        if self.exchange is not None:
            skip = self._agree(self.exchange, held, gradients)
        else:
            skip = bool(gradients) and self.finite.skip(list(gradients), not_finite(list(gradients.values())), self.waits(gradients))
        if not skip:
            self.update({name: gradients[name] for name in held if name in gradients})
        for h in held.values():
            h.tensor.grad = None
        return loss

    def _agree(self, exchange: Exchange, held: Mapping[str, Held], gradients: dict[str, Tensor]) -> bool:
        """Tell whether all processes leave the step out; a gradient that only others have is 0 here, so that no process waits in vain."""
        there = torch.tensor([name in gradients for name in held], device=exchange.like.device)
        bad = torch.zeros_like(there)
        if gradients:
            bad[there] = not_finite(list(gradients.values()))
        there, bad = exchange.agreed(torch.stack([there, bad]).float()).bool().cpu()
        for name, some in zip(held, there.tolist(), strict=True):
            if some and name not in gradients:
                gradients[name] = torch.zeros_like(held[name].weight)
        return self.finite.skip(list(held), bad, urgent=True)

    def waits(self, names: Iterable[str]) -> bool:
        """Tell whether the coming step waits for the device anyway, so that gradients may as well be judged at once."""
        return False

    def update(self, gradients: Mapping[str, Tensor]) -> None:
        """Decay the weights and make Adam's step with the gradients (or the parts of them) held here."""
        self.decay(gradients)
        self.adam(gradients)

    def rates(self) -> dict[str, float]:
        """Return the present learning rate of each parameter."""
        return {name: group["lr"] for group in self.param_groups for name in self.names[group["index"]]}

    def adam(self, gradients: Mapping[str, Tensor]) -> None:
        """Make Adam's step, parameters of equal age and learning rate together."""
        alike: dict[tuple[int, float], list[str]] = {}
        rates = self.rates()
        for name in gradients:
            self.entries[name]["step"] += 1
            alike.setdefault((int(self.entries[name]["step"]), rates[name]), []).append(name)
        for (step, lr), names in alike.items():
            entries = [self.entries[name] for name in names]
            adam_([self.held[name].weight for name in names], [gradients[name] for name in names],
                  [e["exp_avg"] for e in entries], [e["exp_avg_sq"] for e in entries], step, lr, self.config, self.eps_at(step))

    def eps_at(self, step: int) -> float:
        """Return what the kernel adds to the root of the bias-corrected second moment at step t."""
        return self.config.eps

    def decay(self, names: Iterable[str]) -> None:
        """Shrink the weights with two or more dimensions."""
        if self.config.weight_decay:
            rates = self.rates()
            for name in names:
                if len(self.shapes[name]) >= 2:
                    self.held[name].weight.mul_(1 - rates[name] * self.config.weight_decay)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state in plain tensors, the same for every layout; where it is spread, it is whole on rank 0 only.

        All processes have to call this together. Raises FloatingPointError if the last step was spoilt.
        """
        return self._numbered(self.whole_entry)

    def _numbered(self, entry_of: Callable[[str], State]) -> dict[str, Any]:
        """Put entries into torch's form, parameters numbered through the groups."""
        self.finite.settle()
        numbers = iter(range(len(self.held)))
        groups = [{**group, "param_names": names, "params": [next(numbers) for _ in names]}
                  for group, names in zip(self.param_groups, self.names, strict=True)]
        return {"state": {number: entry_of(name) for number, name in enumerate(self.order)}, "param_groups": groups}

    @property
    def order(self) -> list[str]:
        """List the names as a saved state numbers them."""
        return [name for names in self.names for name in names]

    def whole_entry(self, name: str) -> State:
        """Copy the state of one parameter, gathered on rank 0 if it is spread."""
        entry, exchange = self.entries[name], self.exchange
        if exchange is None:
            return {key: value.clone() for key, value in entry.items()}
        gathered = {"step": entry["step"].clone(), **{key: self.gathered(name, entry[key]) for key in MOMENTS}}
        return gathered if exchange.rank == 0 else {}

    def gathered(self, name: str, part: Tensor) -> Tensor:
        """Gather on rank 0, on the host, a tensor that is spread as the parameter is; what others get is empty."""
        assert self.exchange is not None
        spread = self.exchange.spreads[name]
        sources = spread.sources(0)
        counts = [spread.size(rank) if rank in sources else 0 for rank in range(self.exchange.world_size)]
        pieces = self.exchange.to_first(part.reshape(-1)[: counts[self.exchange.rank]], counts)
        return torch.cat(pieces).view(spread.shape).to(part.dtype).cpu() if pieces else part.new_empty(0)

    def held_state(self) -> dict[str, Any]:
        """Return this process's part of the state under FSDP2, sharing memory: what only it keeps, and its rows of DTensors.

        The parts of all processes together are the whole state. Raises FloatingPointError if the last step was spoilt.
        """
        return self._numbered(lambda name: {key: spread_like(p, value) if (p := self._spread_as(name, key)) is not None else value
                                            for key, value in self.entries[name].items()})

    def room_for(self, name: str, saved: State) -> State:
        """Make room for this process's part of a saved entry, which is given as tensors on "meta"; what it does not keep stays there.

        Filled, the room is what `load_state_dict` takes for the entry.
        """
        if not self.entries[name]:
            return saved
        like = self.held[name].weight
        return {key: spread_like(p, torch.empty_like(like, dtype=value.dtype)) if (p := self._spread_as(name, key)) is not None
                else torch.empty_like(value, device="cpu") for key, value in saved.items()}

    def _spread_as(self, name: str, key: str) -> DTensor | None:
        """Return the FSDP2 parameter as whose rows a tensor of the state is spread; None for what one process keeps whole."""
        parameter = self.held[name].tensor
        whole = key not in MOMENTS or self.exchange is None or name in self.exchange.owners
        return None if whole or not isinstance(parameter, DTensor) else parameter

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a whole state saved under any layout; types, devices and settings stay, only learning rates are loaded.

        Entries are looked up one by one, and may hold no more than what this process keeps (`room_for`).
        Raises ValueError for the state of another model or optimizer.
        """
        saved_groups = state_dict["param_groups"]
        sizes, saved_sizes = [len(names) for names in self.names], [len(group["params"]) for group in saved_groups]
        if sizes != saved_sizes:
            raise ValueError(f"the saved optimizer state is of {saved_sizes} parameters by group, not of {sizes}; "
                             "restore module and optim of that run, or start a new one")
        for group, saved, names in zip(self.param_groups, saved_groups, self.names, strict=True):
            group.update({key: saved[key] for key in ("lr", "initial_lr") if key in saved})
            for name, number in zip(names, saved["params"], strict=True):
                self.load_entry(name, state_dict["state"].get(number, {}))

    def load_entry(self, name: str, saved: State) -> None:
        """Take this process's part of the whole state of one parameter."""
        entry = self.entries[name]
        check_keys(type(self).__name__, name, entry, saved)
        entry["step"].copy_(saved["step"])
        for key in MOMENTS:
            entry[key].copy_(self.part(name, saved[key]).view_as(entry[key]))

    def part(self, name: str, whole: Tensor) -> Tensor:
        """Return this process's part, flat, of a whole tensor, or a DTensor, that is spread as the parameter is."""
        if isinstance(whole, DTensor):
            return whole.to_local().reshape(-1)
        return whole.reshape(-1)[slice(*self.exchange.spreads[name].intervals[self.exchange.rank]) if self.exchange else slice(None)]


def adam_(weights: Sequence[Tensor], gradients: Sequence[Tensor], exp_avgs: Sequence[Tensor], exp_avg_sqs: Sequence[Tensor],
          step: int, lr: float, config: AdamWConfig, eps: float) -> None:
    """Make Adam's step t on lists of tensors with torch's fused kernel; those of 16 bits are computed in float32 and rounded once.

    On a CPU the kernel rounds the last few numbers of a tensor differently from the rest. Lengths are therefore filled up to whole
    SIMD registers, so that no number's update depends on where a shard was cut.
    """
    def computed(tensors: Sequence[Tensor]) -> list[Tensor]:
        cast = [t.to(computed_dtype(w)) for t, w in zip(tensors, weights, strict=True)]
        return [torch.nn.functional.pad(t.reshape(-1), (0, -t.numel() % SIMD)) if t.numel() % SIMD else t for t in cast]

    new_weights, new_avgs, new_squares = computed(weights), computed(exp_avgs), computed(exp_avg_sqs)
    steps = [torch.full((), step - 1.0, device=w.device) for w in weights]
    adam(new_weights, computed(gradients), new_avgs, new_squares, [], steps, foreach=None, fused=True, amsgrad=False,
         beta1=config.beta1, beta2=config.beta2, lr=lr, weight_decay=0.0, eps=eps, maximize=False)
    for kept, new in ((weights, new_weights), (exp_avgs, new_avgs), (exp_avg_sqs, new_squares)):
        for old, value in zip(kept, new, strict=True):
            if old is not value:
                old.copy_(value.view(-1)[: old.numel()].view_as(old) if value.numel() != old.numel() else value)


def check_keys(kind: str, name: str, own: State, saved: State) -> None:
    """Raise ValueError when a saved state lacks what an optimizer keeps."""
    if missing := own.keys() - saved.keys():
        raise ValueError(f"the saved state of {name} has no {', '.join(sorted(missing))}: it is of another optimizer than {kind}; "
                         "choose that one, or start a new run")


def computed_dtype(tensor: Tensor) -> torch.dtype:
    """Choose the type in which updates of a tensor are computed."""
    return torch.promote_types(tensor.dtype, torch.float32)
