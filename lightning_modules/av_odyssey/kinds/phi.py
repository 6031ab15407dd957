"""Phi-4-multimodal (arXiv 2503.01743): a language model with an adapter of its own for what it sees, and another for what it hears.

Where there are pictures in a batch the adapter for sight is at work, and the ear's projector is another one too; the adapter for speech
is at work where there are sounds alone. Its adapters leave no place for others, so that it is examined but not trained.

Sounds are encoded one at a time: transformers (5.23) adds its mask to attention's scores as ones and zeros, so that a sound would attend to
the silence behind it, and be heard differently beside a longer one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Phi4MultimodalConfig, Phi4MultimodalForCausalLM
from transformers.models.phi4_multimodal.feature_extraction_phi4_multimodal import Phi4MultimodalFeatureExtractor
from transformers.models.phi4_multimodal.processing_phi4_multimodal import Phi4MultimodalProcessor

from lightning_modules.av_odyssey.kinds.kind import SPREAD, OmniKind, tiny_tokenizer, weights_of

ADAPTERS = {"vision": "vision-lora", "speech": "speech-lora"}  # by name, the folder beside the weights


class Phi4(OmniKind):
    """Phi-4-multimodal as transformers reads it: the Hub's revision refs/pr/70, downloaded, not the older code of its main branch."""

    title = "Phi-4-multimodal"
    opening = "<|user|>"
    closing = "<|end|><|assistant|>"
    end = "<|end|>"
    sound = ("audio_token",)
    picture = ("image_token",)
    projector = "model.embed_tokens_extend.audio_embed.down_proj_for_speech"
    blocks = ("Phi4MultimodalDecoderLayer", "Phi4MultimodalVisionEncoderLayer", "Phi4MultimodalAudioConformerEncoderLayer")
    needs = ("torchvision",)
    learns = False
    types = ("phi4_multimodal",)

    def made(self) -> tuple[Any, Any]:
        """Make a model of 0.2 M weights; a picture is 448 by 448 pixels and 545 tokens, of which the size is fixed."""
        from transformers import Phi4MultimodalImageProcessor  # imports torchvision

        named = {"image_token": "<|image|>", "audio_token": "<|audio|>"}
        tokenizer = tiny_tokenizer(["<|endoftext|>", "<|user|>", self.end, "<|assistant|>", *named.values()], named, self.end)
        number: Any = tokenizer.convert_tokens_to_ids
        pictures = Phi4MultimodalImageProcessor(size={"height": 448, "width": 448}, patch_size=14, dynamic_hd=1, image_mean=[0.5] * 3,
                                                image_std=[0.5] * 3)
        config = Phi4MultimodalConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=8192, original_max_position_embeddings=8192, pad_token_id=0, bos_token_id=None,
            eos_token_id=number(self.end), initializer_range=SPREAD,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
            vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                           "image_token_id": number(named["image_token"])},
            audio_config={"hidden_size": 32, "intermediate_size": 64, "num_blocks": 1, "num_attention_heads": 2, "feature_layer": -1,
                          "ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 8,
                          "audio_token_id": number(named["audio_token"]), "initializer_range": SPREAD})
        processor = Phi4MultimodalProcessor(pictures, Phi4MultimodalFeatureExtractor(), tokenizer)
        return one_sound_at_a_time(Phi4MultimodalForCausalLM(config)), processor

    def loaded(self, name: str, dtype: Any) -> tuple[Any, Any, Mapping[str, Any]]:
        """Load a model with its adapters, where they lie beside it, and its processor."""
        model, told = weights_of(Phi4MultimodalForCausalLM, name, dtype)
        folder = Path(name).expanduser()
        for adapter, beside in ADAPTERS.items():
            if not folder.is_dir() or (folder / beside).is_dir():
                model.load_adapter(name, adapter_name=adapter, adapter_kwargs={"subfolder": beside})
        return one_sound_at_a_time(model), Phi4MultimodalProcessor.from_pretrained(name), told

    def window(self, processor: Any) -> float:
        """Return that nothing is cut."""
        return float("inf")

    def extractor(self, processor: Any) -> Any:
        """Return what makes features of sounds."""
        return processor.audio_processor

    def given(self, processor: Any, text: str, pictures: list[np.ndarray], sounds: list[np.ndarray]) -> dict[str, Tensor]:
        """Turn one prompt into tensors; a single sound, too, is told how long it is, so that it can stand in a batch."""
        given = super().given(processor, text, pictures, sounds)
        if sounds and "audio_attention_mask" not in given:
            given["audio_attention_mask"] = torch.ones(given["audio_input_features"].shape[:2], dtype=torch.bool)
        return given

    def attune(self, model: Any, given: Mapping[str, Tensor]) -> None:
        """Set the adapter for sight to work where there are pictures, the one for speech where there are none."""
        if getattr(model, "peft_config", None):
            model.set_adapter("vision" if "image_pixel_values" in given else "speech")


def one_sound_at_a_time(model: Any) -> Any:
    """Have the ear encode each sound of a batch by itself, as long as it is; return the model."""
    encoder = model.model.embed_tokens_extend.audio_embed.encoder
    encode = encoder.forward

    def each(sounds: Tensor, mask: Tensor | None = None, **others: Any) -> Tensor:  # (N, frames, bands), (N, frames) -> (N, tokens, width)
        if mask is None:
            return encode(sounds, None, **others)
        own = [encode(sound[None, :length], None, **others)[0] for sound, length in zip(sounds, mask.sum(1).tolist(), strict=True)]
        return pad_sequence(own, batch_first=True)

    encoder.forward = each
    return model
