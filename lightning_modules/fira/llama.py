"""LLaMA language models of the sizes in the Fira paper (Table 7 and its shipped configurations), built with transformers."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Size:
    """Width and depth of a LLaMA."""

    hidden: int
    intermediate: int
    layers: int
    heads: int


SIZES = {
    "debug": Size(64, 176, 2, 4),
    "tiny": Size(256, 688, 4, 4),
    "small": Size(384, 1024, 6, 6),
    "60m": Size(512, 1376, 8, 8),
    "130m": Size(768, 2048, 12, 12),
    "350m": Size(1024, 2736, 24, 16),
    "1b": Size(2048, 5461, 24, 32),
    "7b": Size(4096, 11008, 32, 32),
}


def new_llama(size: str, vocab_size: int, max_positions: int, eos_token_id: int | None = None) -> LlamaForCausalLM:
    """Make a LLaMA with fresh weights: RMSNorm, SwiGLU, rotary positions, untied head, no dropout."""
    shape = SIZES[size]
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=vocab_size, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, max_position_embeddings=max_positions,
        rms_norm_eps=1e-6, initializer_range=0.02, tie_word_embeddings=False, use_cache=False,
        bos_token_id=None, eos_token_id=eos_token_id, pad_token_id=None,
    ))


def load_pretrained(name: str, vocab_size: int) -> nn.Module:
    """Load a causal language model from a hub name or a folder, in float32.

    Raises ValueError when the tokenizer has ids that the model's embedding lacks.
    """
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, use_cache=False)
    rows = model.get_input_embeddings().num_embeddings
    if vocab_size > rows:
        raise ValueError(f"module.pretrained: {name} has {rows} embeddings but the tokenizer has {vocab_size} ids; set data.tokenizer={name}")
    return model


def add_lora(model: nn.Module, rank: int, alpha: float, dropout: float, targets: list[str]) -> nn.Module:
    """Freeze `model` and add trainable low-rank factors to the linear layers whose names end in `targets` (LoRA, Hu et al. 2021, Eq. 3)."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM"))  # type: ignore[arg-type]
