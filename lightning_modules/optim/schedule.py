"""Learning-rate schedules by name, from transformers: warm-up, then constant, linear or cosine down to a share of the peak."""

from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


@dataclass(frozen=True)
class ScheduleConfig:
    name: Literal["constant", "linear", "cosine"] = "cosine"
    """shape after the warm-up"""
    warmup: float = 0.1
    """warm-up from 0: below 1 a share of all steps, else a number of steps"""
    min_lr_ratio: float = 0.1
    """learning rate at the last step, as a share of lr; without effect on constant"""

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ValueError(f"warmup: must be 0 or above, not {self.warmup}")
        if not 0 <= self.min_lr_ratio < 1:
            raise ValueError(f"min_lr_ratio: must lie in 0..1 (1 excluded: use name=constant), not {self.min_lr_ratio}")

    def without_effect(self) -> dict[str, str]:
        """Name the end of a decay that does not happen."""
        return {"min_lr_ratio": "name=constant never decays"} if self.name == "constant" else {}

    def warmup_steps(self, total_steps: int) -> int:
        """Count the optimizer steps of the warm-up."""
        return round(self.warmup * total_steps) if self.warmup < 1 else round(self.warmup)


def make_schedule(optimizer: Optimizer, config: ScheduleConfig, total_steps: int) -> LRScheduler:
    """Make the schedule of a run of `total_steps` optimizer steps; it has to be stepped once after each of them."""
    from transformers import get_scheduler

    name, more = {
        "constant": ("constant_with_warmup", {}),
        "linear": ("polynomial", {"lr_end": config.min_lr_ratio * optimizer.defaults["lr"], "power": 1.0}),
        "cosine": ("cosine_with_min_lr", {"min_lr_rate": config.min_lr_ratio}),
    }[config.name]
    warmup = config.warmup_steps(total_steps)
    return get_scheduler(name, optimizer, warmup, max(total_steps, warmup + 1), scheduler_specific_kwargs=more)
