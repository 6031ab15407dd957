"""Beginnings of rationales: the answer is predicted after several of each, so that late steps which repeat results hide no early ones."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.samples import PROMPT

# In all of these `steps` (B, T) int64 holds PROMPT for the tokens of a prompt, then the step of each rationale token from 0, then another
# negative number.


@dataclass(frozen=True)
class Prefixes:
    """R beginnings of the rationales of a batch of B samples."""

    sample: Tensor  # (R,) int64: the sample of each
    tokens: Tensor  # (R,) int64: how many tokens of its rationale it has

    def cover(self, steps: Tensor) -> Tensor:
        """Return which tokens of its sample each prefix consists of, (R, T) bool: the prompt, and the rationale's first tokens."""
        prompt, rationale = steps == PROMPT, steps >= 0
        number = torch.where(rationale, rationale.cumsum(-1), steps.shape[1] + 1)  # 1 for the first token of a rationale
        return prompt[self.sample] | (number[self.sample] <= self.tokens[:, None])

    def mean_by_sample(self, values: Tensor, samples: int) -> Tensor:
        """Average `values` (R,) over the prefixes of each sample, (B,)."""
        counts = torch.bincount(self.sample, minlength=samples)
        return torch.zeros(samples, dtype=values.dtype, device=values.device).index_add(0, self.sample, values) / counts


def whole(steps: Tensor) -> Prefixes:
    """Take each rationale whole, once."""
    return Prefixes(torch.arange(len(steps), device=steps.device), _length(steps))


def nothing(steps: Tensor) -> Prefixes:
    """Take no token of any rationale: the question alone."""
    return Prefixes(torch.arange(len(steps), device=steps.device), torch.zeros_like(_length(steps)))


def some_step_ends(steps: Tensor, drawn: int) -> Prefixes:
    """Take each rationale whole, and `drawn` of its beginnings that end with one of the other steps; of a single step, the whole again."""
    count = steps.amax(-1) + 1  # (B,)
    given = 1 + (torch.rand(len(steps), drawn, device=steps.device) * (count[:, None] - 1)).long()  # 1..n-1
    return _with_whole(steps, ((steps[:, None] >= 0) & (steps[:, None] < given[..., None])).sum(-1))


def some_lengths(steps: Tensor, drawn: int) -> Prefixes:
    """Take each rationale whole, and `drawn` beginnings whose number of tokens is chosen evenly: the sum over k of Eq 5, sampled."""
    length = _length(steps)
    return _with_whole(steps, 1 + (torch.rand(len(steps), drawn, device=steps.device) * length[:, None]).long())


def every_step_end(steps: Tensor) -> Prefixes:
    """Take every beginning that ends with a step."""
    last = F.pad(steps, (0, 1), value=PROMPT).diff() != 0  # true at the last token of each step
    sample, place = (last & (steps >= 0)).nonzero(as_tuple=True)
    return Prefixes(sample, (steps >= 0).cumsum(-1)[sample, place])


def _length(steps: Tensor) -> Tensor:
    return (steps >= 0).sum(-1)


def _with_whole(steps: Tensor, tokens: Tensor) -> Prefixes:
    """Put the whole rationale before others of `tokens` (B, K) tokens."""
    tokens = torch.cat([_length(steps)[:, None], tokens], 1)
    rows = torch.arange(len(steps), device=steps.device)[:, None].expand_as(tokens)
    return Prefixes(rows.flatten(), tokens.flatten())
