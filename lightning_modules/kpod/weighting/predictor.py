"""What the answer is predicted with: an encoder-decoder that reads question and masked rationale as embeddings (KPOD, Eq 5)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5Config, T5Model

from datamodules.blocks import IGNORED
from lightning_modules.language.pretrained import Keys, load_pretrained


@dataclass(frozen=True)
class Size:
    """Width and depth of a predictor with fresh weights."""

    hidden: int
    intermediate: int
    encoder: int  # layers
    decoder: int
    heads: int


SIZES = {
    "tiny": Size(64, 128, 1, 1, 4),
    "small": Size(256, 512, 3, 2, 4),
}


class Bridge(nn.Module):
    """The way from the student's embeddings (V, E), which stay as they are, to the predictor's width D."""

    def __init__(self, width: int, wanted: int, scale: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, wanted)
        nn.init.normal_(self.linear.weight, std=scale * width**-0.5)  # what comes out is as large as what the predictor is used to
        nn.init.zeros_(self.linear.bias)

    def forward(self, embedded: Tensor) -> Tensor:
        return self.linear(self.norm(embedded))


class FreshPredictor(nn.Module):
    """A small T5 whose answers are in the student's tokens. Its output layer is the bridged embedding itself, and its decoder starts by
    copying what it attends to: no pretraining has taught it that an answer may be found in what it reads.
    """

    def __init__(self, embedding: Tensor, size: Size) -> None:
        super().__init__()
        self.bridge = Bridge(embedding.shape[1], size.hidden, 1.0)
        self.model = T5Model(T5Config(  # type: ignore[call-arg]  # PretrainedConfig takes the rest
            vocab_size=1, d_model=size.hidden, d_kv=size.hidden // size.heads, d_ff=size.intermediate, num_layers=size.encoder,
            num_decoder_layers=size.decoder, num_heads=size.heads, dropout_rate=0.0, use_cache=False, eos_token_id=None, pad_token_id=0,
            decoder_start_token_id=0,
        ))
        self.model.shared.weight.requires_grad_(False)  # a table without a use: tokens come as embeddings
        layers: Any = self.model.decoder.block
        for block in layers:
            nn.init.eye_(block.layer[1].EncDecAttention.v.weight)
            nn.init.eye_(block.layer[1].EncDecAttention.o.weight)
        self.start = nn.Parameter(torch.randn(size.hidden))

    @property
    def width(self) -> int:
        return self.start.shape[0]

    def embed(self, embedding: Tensor, ids: Tensor) -> Tensor:
        """Look `ids` (...) up, (..., D)."""
        return self.bridge(F.embedding(ids, embedding))

    def forward(self, embedding: Tensor, embedded: Tensor, attended: Tensor, labels: Tensor) -> Tensor:
        """Return the summed negative log-likelihood in nats of each answer, (R,), given what is embedded (R, T, D) where attended (R, T).

        `labels` (R, S) are the answer's tokens, IGNORED behind them.
        """
        table = self.bridge(embedding)  # (V, D)
        before = torch.cat([self.start.to(table.dtype).expand(len(labels), 1, -1), table[labels[:, :-1].clamp(min=0)]], 1)  # (R, S, D)
        hidden = self.model(inputs_embeds=embedded, attention_mask=attended.long(), decoder_inputs_embeds=before).last_hidden_state
        return answer_nll(hidden @ table.T * self.width**-0.5, labels)


class PretrainedPredictor(nn.Module):
    """An encoder-decoder from the Hub or a folder, such as FlanT5-Large; its answers are in its own tokens.

    Where the student has the very embedding of the predictor, there is no bridge between the two.
    """

    def __init__(self, embedding: Tensor, name: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.model: Any = load_pretrained(name, dtype, True, Keys(model="module.weighting.predictor")).train()
        own = self.model.get_input_embeddings().weight
        same = own.shape == embedding.shape and torch.equal(own.float().cpu(), embedding.float().cpu())
        self.bridge = nn.Identity() if same else Bridge(embedding.shape[1], own.shape[1], float(own.detach().float().std()))

    @property
    def width(self) -> int:
        return self.model.get_input_embeddings().weight.shape[1]

    def embed(self, embedding: Tensor, ids: Tensor) -> Tensor:
        """Look `ids` (...) up, (..., D)."""
        return self.bridge(F.embedding(ids, embedding))

    def forward(self, embedding: Tensor, embedded: Tensor, attended: Tensor, labels: Tensor) -> Tensor:
        """Return the summed negative log-likelihood in nats of each answer, (R,); see FreshPredictor."""
        before = self.model.prepare_decoder_input_ids_from_labels(labels=labels)
        return answer_nll(self.model(inputs_embeds=embedded, attention_mask=attended.long(), decoder_input_ids=before).logits, labels)


def make_predictor(embedding: Tensor, name: str, dtype: torch.dtype = torch.float32) -> FreshPredictor | PretrainedPredictor:
    """Make a predictor of one of the SIZES with fresh weights, or load the model `name`; raise ValueError if it cannot be loaded."""
    return FreshPredictor(embedding, SIZES[name]) if name in SIZES else PretrainedPredictor(embedding, name, dtype)


def answer_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum the negative log-likelihood in nats over each row of `labels` (R, S), (R,) float32; `logits` (R, S, V)."""
    return F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none").sum(-1)
