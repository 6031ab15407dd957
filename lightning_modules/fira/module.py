"""Causal language modelling with LLaMA: the job on which the Fira optimizer is pre-trained and fine-tuned."""

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.fabric.utilities.throughput import measure_flops
from torch import Tensor
from torchmetrics import SumMetric

from datamodules.tokenization import vocabulary_here
from lightning_modules.base import OptimizerFactory, Rehearsal
from lightning_modules.language.base import LanguageModule
from lightning_modules.language.lora import LoraSection, add_lora
from lightning_modules.language.network import Recipe, require_compiler

VOCABULARY = 32000  # tokens of LLaMA (Touvron et al. 2023)


@dataclass(frozen=True)
class FiraLoraSection(LoraSection):
    alpha: float = 64.0
    """LoRA scale: the update is multiplied by alpha / rank"""
    targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"])
    """names of the linear layers that get factors"""


@dataclass(frozen=True)
class FiraModuleConfig:
    size: Literal["debug", "tiny", "small", "60m", "130m", "350m", "1b", "7b"] = "60m"
    """LLaMA to make with fresh weights; 60m to 7b are the paper's"""
    pretrained: str | None = None
    """hub name or folder of a causal language model to fine-tune; overrides size"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, about a third more time"""
    compile: bool = False
    """compile the network with torch.compile"""
    lora: FiraLoraSection = field(default_factory=FiraLoraSection)
    """low-rank adapters for fine-tuning"""

    def without_effect(self) -> dict[str, str]:
        """Name what a finished model decides itself."""
        return {"size": f"pretrained={self.pretrained} has its own"} if self.pretrained else {}


class FiraModule(LanguageModule):
    """Next-token prediction over packed blocks; reports the loss in nats a token, perplexity by token and by byte."""

    STRATEGIES = ("single", "ddp", "fsdp", "deepspeed")

    def __init__(self, config: FiraModuleConfig, optimizer: OptimizerFactory) -> None:
        super().__init__(config, optimizer, config.pretrained)
        self.val_nll = SumMetric(nan_strategy="disable")
        self.val_tokens = SumMetric(nan_strategy="disable")
        self._flops: int | None = None
        if config.compile:
            require_compiler()

    def recipe(self) -> Recipe:
        config, data = self.config, self.trainer.datamodule  # type: ignore[attr-defined]
        return Recipe(
            config.size, config.pretrained, data.vocab_size, data.block_size, data.eos_token_id, precision=str(self.trainer.precision),
            gradient_checkpointing=config.gradient_checkpointing, compile=config.compile, lora=config.lora,
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits (B, T, V) of the token after each of `input_ids` (B, T)."""
        return self.model(input_ids=input_ids).logits

    def nll(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the summed negative log-likelihood in nats, and the number of tokens it is over; label -100 is no token."""
        logits = self(batch["input_ids"]).float()  # (B, T, V)
        labels = batch["labels"]  # (B, T), already shifted
        total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
        return total, (labels != -100).sum()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        total, tokens = self.nll(batch)
        loss = total / tokens
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def rehearsal(self, data: Any, vocab_size: int | None) -> Rehearsal:
        """Take the vocabulary of a pretrained model from it, else of the tokenizer if it is on this machine, else assume LLaMA's."""
        notes: tuple[str, ...] = ()
        if self.config.pretrained:
            vocab_size = 0  # the model brings its own
        elif vocab_size is None:
            vocab_size = data.vocab_size if data.tokenizer == "train" else vocabulary_here(data.tokenizer)
        if vocab_size is None:
            vocab_size = VOCABULARY
            notes = (f"vocabulary: {VOCABULARY} tokens are assumed, because the tokenizer {data.tokenizer} is not on this machine; "
                     "write vocab_size=N for another number",)
        facts = SimpleNamespace(vocab_size=vocab_size, block_size=data.block_size, batch_size=data.batch_size, eos_token_id=None)
        tokens = torch.zeros(data.batch_size, data.block_size, dtype=torch.long)
        return Rehearsal(facts, {"input_ids": tokens, "labels": tokens}, notes)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        total, tokens = self.nll(batch)
        self.val_nll.update(total.double())
        self.val_tokens.update(tokens.double())

    def on_validation_epoch_start(self) -> None:
        for metric in (self.val_nll, self.val_tokens):
            metric.set_dtype(torch.float64)  # here, because bf16-true casts the sums along with the weights
            metric.reset()

    def on_validation_epoch_end(self) -> None:
        loss = (self.val_nll.compute() / self.val_tokens.compute()).item()
        tokens_per_byte = self.trainer.datamodule.tokens_per_byte  # type: ignore[attr-defined]
        self.log("val/loss", loss, sync_dist=True)
        self.log("val/perplexity", math.exp(min(loss, 700.0)), prog_bar=True, sync_dist=True)
        self.log("val/byte_perplexity", math.exp(min(loss * tokens_per_byte, 700.0)), sync_dist=True)

    @property
    def flops_per_batch(self) -> int:
        """Floating-point operations of one training batch on this process: forward and backward, nothing recomputed."""
        if self._flops is None:
            self._flops = self._count_flops()
        return self._flops

    def _count_flops(self) -> int:
        """Let Lightning count on a copy without memory, with a mask: the model would look for one in values that are not there."""
        data, lora = self.trainer.datamodule, self.config.lora  # type: ignore[attr-defined]
        network = self.model.get_base_model() if lora.rank else self.model
        with torch.device("meta"):
            copy = type(network)(network.config)
            if lora.rank:
                copy = add_lora(copy, lora)
            tokens = torch.zeros(data.batch_size, data.block_size, dtype=torch.long)
            mask = torch.zeros(1, 1, data.block_size, data.block_size)
        return measure_flops(copy, lambda: copy(input_ids=tokens, attention_mask=mask).logits, torch.Tensor.sum)
