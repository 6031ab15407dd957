"""The output layer of a language model at chosen places only: where the vocabulary is large, most of a step's time and memory are there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def logits_only_at(model: Any, places: Tensor) -> Iterator[None]:
    """Make forward return logits (M, V) at `places` (M,) int64, counted row by row through the (B, T) outputs, instead of (B, T, V).

    The model's own forward runs as ever, so that weights spread over processes are gathered as ever. Not for compiled models, which
    would be compiled anew for each M.
    """
    def choose(head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].flatten(0, -2).index_select(0, places), *inputs[1:])  # (B, T, H) -> (M, H)

    hook = model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()
