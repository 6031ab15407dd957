"""Where a number stopped being finite: the step in every run, and the layer in one with `trainer.detect_anomaly`."""

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


class NonFinite(Callback):
    """Add the step, and what its loss was, to an error about gradients; costs nothing before.

    With `layers` every layer is watched: the first whose output, or the gradient that arrives there, has inf or NaN ends the run by its
    name. Each tensor is then read, which waits for the device. Gradients under a loss scale are left alone: inf belongs to its search.
    """

    def __init__(self, layers: bool = False, scaled: bool = False) -> None:
        self.layers, self.scaled = layers, scaled
        self.losses: deque[Tensor] = deque(maxlen=1)  # of the batches of the last two steps
        self._watches: list[Any] = []
        self._training = False
        self._step = 0
        self._finite_at = "the loss"  # where the backward pass has been

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.losses = deque(maxlen=2 * trainer.accumulate_grad_batches)
        if self.layers:
            self._watches = [layer.register_forward_hook(self._look(name)) for name, layer in pl_module.named_modules() if name]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._training, self._step = True, trainer.global_step + 1

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.losses.append(loss.detach())
        self._finite_at = "the loss"
        if self.layers and not finite(loss):
            raise FloatingPointError(f"step {self._step}: the loss is {float(loss.detach().mean())}, yet what every layer gave is finite")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._training = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_looking()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop_looking()
        if isinstance(exception, FloatingPointError) and not str(exception).startswith("step "):
            late = getattr(exception, "steps_ago", 0)
            batches = list(self.losses)[-trainer.accumulate_grad_batches * (1 + late) :][: trainer.accumulate_grad_batches]
            exception.add_note(f"this was step {trainer.global_step + 1 - late}{said_of([float(loss.mean()) for loss in batches])}; "
                               "trainer.detect_anomaly=true names the layer where it begins")

    def _stop_looking(self) -> None:
        self._training = False
        while self._watches:
            self._watches.pop().remove()

    def _look(self, name: str) -> Callable[..., None]:
        """Return what looks at a layer's outputs, and asks to see the gradients that will arrive there."""

        def look(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if not self._training:
                return
            for tensor in floats(output):
                if not finite(tensor, masked=True):
                    raise FloatingPointError(f"step {self._step}: the output of {name} ({type(layer).__name__}) is not finite; "
                                             f"{cause(layer, inputs)}")
                if tensor.requires_grad and not self.scaled:
                    tensor.register_hook(self._look_back(name))

        return look

    def _look_back(self, name: str) -> Callable[[Tensor], None]:
        def look(gradient: Tensor) -> None:
            if not finite(gradient):
                raise FloatingPointError(f"step {self._step}: the gradient that arrives at the output of {name} is not finite; it was, "
                                         f"on its way back, at {self._finite_at}")
            self._finite_at = f"the output of {name}"

        return look


def floats(values: Any) -> list[Tensor]:
    """List the tensors of floating-point numbers in whatever a layer takes or gives."""
    leaves = tree_leaves(dict(values) if isinstance(values, dict) else values)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def finite(tensor: Tensor, masked: bool = False) -> bool:
    """Tell whether no number of a tensor is inf or NaN; where it may be `masked`, -inf is what masks, as in logits of closed classes."""
    known = tensor.detach()
    return bool((known.isfinite() | known.isneginf() if masked else known.isfinite()).all())


def cause(layer: nn.Module, inputs: tuple[Any, ...]) -> str:
    """Say what a layer was given: its inputs, and its own weights."""
    if not all(finite(tensor, masked=True) for tensor in floats(inputs)):
        return "its input is not either"
    bad = [name for name, weight in layer.named_parameters(recurse=False) if not finite(weight)]
    return f"its {bad[0]} is not either" if bad else "its input and weights are"


def said_of(losses: list[float]) -> str:
    """Say of the losses of a step's batches that they were finite, or what the first of the others was."""
    if not losses:
        return ""
    bad = [loss for loss in losses if not torch.tensor(loss).isfinite()]
    return f", whose loss was {bad[0]}" if bad else f", whose loss was finite ({losses[-1]:.4g})"
