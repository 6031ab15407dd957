"""Gemma 4 and Gemma 3n: sounds of up to 30 s each.

Gemma 4 is shown films as pictures, so that no video processor (and no torchvision) is needed. Gemma 3n sees with timm.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from transformers import (
    AutoTokenizer,
    Gemma3nConfig,
    Gemma3nForConditionalGeneration,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    SiglipImageProcessorPil,
)
from transformers.models.gemma3n.feature_extraction_gemma3n import Gemma3nAudioFeatureExtractor
from transformers.models.gemma3n.processing_gemma3n import Gemma3nProcessor
from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.gemma4.processing_gemma4 import Gemma4Processor

from lightning_modules.av_odyssey.kinds.kind import SPREAD, OmniKind, tiny_tokenizer, weights_of

WINDOW = 30  # seconds of a sound that are heard, by both models
TEXT = {"hidden_size": 64, "hidden_size_per_layer_input": 8, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
        "max_position_embeddings": 8192, "pad_token_id": 0, "initializer_range": SPREAD}


class Gemma4PicturesAndSound(Gemma4Processor):
    """The processor without its part for films; transformers reads what parts there are off this signature."""

    def __init__(self, feature_extractor: Any, image_processor: Any, tokenizer: Any, chat_template: Any = None,
                 image_seq_length: int = 280, audio_seq_length: int = 750, audio_ms_per_token: int = 40) -> None:
        self.image_seq_length, self.audio_seq_length, self.audio_ms_per_token = image_seq_length, audio_seq_length, audio_ms_per_token
        for name in ("image_token", "boi_token", "eoi_token", "audio_token", "boa_token", "eoa_token"):
            setattr(self, name, getattr(tokenizer, name))
        self.video_token = "<|video|>"
        for name in ("image_token", "audio_token", "video_token"):
            setattr(self, f"{name}_id", tokenizer.convert_tokens_to_ids(getattr(self, name)))
        super(Gemma4Processor, self).__init__(feature_extractor, image_processor, tokenizer, chat_template=chat_template)


class Gemma4(OmniKind):
    """Gemma 4, the sizes that hear (E2B, E4B)."""

    title = "Gemma 4"
    opening = "<bos><|turn>user\n"
    closing = "<turn|>\n<|turn>model\n"
    end = "<turn|>"
    sound = ("audio_token",)  # the processor puts the tokens around it
    picture = ("image_token",)
    projector = "model.embed_audio.embedding_projection"
    gathers: ClassVar[bool] = False  # rows of embeddings, and scales, are read past their layers
    types: ClassVar[Sequence[str]] = ("gemma4",)
    blocks: ClassVar[Sequence[str]] = ("Gemma4TextDecoderLayer", "Gemma4VisionEncoderLayer", "Gemma4AudioLayer")

    def made(self) -> tuple[Any, Any]:
        """Make a model of 0.2 M weights that gives each picture 70 tokens at most."""
        named = {"image_token": "<|image|>", "audio_token": "<|audio|>", "boi_token": "<|image>", "eoi_token": "<image|>",
                 "boa_token": "<|audio>", "eoa_token": "<audio|>"}
        tokenizer = tiny_tokenizer(["<pad>", "<eos>", "<bos>", "<|turn>", self.end, *named.values(), "<|video|>"], named, self.end)
        number: Any = tokenizer.convert_tokens_to_ids
        pictures = Gemma4ImageProcessorPil(patch_size=16, max_soft_tokens=70, pooling_kernel_size=3)
        ends = {"eos_token_id": number(self.end), "pad_token_id": 0}
        placed: dict[str, Any] = {f"{name}_id": number(token) for name, token in named.items() if name != "eoa_token"}
        config = Gemma4Config(
            text_config={**TEXT, **ends, "bos_token_id": 2, "intermediate_size": 128, "vocab_size": len(tokenizer),
                         "vocab_size_per_layer_input": len(tokenizer), "global_head_dim": 16},
            audio_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "subsampling_conv_channels": [128, 4],
                          "output_proj_dims": 64, "initializer_range": SPREAD},
            vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                           "num_key_value_heads": 2, "head_dim": 16, "patch_size": 16, "position_embedding_size": 64,
                           "initializer_range": SPREAD},
            initializer_range=SPREAD, eoa_token_index=number("<audio|>"), video_token_id=number("<|video|>"), **ends, **placed)
        return Gemma4ForConditionalGeneration(config), Gemma4PicturesAndSound(Gemma4AudioFeatureExtractor(), pictures, tokenizer)

    def loaded(self, name: str, dtype: Any) -> tuple[Any, Any, Mapping[str, Any]]:
        """Load a model and the parts of its processor; ValueError for one without an ear."""
        parts = (Gemma4AudioFeatureExtractor.from_pretrained(name), Gemma4ImageProcessorPil.from_pretrained(name))
        processor = Gemma4PicturesAndSound(*parts, AutoTokenizer.from_pretrained(name))
        model, told = weights_of(Gemma4ForConditionalGeneration, name, dtype)
        if model.config.audio_config is None:
            raise ValueError("this size has no ear; E2B and E4B have one")
        return model, processor, told

    def window(self, processor: Any) -> float:
        """Return the seconds of a sound that are heard."""
        return WINDOW

    def calls(self, processor: Any) -> dict[str, Any]:
        """Return how the processor is called: as it is by default, because a saved tokenizer's settings would go before the defaults."""
        calls = super().calls(processor)
        window = WINDOW * processor.feature_extractor.sampling_rate
        calls["audio_kwargs"] |= {"truncation": True, "max_length": window, "pad_to_multiple_of": 128}
        return calls

    def given(self, processor: Any, text: str, pictures: list[np.ndarray], sounds: list[np.ndarray]) -> dict[str, Tensor]:
        """Turn one prompt into tensors; a prompt's pictures are a list of their own."""
        return dict(processor(text=[text], images=[pictures] if pictures else None, audio=sounds or None, return_tensors="pt",
                              **self.calls(processor)))


