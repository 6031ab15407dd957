"""Qwen2.5-Omni and Qwen3-Omni: the thinker alone, which writes, without the talker, which speaks.

Films are shown as pictures, so that no video processor (and no torchvision) is needed, with weights of any size.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from transformers import (
    AutoTokenizer,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeThinkerForConditionalGeneration,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe import Qwen3OmniMoeProcessor

from lightning_modules.av_odyssey.kinds.kind import SPREAD, OmniKind, tiny_tokenizer, weights_of

MEDIA_2_5 = {"image_token": "<|IMAGE|>", "audio_token": "<|AUDIO|>", "video_token": "<|VIDEO|>", "vision_bos_token": "<|vision_bos|>",
             "vision_eos_token": "<|vision_eos|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"}
MEDIA_3 = {"image_token": "<|image_pad|>", "audio_token": "<|audio_pad|>", "video_token": "<|video_pad|>",
           "vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>", "audio_bos_token": "<|audio_start|>",
           "audio_eos_token": "<|audio_end|>"}
TURNS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TINY_WINDOW = 8  # seconds that the tiny Qwen2.5-Omni hears of a clip; released ones hear 300
TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 8192, "tie_word_embeddings": False, "bos_token_id": None, "initializer_range": SPREAD}
SOUND = {"num_mel_bins": 128, "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "d_model": 32, "n_window": 50,
         "output_dim": 64, "initializer_range": SPREAD}
SIGHT = {"hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64, "initializer_range": SPREAD}
ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0}


def _take_tokens(processor: Any, tokenizer: Any) -> None:
    """Give a processor the names and numbers of media's tokens, as its own constructor does."""
    for name in MEDIA_3:
        setattr(processor, name, getattr(tokenizer, name))
    for name in ("image_token", "audio_token", "video_token"):
        setattr(processor, f"{name}_id", tokenizer.convert_tokens_to_ids(getattr(tokenizer, name)))


class Qwen25Processor(Qwen2_5OmniProcessor):
    """The processor without its part for films; transformers reads what parts there are off this signature."""

    def __init__(self, image_processor: Any = None, feature_extractor: Any = None, tokenizer: Any = None,
                 chat_template: Any = None) -> None:
        super(Qwen2_5OmniProcessor, self).__init__(image_processor, feature_extractor, tokenizer, chat_template=chat_template)
        _take_tokens(self, tokenizer)


class Qwen3Processor(Qwen3OmniMoeProcessor):
    """The processor without its part for films; transformers reads what parts there are off this signature."""

    def __init__(self, image_processor: Any = None, feature_extractor: Any = None, tokenizer: Any = None,
                 chat_template: Any = None) -> None:
        super(Qwen3OmniMoeProcessor, self).__init__(image_processor, feature_extractor, tokenizer, chat_template=chat_template)
        _take_tokens(self, tokenizer)


