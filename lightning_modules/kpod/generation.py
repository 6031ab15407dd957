"""Texts that a student generates from questions alone, also when its weights are spread over processes that finish at different times.

Where weights are sharded, every forward pass gathers them, so all processes have to make equally many: those that are done go on idly
until the last one is. The data gives all processes equally many batches; the rows that fill them up have the index -1.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import GenerationConfig

from lightning_modules.language.parts import gather_to_generate, in_step
from lightning_modules.optim.projection import seed_of
from lightning_modules.processes import from_all

LONGEST = {False: 512, True: 384}  # new tokens of causal and encoder-decoder students, unless told


@dataclass(frozen=True)
class GenerationSection:
    max_new_tokens: int | None = None
    """longest text to generate, in tokens; null: 512 for a causal student, 384 for an encoder-decoder"""
    temperature: float = 0.0
    """0: always the likeliest token; above: sample, the more evenly the higher"""
    top_p: float = 1.0
    """sample among the likeliest tokens that together have this probability"""

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: must be at least 1, not {self.max_new_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature: must be 0 or above, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: must lie in 0..1 and above 0, not {self.top_p}")

    def without_effect(self) -> dict[str, str]:
        """Name what only sampling needs."""
        return {} if self.temperature else {"top_p": "temperature=0 samples nothing"}


class Generator:
    """Generates with one student, in evaluation mode; `tokenizer` tells where texts end and turns tokens into text."""

    def __init__(self, model: Any, tokenizer: Any, config: GenerationSection, seed: int = 0) -> None:
        self.model, self.tokenizer, self.config, self.seed = model, tokenizer, config, seed
        self.seq2seq = bool(model.config.is_encoder_decoder)
        self.synced = in_step(model)
        gather_to_generate(model)  # T5 calls its encoder before the whole network

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor]) -> list[tuple[int, str]]:
        """Return the index and the text of each row of a batch that is not filler.

        `input_ids` and `attention_mask` (B, T) are questions, padded on the left for a causal student; `index` (B,).
        """
        assert not self.model.training
        ids, mask = batch["input_ids"], batch["attention_mask"]
        with torch.random.fork_rng([ids.device] if ids.device.type == "cuda" else []):
            if self.config.temperature:  # not from the order of training's random numbers, which validation leaves alone
                torch.manual_seed(seed_of(self.seed, str(batch["index"].tolist())))
            with self._nothing_recommended():
                settings = self._settings(ids)
                found = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=settings, synced_gpus=self.synced)
        texts = found[:, 1:] if self.seq2seq else found[:, ids.shape[1]:]
        return [(index, self._text(text)) for index, text in zip(batch["index"].tolist(), texts.tolist()) if index >= 0]

    @contextmanager
    def _nothing_recommended(self) -> Iterator[None]:
        """Put away what a pretrained model recommends, such as sampling or penalties: transformers takes it for all that is not said."""
        network = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model  # the former has adapters
        own, network.generation_config = network.generation_config, GenerationConfig()
        try:
            yield
        finally:
            network.generation_config = own

    def _settings(self, ids: Tensor) -> GenerationConfig:
        tokenizer, config, sample = self.tokenizer, self.config, self.config.temperature > 0
        eos = tokenizer.eos_token_id
        drawn = {"temperature": config.temperature, "top_p": config.top_p, "top_k": 0} if sample else {}
        return GenerationConfig(
            max_new_tokens=self._room(ids), do_sample=sample, use_cache=True, eos_token_id=eos,
            pad_token_id=eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            decoder_start_token_id=self.model.config.decoder_start_token_id if self.seq2seq else None, **drawn,
        )

    def _room(self, ids: Tensor) -> int:
        """Return how many tokens may be generated: no more than the model has positions, on the process that has the longest question."""
        longest = self.config.max_new_tokens or LONGEST[self.seq2seq]
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if self.seq2seq or positions is None:
            return longest
        room = torch.tensor(positions - ids.shape[1], device=ids.device)
        if self.synced:
            dist.all_reduce(room, dist.ReduceOp.MIN)
        return max(1, min(longest, int(room)))

    def _text(self, tokens: list[int]) -> str:
        """Decode up to the first end of text, by place: where padding is the same token, only the first one was generated."""
        eos = self.tokenizer.eos_token_id
        ended = tokens[: tokens.index(eos)] if eos in tokens else tokens
        return self.tokenizer.decode(ended, skip_special_tokens=True).strip()


def gather_texts(texts: list[tuple[int, str]]) -> dict[int, str]:
    """Return the texts of all processes by index, on every process; an index that comes twice counts once."""
    found: dict[int, str] = {}
    for index, text in (pair for part in from_all(texts) for pair in part):
        found.setdefault(index, text)
    return dict(sorted(found.items()))
