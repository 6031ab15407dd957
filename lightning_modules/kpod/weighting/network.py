"""The weighting network: embeddings, the generator of weights, masks on the rationale, and the loss that both are trained with (Eq 7)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.kpod.weighting.masks import TokenWeigher, masked, mean_over
from lightning_modules.kpod.weighting.predictor import make_predictor
from lightning_modules.kpod.weighting.prefixes import Prefixes

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Loss:
    """Eq 7 and its parts, each a mean over the samples of a batch."""

    total: Tensor
    answer: Tensor  # nats an answer, mean over prefixes: L_p
    ratio: Tensor  # share of the rationale that is kept: L_m


class WeightingNetwork(nn.Module):
    """Generator and predictor over the frozen embedding (V, E) of the student.

    `in_context` puts masks behind the generator's attention, as Figure 1 of the paper draws it: tokens that are kept then tell the
    predictor of those that are not. `learned` is what a masked token becomes: a vector of its own, else zeros.
    """

    def __init__(self, embedding: Tensor, predictor: str, heads: int, hidden: int, in_context: bool = False, learned: bool = True) -> None:
        super().__init__()
        self.embedding: Tensor
        self.register_buffer("embedding", embedding.detach(), persistent=False)  # the student's own, so no checkpoint holds it
        self.predictor = make_predictor(embedding, predictor)
        width = self.predictor.width
        if width % heads:
            raise ValueError(f"module.weighting.heads: must divide the predictor's width {width}, not {heads}")
        self.weigher = TokenWeigher(width, heads, hidden)
        self.in_context = in_context
        with torch.no_grad():
            mean = self.predictor.bridge(self.embedding).mean(0)
        self.masked_token = nn.Parameter(mean if learned else torch.zeros_like(mean), requires_grad=learned)

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits of w, (B, T) float32, and the embeddings (B, T, D) that masks go on."""
        embedded = self.predictor.embed(self.embedding, batch["input_ids"])
        rationale = batch["steps"] >= 0
        first = beginning(batch["steps"])  # the generator sees no prompt
        found, context = self.weigher(embedded[:, first:], rationale[:, first:])
        logits = F.pad(found, (first, 0))
        if self.in_context:
            embedded = torch.where(rationale[..., None], F.pad(context, (0, 0, first, 0)), embedded)
        return logits, embedded

    def weights(self, batch: Batch) -> Tensor:
        """Return w, (B, T) float32 in 0..1; what stands outside the rationale means nothing."""
        return self.logits(batch)[0].sigmoid()

    def answer_nll(self, batch: Batch, embedded: Tensor, mask: Tensor, prefixes: Prefixes) -> Tensor:
        """Return the answer's loss in nats, (R,), after each prefix of the rationales that `mask` (B, T) leaves of `embedded`."""
        seen = masked(embedded, mask, batch["steps"] >= 0, self.masked_token)[prefixes.sample]
        ends = (beginning(batch["steps"]) + prefixes.tokens)[:, None] == torch.arange(seen.shape[1] + 1, device=seen.device)  # (R, T + 1)
        seen = torch.where(ends[..., None], self.predictor.end.to(seen.dtype), F.pad(seen, (0, 0, 0, 1)))  # T5 closes what it reads
        attended = F.pad(prefixes.cover(batch["steps"]), (0, 1)) | ends
        return self.predictor(self.embedding, seen, attended, batch["labels"][prefixes.sample])

    def loss(self, batch: Batch, embedded: Tensor, mask: Tensor, prefixes: Prefixes, price: float, by_length: bool = False) -> Loss:
        """Return Eq 7 with both parts divided by the rationale's length |r|: mean over prefixes + price times the mean of m.

        Both are means over the batch as well: a sum on one side alone would let the other win by the batch size. `by_length` multiplies
        each sample by |r| again, which makes of both means the sums that the paper writes; the prefixes drawn stand for all |r|.
        """
        rationale = batch["steps"] >= 0
        answer = prefixes.mean_by_sample(self.answer_nll(batch, embedded, mask, prefixes), len(mask))  # (B,)
        ratio = mean_over(mask, rationale)
        lengths = rationale.sum(-1) if by_length else 1.0
        return Loss(((answer + price * ratio) * lengths).mean(), answer.detach().mean(), ratio.detach().mean())


def beginning(steps: Tensor) -> int:
    """Return the column in which all rationales of a batch begin; `steps` (B, T)."""
    return int((steps >= 0).any(0).float().argmax())