class Qwen25(OmniKind):
    """Qwen2.5-Omni (arXiv 2503.20215)."""

    title = "Qwen2.5-Omni"
    opening = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"  # as the released template has it
    closing = "<|im_end|>\n<|im_start|>assistant\n"
    end = "<|im_end|>"
    sound = ("audio_bos_token", "audio_token", "audio_eos_token")
    picture = ("vision_bos_token", "image_token", "vision_eos_token")
    projector = "model.audio_tower.proj"
    blocks = ("Qwen2_5OmniAudioEncoderLayer", "Qwen2_5OmniVisionBlock", "Qwen2_5OmniDecoderLayer")
    types = ("qwen2_5_omni", "qwen2_5_omni_thinker")
    processor: ClassVar[Any] = Qwen25Processor
    model: ClassVar[Any] = Qwen2_5OmniThinkerForConditionalGeneration

    def made(self) -> tuple[Any, Any]:
        """Make a thinker of 0.2 M weights that sees 56 by 56 pixels at most."""
        tokenizer = tiny_tokenizer([*TURNS, *MEDIA_2_5.values()], MEDIA_2_5, self.end)
        number: Any = tokenizer.convert_tokens_to_ids
        pictures = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56)
        sounds = WhisperFeatureExtractor(feature_size=128, chunk_length=TINY_WINDOW, return_attention_mask=True)
        ends = {"pad_token_id": number("<|endoftext|>"), "eos_token_id": number(self.end)}
        numbers = {"audio_token_index": "audio_token", "image_token_index": "image_token", "video_token_index": "video_token",
                   "audio_start_token_id": "audio_bos_token", "audio_end_token_id": "audio_eos_token",
                   "vision_start_token_id": "vision_bos_token", "vision_end_token_id": "vision_eos_token"}
        placed: dict[str, Any] = {key: number(MEDIA_2_5[name]) for key, name in numbers.items()}
        config = Qwen2_5OmniThinkerConfig(
            text_config={**TEXT, **ends, "vocab_size": len(tokenizer), "rope_parameters": ROPE},
            audio_config={**SOUND, "max_source_positions": 50 * TINY_WINDOW},
            vision_config={**SIGHT, "depth": 1, "fullatt_block_indexes": [0]}, initializer_range=SPREAD, **ends, **placed)
        return self.model(config), self.processor(pictures, sounds, tokenizer)

    def loaded(self, name: str, dtype: Any) -> tuple[Any, Any, Mapping[str, Any]]:
        """Load the thinker of a whole model, or one that was saved alone."""
        tokenizer = AutoTokenizer.from_pretrained(name)
        parts = (Qwen2VLImageProcessorPil.from_pretrained(name), WhisperFeatureExtractor.from_pretrained(name))
        model, told = weights_of(self.model, name, dtype)
        return model, self.processor(*parts, tokenizer), told

    def window(self, processor: Any) -> float:
        """Return the length of a chunk: what is longer is cut."""
        return processor.feature_extractor.chunk_length

    def given(self, processor: Any, text: str, pictures: list[np.ndarray], sounds: list[np.ndarray]) -> dict[str, Tensor]:
        """Turn one prompt into tensors; features (N, bands, frames) are no longer than the longest sound, not than the window."""
        given = super().given(processor, text, pictures, sounds)
        if sounds:
            frames = int(given["feature_attention_mask"].sum(1).max())
            for name in ("input_features", "feature_attention_mask"):
                given[name] = given[name][..., :frames]
        return given


class Qwen3(Qwen25):
    """Qwen3-Omni (arXiv 2509.17765), a mixture of experts."""

    title = "Qwen3-Omni"
    opening = "<|im_start|>user\n"
    projector = "model.audio_tower.proj2"
    blocks = ("Qwen3OmniMoeAudioEncoderLayer", "Qwen3OmniMoeVisionBlock", "Qwen3OmniMoeThinkerTextDecoderLayer")
    types = ("qwen3_omni_moe", "qwen3_omni_moe_thinker")
    batches = False  # less than a second of sound is heard differently beside a longer one: chunks are padded to the longest
    processor = Qwen3Processor
    model = Qwen3OmniMoeThinkerForConditionalGeneration

    def made(self) -> tuple[Any, Any]:
        """Make a thinker of 0.3 M weights and four experts that sees 64 by 64 pixels at most."""
        tokenizer = tiny_tokenizer([*TURNS, *MEDIA_3.values()], MEDIA_3, self.end)
        number: Any = tokenizer.convert_tokens_to_ids
        pictures = Qwen2VLImageProcessorPil(min_pixels=32 * 32, max_pixels=64 * 64, patch_size=16)
        sounds = WhisperFeatureExtractor(feature_size=128, chunk_length=30, return_attention_mask=True)
        ends = {"pad_token_id": number("<|endoftext|>"), "eos_token_id": number(self.end)}
        numbers = {"audio_token_id": "audio_token", "image_token_id": "image_token", "video_token_id": "video_token",
                   "audio_start_token_id": "audio_bos_token", "audio_end_token_id": "audio_eos_token",
                   "vision_start_token_id": "vision_bos_token", "vision_end_token_id": "vision_eos_token"}
        placed: dict[str, Any] = {key: number(MEDIA_3[name]) for key, name in numbers.items()}
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
        config = Qwen3OmniMoeThinkerConfig(
            text_config={**TEXT, **ends, **experts, "vocab_size": len(tokenizer), "head_dim": 16,
                         "rope_parameters": {**ROPE, "mrope_interleaved": True}},
            audio_config={**SOUND, "max_source_positions": 1500, "downsample_hidden_size": 16, "n_window_infer": 400,
                          "conv_chunksize": 500},
            vision_config={**SIGHT, "depth": 2, "patch_size": 16, "deepstack_visual_indexes": [0], "num_position_embeddings": 64},
            initializer_range=SPREAD, **placed)
        return self.model(config), self.processor(pictures, sounds, tokenizer)

    def window(self, processor: Any) -> float:
        """Return that nothing is cut."""
        return float("inf")