class Gemma3n(Gemma4):
    """Gemma 3n: 188 tokens a sound, whatever its length."""

    title = "Gemma 3n"
    opening = "<bos><start_of_turn>user\n"
    closing = "<end_of_turn>\n<start_of_turn>model\n"
    end = "<end_of_turn>"
    blocks = ("Gemma3nTextDecoderLayer", "Gemma3nAudioConformerBlock")
    types = ("gemma3n",)
    needs = ("timm", "torchvision")

    def made(self) -> tuple[Any, Any]:
        """Make a model of 0.4 M weights that sees 64 by 64 pixels as four tokens; the last tokens are the eye's and the ear's own."""
        named = {"boi_token": "<start_of_image>", "boa_token": "<start_of_audio>"}
        eye, ear = {"eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}, {"eoa_token": "<end_of_audio>",
                                                                                         "audio_token": "<audio_soft_token>"}
        special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", self.end, *named.values()]
        tokenizer = tiny_tokenizer(special, named | eye | ear, self.end, [*eye.values(), *ear.values()])
        number: Any = tokenizer.convert_tokens_to_ids
        words = number("<end_of_image>")  # words come before these
        pictures = SiglipImageProcessorPil(size={"height": 64, "width": 64}, do_normalize=False)
        placed: dict[str, Any] = {f"{name}_id": number(token) for name, token in (named | eye | ear).items()}
        config = Gemma3nConfig(
            text_config={**TEXT, "bos_token_id": 2, "eos_token_id": number(self.end), "intermediate_size": [128] * 4,
                         "vocab_size": len(tokenizer), "vocab_size_per_layer_input": words, "laurel_rank": 4,
                         "altup_num_inputs": 2, "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0]},
            audio_config={"vocab_size": len(ear), "vocab_offset": words + len(eye), "input_feat_size": 128, "hidden_size": 32,
                          "conf_num_attention_heads": 4, "conf_num_hidden_layers": 1, "sscp_conv_channel_size": (8, 4),
                          "initializer_range": SPREAD},
            vision_config={"architecture": "test_convnext", "hidden_size": 64, "vocab_size": len(eye), "vocab_offset": words,
                           "label_names": ["none"], "initializer_range": SPREAD},
            vision_soft_tokens_per_image=4, initializer_range=SPREAD, **placed)
        processor = Gemma3nProcessor(Gemma3nAudioFeatureExtractor(), pictures, tokenizer, image_seq_length=4)
        return Gemma3nForConditionalGeneration(config), processor

    def loaded(self, name: str, dtype: Any) -> tuple[Any, Any, Mapping[str, Any]]:
        """Load a model and its processor."""
        model, told = weights_of(Gemma3nForConditionalGeneration, name, dtype)
        return model, Gemma3nProcessor.from_pretrained(name), told
