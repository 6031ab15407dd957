"""Prompts of several questions as one batch, and the precision in which they are made."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

ON_THE_LEFT = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}  # (prompts, tokens): where these are padded


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute in float32 whatever a trainer has set: it may make half precision the default, or cast what is computed on a CPU."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_default_dtype(before)


def batch_of(prompts: Sequence[Mapping[str, Tensor]], pad: int) -> dict[str, Tensor]:
    """Make one batch of the tensors of single prompts, so that no prompt's depend on its neighbours'.

    Tokens (1, T) become (prompts, most tokens), padded on the left with `pad`, masks with 0; what stands for media, one row or several a
    prompt, is joined along the first axis and padded with zeros behind the others.
    """
    found = {}
    for name in dict.fromkeys(name for prompt in prompts for name in prompt):
        values = [prompt[name] for prompt in prompts if name in prompt]
        shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
        found[name] = torch.cat([_padded(value, shape, name in ON_THE_LEFT, pad if name == "input_ids" else 0) for value in values])
    return found


def _padded(value: Tensor, shape: Sequence[int], left: bool, pad: int) -> Tensor:
    """Pad (N, ...) to (N, *shape)."""
    gaps = [wanted - size for wanted, size in zip(shape, value.shape[1:], strict=True)]
    return F.pad(value, [side for gap in reversed(gaps) for side in ((gap, 0) if left else (0, gap))], value=pad)
