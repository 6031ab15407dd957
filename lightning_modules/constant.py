"""Networks whose weights are held still while something is computed from them."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def constant(*networks: nn.Module) -> Iterator[None]:
    """Hold the weights of networks still: what is computed inside has no gradient into them."""
    weights = [p for network in networks for p in network.parameters() if p.requires_grad]
    for p in weights:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in weights:
            p.requires_grad_(True)
