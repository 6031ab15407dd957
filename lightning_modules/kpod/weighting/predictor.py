"""What the answer is predicted with: an encoder-decoder that reads question and masked rationale as embeddings (KPOD, Eq 5)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5Config, T5Model

from datamodules.blocks import IGNORED
from lightning_modules.language.pretrained import Keys, load_pretrained

NEIGHBOUR = 6.0  # logit above all other tokens: four fifths of the attention among a hundred


@dataclass(frozen=True)
class Size:
    """Width and depth of a predictor with fresh weights."""

    hidden: int
    intermediate: int
    encoder: int  # layers
    decoder: int
    heads: int


SIZES = {
    "tiny": Size(64, 128, 1, 1, 8),
    "small": Size(256, 512, 3, 2, 8),
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
    """A small T5 whose answers are in the student's tokens, for runs in which no pretraining has taught a predictor to read.

    It starts with what it would need long to find: its output layer is the bridged embedding itself, its decoder copies what it attends to,
    and six heads of its encoder look at the neighbours of a token.
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
        encoder: Any = self.model.encoder
        look_at_neighbours(encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight)
        self.start = nn.Parameter(torch.randn(size.hidden))  # of an answer
        self.end = nn.Parameter(torch.randn(size.hidden))  # of what is read

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

    @property
    def end(self) -> Tensor:
        """The end of a text, (D,)."""
        return self.model.get_input_embeddings().weight[self.model.config.eos_token_id]

    def embed(self, embedding: Tensor, ids: Tensor) -> Tensor:
        """Look `ids` (...) up, (..., D)."""
        return self.bridge(F.embedding(ids, embedding))

    def forward(self, embedding: Tensor, embedded: Tensor, attended: Tensor, labels: Tensor) -> Tensor:
        """Return the summed negative log-likelihood in nats of each answer, (R,); see FreshPredictor."""
        before = self.model.prepare_decoder_input_ids_from_labels(labels=labels)
        return answer_nll(self.model(inputs_embeds=embedded, attention_mask=attended.long(), decoder_input_ids=before).logits, labels)


@torch.no_grad()
def look_at_neighbours(bias: Tensor) -> None:
    """Let the first six heads of a T5 encoder begin with the tokens at -3..3, one each; `bias` (buckets, heads)."""
    buckets = len(bias) // 2  # before a token; as many after it
    for head, distance in enumerate((-1, 1, -2, 2, -3, 3)):
        bias[:, head] = 0.0
        bias[-distance if distance < 0 else buckets + distance, head] = NEIGHBOUR


def make_predictor(embedding: Tensor, name: str, dtype: torch.dtype = torch.float32) -> FreshPredictor | PretrainedPredictor:
    """Make a predictor of one of the SIZES with fresh weights, or load the model `name`; raise ValueError if it cannot be loaded."""
    return FreshPredictor(embedding, SIZES[name]) if name in SIZES else PretrainedPredictor(embedding, name, dtype)


def answer_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum the negative log-likelihood in nats over each row of `labels` (R, S), (R,) float32; `logits` (R, S, V)."""
    return F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none").sum(-1)
