"""Causal language modelling with LLaMA: the job on which the Fira optimizer is pre-trained and fine-tuned."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.fabric.utilities.throughput import measure_flops
from torch import Tensor
from torchmetrics import SumMetric

from datamodules.tokenization import vocabulary_here
from lightning_modules.base import Exportable, MethodModule, OptimizerFactory, Rehearsal
from lightning_modules.fira.llama import add_lora, load_pretrained, new_llama, place_of, require_compiler
from lightning_modules.fira.weights import draw_weights, find_weights, read_weights

VOCABULARY = 32000  # tokens of LLaMA (Touvron et al. 2023)


@dataclass(frozen=True)
class LoraSection:
    rank: int = 0
    """rank of the LoRA factors; 0: no LoRA, all weights train"""
    alpha: float = 64.0
    """LoRA scale: the update is multiplied by alpha / rank"""
    dropout: float = 0.05
    """dropout on the input of the LoRA factors"""
    targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"])
    """names of the linear layers that get factors"""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"rank: must be 0 (no LoRA) or above, not {self.rank}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: must lie in 0..1, not {self.dropout}")

    def without_effect(self) -> dict[str, str]:
        """Name what only adapters need."""
        return {} if self.rank else dict.fromkeys(("alpha", "dropout", "targets"), "rank=0 means no LoRA")


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
    lora: LoraSection = field(default_factory=LoraSection)
    """low-rank adapters for fine-tuning"""

    def without_effect(self) -> dict[str, str]:
        """Name what a finished model decides itself."""
        return {"size": f"pretrained={self.pretrained} has its own"} if self.pretrained else {}


class FiraModule(MethodModule):
    """Next-token prediction over packed blocks; reports the loss in nats a token, perplexity by token and by byte."""

    STRATEGIES = ("single", "ddp", "fsdp", "deepspeed")

    def __init__(self, config: FiraModuleConfig, optimizer: OptimizerFactory) -> None:
        super().__init__(config, optimizer)
        self.model: Any = None  # made in configure_model, when the data knows its vocabulary
        self.val_nll = SumMetric(nan_strategy="disable")
        self.val_tokens = SumMetric(nan_strategy="disable")
        self._flops: int | None = None
        self.strict_loading = not self.is_adapter  # Lightning then accepts checkpoints without the frozen weights
        if config.compile:
            require_compiler()

    @property
    def is_adapter(self) -> bool:
        """Tell whether only factors beside a pretrained model are trained."""
        return bool(self.config.pretrained and self.config.lora.rank)

    def configure_model(self) -> None:
        """Build the network; called by Lightning on every process, more than once."""
        if self.model is not None:
            return
        config = self.config
        model, give_weights = self._network()
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        if config.lora.rank:
            model = add_lora(model, config.lora.rank, config.lora.alpha, config.lora.dropout, config.lora.targets)
        blocks = [m for m in model.modules() if type(m).__name__ in (model._no_split_modules or ())]
        if config.compile:
            for part in blocks if self.device_mesh is not None else [model]:  # shards are gathered between compiled blocks
                part.compile()
        self.model = self.shard(model.train(), blocks)
        give_weights()

    def _network(self) -> tuple[Any, Callable[[], None]]:
        """Return the network, and what gives it weights once it is sharded: until then it needs no memory.

        Where nothing is sharded, beside adapters, and from files with other names than the model's, pretrained weights come at once.
        """
        config, data = self.config, self.trainer.datamodule  # type: ignore[attr-defined]
        device = torch.get_default_device() if self.device_mesh is None else torch.device(self.device_mesh.device_type)
        if not config.pretrained:
            with torch.device("meta"):
                model: Any = new_llama(config.size, data.vocab_size, data.block_size, data.eos_token_id)
            return self._drawn(model, device)
        facts = (config.pretrained, data.vocab_size, data.block_size, self._dtype_of_weights())
        if self.holds_parts and not config.lora.rank:
            with torch.device("meta"):
                model = load_pretrained(*facts, weights=False)
            if found := find_weights(place_of(config.pretrained), model):
                return model, lambda: read_weights(model, device, found)
            warnings.warn(f"module.pretrained: {config.pretrained} has no safetensors with the names of its class; "
                          "each process loads the whole model before it is sharded", stacklevel=2)
        return load_pretrained(*facts), lambda: None

    def _drawn(self, model: Any, device: torch.device) -> tuple[Any, Callable[[], None]]:
        """Draw the weights under the run's seed: at once where adapters are added, which look at them."""
        seed = torch.initial_seed()
        if not self.config.lora.rank:
            return model, lambda: draw_weights(model, device, seed)
        draw_weights(model, device, seed)
        return model, lambda: None

    def _dtype_of_weights(self) -> torch.dtype:
        """Keep weights that never change in the type that mixed precision multiplies them in; peft makes the factors float32."""
        short = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.trainer.precision) if self.is_adapter else None
        return short or torch.get_default_dtype()  # the default is what trainer.precision asks for

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move or cast as asked, but keep rotary frequencies in float32: rounded to bfloat16 they turn tokens into other positions."""
        kept = {name: b for name, b in self.named_buffers() if name.endswith("inv_freq")}
        super()._apply(fn, recurse)
        for name, frequencies in kept.items():
            owner, _, leaf = name.rpartition(".")
            rotary = self.get_submodule(owner)
            setattr(rotary, leaf, frequencies.to(getattr(rotary, leaf).device))
        return self

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

    def exportable(self) -> Exportable:
        return Exportable(self.model, self.trainer.datamodule.tokenizer)  # type: ignore[attr-defined]

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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only the factors of an adapter: the model that they belong to stays where it came from."""
        if self.is_adapter:
            trained = {name for name, p in self.named_parameters() if p.requires_grad}
            checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in trained}

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
                copy = add_lora(copy, lora.rank, lora.alpha, lora.dropout, lora.targets)
            tokens = torch.zeros(data.batch_size, data.block_size, dtype=torch.long)
            mask = torch.zeros(1, 1, data.block_size, data.block_size)
        return measure_flops(copy, lambda: copy(input_ids=tokens, attention_mask=mask).logits, torch.Tensor.sum)
