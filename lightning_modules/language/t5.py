"""T5 encoder-decoders (Raffel et al. 2020) with fresh weights: the gated layers of FlanT5, the scaled shared embedding of the first T5."""

from dataclasses import dataclass

from transformers import T5Config, T5ForConditionalGeneration


@dataclass(frozen=True)
class Size:
    """Width and depth of a T5; `layers` of the encoder, and as many of the decoder."""

    hidden: int
    intermediate: int
    layers: int
    heads: int


SIZES = {
    "debug": Size(64, 128, 2, 4),
    "mini": Size(128, 256, 2, 4),
    "tiny": Size(256, 512, 3, 4),
    "small": Size(512, 1024, 8, 8),
}


def new_t5(size: str, vocab_size: int, eos_token_id: int | None, pad_token_id: int) -> T5ForConditionalGeneration:
    """Make a T5 with fresh weights: RMSNorm, gated GELU, relative positions, no dropout; its decoder starts with padding.

    The head is the embedding, scaled: an untied one is drawn with a deviation of 1, which starts at a loss of a hundred nats.
    """
    shape = SIZES[size]
    return T5ForConditionalGeneration(T5Config(  # type: ignore[call-arg]  # PretrainedConfig takes the rest
        vocab_size=vocab_size, d_model=shape.hidden, d_kv=shape.hidden // shape.heads, d_ff=shape.intermediate, num_layers=shape.layers,
        num_heads=shape.heads, feed_forward_proj="gated-gelu", dropout_rate=0.0, tie_word_embeddings=True, use_cache=False,
        eos_token_id=eos_token_id, pad_token_id=pad_token_id, decoder_start_token_id=pad_token_id,
    ))
