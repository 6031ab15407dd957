"""LLaMA language models of the sizes in the Fira paper (Table 7 and its shipped configurations), and smaller ones, with fresh weights."""

from dataclasses import dataclass

from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Size:
    """Width and depth of a LLaMA."""

    hidden: int
    intermediate: int
    layers: int
    heads: int


SIZES = {
    "debug": Size(64, 176, 2, 4),
    "mini": Size(128, 344, 3, 4),
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
