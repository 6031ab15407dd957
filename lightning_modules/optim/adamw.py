"""AdamW, the full-rank baseline: torch's own, in its fused form."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch.nn import Parameter

from lightning_modules.optim.schedule import ScheduleConfig


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


class AdamW(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019) over named parameters, decaying only those with two or more dimensions."""

    def __init__(self, named_parameters: Iterable[tuple[str, Parameter]], config: AdamWConfig) -> None:
        named = list(named_parameters)
        groups = [{"params": [(n, p) for n, p in named if p.ndim >= 2], "weight_decay": config.weight_decay},
                  {"params": [(n, p) for n, p in named if p.ndim < 2], "weight_decay": 0.0}]
        super().__init__([g for g in groups if g["params"]], lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
        self._step_supports_amp_scaling = False  # gradients come unscaled: otherwise Lightning could not clip them before the step
