"""LLaMA language models of the sizes in the Fira paper (Table 7 and its shipped configurations), built with transformers."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

if TYPE_CHECKING:
    from peft import PeftModel  # takes a second to import, and only LoRA needs it


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


def load_pretrained(name: str, vocab_size: int, block_size: int, dtype: torch.dtype, weights: bool = True) -> PreTrainedModel:
    """Load a causal language model from a hub name or a folder; without `weights` only its shapes, on the device at hand.

    Raises ValueError for a model that cannot be loaded, or whose embedding or positions are too few for the data.
    """
    place = place_of(name)
    try:
        if weights:
            model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, use_cache=False)
        else:
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(place, use_cache=False), dtype=dtype)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"module.pretrained: {name} cannot be loaded ({reason}); give a model's folder, or its name on the Hub") from error
    rows = model.get_input_embeddings().num_embeddings
    if vocab_size > rows:  # type: ignore[operator]
        raise ValueError(f"module.pretrained: {name} has {rows} embeddings but the tokenizer has {vocab_size} ids; "
                         f"set data.tokenizer={name}")
    positions = getattr(model.config, "max_position_embeddings", block_size)
    if block_size > positions:
        raise ValueError(f"data.block_size: {name} was made for {positions} positions, not {block_size}; set data.block_size={positions}")
    return model


def place_of(name: str) -> str:
    """Return the folder that a name means, or the name itself for the Hub."""
    folder = Path(name).expanduser()
    return str(folder) if folder.is_dir() else name


def add_lora(model: nn.Module, rank: int, alpha: float, dropout: float, targets: list[str]) -> "PeftModel":
    """Freeze `model` and add trainable low-rank factors to the linear layers whose names end in `targets` (LoRA, Hu et al. 2021, Eq. 3).

    Raises ValueError for a target that no linear layer has.
    """
    from peft import LoraConfig, get_peft_model

    linear = {name.rpartition(".")[2] for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    for target in targets:
        if target.rpartition(".")[2] not in linear:
            raise ValueError(f"module.lora.targets: no linear layer is called {target}; choose from {', '.join(sorted(linear))}")
    # peft annotates lora_alpha as int, and divides by the rank all the same
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM"))  # type: ignore[arg-type]


def require_compiler() -> None:
    """Raise ValueError if torch.compile could not work here, for want of a C++ compiler."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ValueError(f"module.compile: needs a C++ compiler, and {compiler} is not found; "
                         "install it (apt install g++), or set module.compile=false")
