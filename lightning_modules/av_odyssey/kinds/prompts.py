"""Prompts of several questions as one batch."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TEXT = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}  # (rows, tokens), padded on the left


def batch_of(prompts: Sequence[Mapping[str, Tensor]], pad: int) -> dict[str, Tensor]:
    """Make one batch of the tensors of single prompts, so that no prompt's depend on its neighbours'.

    Tokens are padded on the left, with `pad` or 0; what stands for media is padded with zeros behind it.
    """
    found = {}
    for name in dict.fromkeys(name for prompt in prompts for name in prompt):
        values = [prompt[name] for prompt in prompts if name in prompt]
        shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
        found[name] = torch.cat([_padded(value, shape, name in TEXT, pad if name == "input_ids" else 0) for value in values])
    return found


def _padded(value: Tensor, shape: Sequence[int], left: bool, pad: int) -> Tensor:
    """Pad (N, ...) to (N, *shape)."""
    gaps = [wanted - size for wanted, size in zip(shape, value.shape[1:], strict=True)]
    return F.pad(value, [side for gap in reversed(gaps) for side in ((gap, 0) if left else (0, gap))], value=pad)
