"""An optimizer's state as plain tensors: nothing pickled, nothing shared with the live state, no type changed by loading."""

from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer


def copied(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict whose tensors are copies, so that further steps do not change what was saved."""
    state = {index: {key: value.detach().clone() for key, value in entry.items()} for index, entry in state_dict["state"].items()}
    return {**state_dict, "state": state}


def matched(optimizer: Optimizer, state_dict: dict[str, Any]) -> list[tuple[Parameter, dict[str, Tensor]]]:
    """Pair each parameter of `optimizer`, in the order of its groups, with its saved state, and load the learning rates.

    Raises ValueError when the saved state belongs to other parameters or to another optimizer.
    """
    groups, saved = optimizer.param_groups, state_dict["param_groups"]
    sizes, saved_sizes = ([len(g["params"]) for g in some] for some in (groups, saved))
    if sizes != saved_sizes:
        raise ValueError(f"the saved optimizer state is of {saved_sizes} parameters by group, not of {sizes}; "
                         "restore module and optim.targets of that run, or start a new one")
    pairs: list[tuple[Parameter, dict[str, Tensor]]] = []
    for group, other in zip(groups, saved, strict=True):
        group.update({key: other[key] for key in ("lr", "initial_lr") if key in other})
        for p, index in zip(group["params"], other["params"], strict=True):
            found = state_dict["state"].get(index, {})
            if missing := optimizer.state[p].keys() - found.keys():
                raise ValueError(f"the saved state has no {', '.join(sorted(missing))}: it is of another optimizer than "
                                 f"{type(optimizer).__name__}; choose that one, or start a new run")
            pairs.append((p, found))
    return pairs


def fits(own: dict[str, Tensor], saved: dict[str, Tensor]) -> bool:
    """Tell whether saved tensors have the shapes of an optimizer's own."""
    return all(own[key].shape == saved[key].shape for key in own)
