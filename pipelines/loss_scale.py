"""The loss scale that DeepSpeed searches under float16, in the terms of torch's GradScaler, so that it moves between strategies.

Lightning saves the scaler of its own 16-mixed precision under the name of that class; here it is found, and left, in the same place.
"""

from collections.abc import Mapping
from typing import Any

SCALER = "MixedPrecision"  # Lightning's key


def loss_scale(zero: Any) -> dict[str, Any]:
    """Return the state of DeepSpeed's search as GradScaler would; empty where the scale is fixed.

    DeepSpeed doubles the scale at the step after `scale_window` good ones.
    """
    search = zero.loss_scaler if hasattr(zero, "loss_scaler") else None
    if search is None or not search.dynamic:
        return {}
    good = _since_growth(search.cur_iter - search.last_overflow_iter - 1, search.scale_window)
    return {"scale": float(search.cur_scale), "growth_factor": search.scale_factor, "backoff_factor": 1 / search.scale_factor,
            "growth_interval": search.scale_window + 1, "_growth_tracker": good, "hysteresis": search.cur_hysteresis}


def set_loss_scale(zero: Any, saved: Mapping[str, Any] | None) -> None:
    """Go on with a saved search, DeepSpeed's or GradScaler's; without one, or where the scale is fixed, nothing changes."""
    if not saved or not loss_scale(zero):
        return
    search = zero.loss_scaler
    search.cur_scale = saved["scale"]
    search.last_overflow_iter = search.cur_iter - 1 - _since_growth(saved["_growth_tracker"], search.scale_window)
    search.cur_hysteresis = saved.get("hysteresis", search.delayed_shift)


def _since_growth(good: int, window: int) -> int:
    """Count the good steps since the scale has last changed, from those since it was last lowered."""
    return (good - 1) % window + 1 if good > 0 else 0
