"""Gradients that are inf or NaN: noticed before they reach a weight, or at the latest before the next step or checkpoint."""

from typing import Literal

import torch
from torch import Tensor

Policy = Literal["raise", "skip"]


def not_finite(gradients: list[Tensor]) -> Tensor:
    """Flag (n,) the gradients whose norm is not finite, which is true of all with inf or NaN; one pass, vectorised."""
    return torch.stack([norm.float() for norm in torch._foreach_norm(gradients)]).isfinite().logical_not()


class NotFinite(FloatingPointError):
    """Gradients that are not finite; `steps_ago` of the optimizer's steps were made since."""

    steps_ago = 0


class FiniteGradients:
    """Judge the gradients of a step with as little waiting for the device as the policy allows.

    On a CPU the answer is there at once. On other devices `raise` reads it one step later, without stalling the queue; `settle`
    must then be called before the weights are saved. `skip` has to know before the step, which costs one synchronisation.
    """

    def __init__(self, policy: Policy, deferred: bool) -> None:
        self.policy = policy
        self.deferred = deferred and policy == "raise"
        self._waiting: tuple[list[str], Tensor, torch.cuda.Event | None] | None = None

    def skip(self, names: list[str], bad: Tensor, urgent: bool) -> bool:
        """Tell whether a step with these flags must be left out; with `raise`, raise NotFinite instead, now if `urgent`."""
        self.settle()
        if self.deferred and not urgent:
            self._waiting = (names, *_copy_to_host(bad))
            return False
        bad = bad.cpu()
        if self.policy == "raise":
            _raise_if_any(bad, names)
        return bool(bad.any())

    def settle(self) -> None:
        """Raise NotFinite if the last step that was not judged yet had a gradient that is not finite."""
        if self._waiting is not None:
            (names, host, event), self._waiting = self._waiting, None
            if event is not None:
                event.synchronize()  # long over: a whole forward and backward pass lies between
            _raise_if_any(host, names, steps_ago=1)


def _copy_to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start copying a few flags to the host; they may be read once the event has passed."""
    if not values.is_cuda:
        return values.clone(), None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event


def _raise_if_any(bad: Tensor, names: list[str], steps_ago: int = 0) -> None:
    found = [name for name, flag in zip(names, bad.tolist(), strict=True) if flag]
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        error = NotFinite(f"the gradient of {found[0]}{more} is not finite; lower optim.lr, set trainer.gradient_clip_val, "
                          "or leave such steps out with optim.nonfinite=skip")
        error.steps_ago = steps_ago
        raise error
