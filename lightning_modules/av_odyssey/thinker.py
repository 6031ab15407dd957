"""Qwen2.5-Omni's thinker with its processor: from a folder or the Hub, or a tiny one with random weights that is made without either.

Films are shown as pictures, so that no video processor (and no torchvision) is needed, with weights of any size.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoTokenizer,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2Tokenizer,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

MEDIA = {"image_token": "<|IMAGE|>", "audio_token": "<|AUDIO|>", "video_token": "<|VIDEO|>", "vision_bos_token": "<|vision_bos|>",
         "vision_eos_token": "<|vision_eos|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *MEDIA.values())
TINY_WINDOW = 8  # seconds that the tiny model hears of a clip; released ones hear 300
SPREAD = 0.2  # of random weights; with the usual 0.02 a model this small hardly hears what it is shown
HEAD = 1 << 20  # bytes of each file that tell a folder of weights from another, beside names and sizes


class PicturesAndSound(Qwen2_5OmniProcessor):
    """The processor without its part for films; transformers reads what parts there are off this signature."""

    def __init__(self, image_processor: Any = None, feature_extractor: Any = None, tokenizer: Any = None,
                 chat_template: Any = None) -> None:
        super(Qwen2_5OmniProcessor, self).__init__(image_processor, feature_extractor, tokenizer, chat_template=chat_template)
        for name in MEDIA:
            setattr(self, name, getattr(tokenizer, name))
        for name in ("image_token", "audio_token", "video_token"):
            setattr(self, f"{name}_id", tokenizer.convert_tokens_to_ids(getattr(tokenizer, name)))


def tiny_tokenizer() -> Qwen2Tokenizer:
    """Make a tokenizer of one token a byte, and Qwen's special ones."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *sorted(ByteLevel.alphabet())])}
    return Qwen2Tokenizer(vocab=vocabulary, merges=[], eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=MEDIA)


def tiny_processor() -> PicturesAndSound:
    """Make a processor of the smallest pictures, 56 by 56 pixels at most, and a short window for sound."""
    pictures = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56)
    sound = WhisperFeatureExtractor(feature_size=128, chunk_length=TINY_WINDOW, return_attention_mask=True)
    return PicturesAndSound(pictures, sound, tiny_tokenizer())


def tiny_thinker(tokenizer: Qwen2Tokenizer, seed: int = 0) -> Qwen2_5OmniThinkerForConditionalGeneration:
    """Make a thinker of 0.2 M random weights, the same for the same seed; the generator of the process is left as it was."""
    number: Any = tokenizer.convert_tokens_to_ids
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 8192, "tie_word_embeddings": False,
        "pad_token_id": number("<|endoftext|>"), "eos_token_id": number("<|im_end|>"), "bos_token_id": None,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0},
        "initializer_range": SPREAD}
    sound = {"num_mel_bins": 128, "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "d_model": 32,
             "max_source_positions": 50 * TINY_WINDOW, "n_window": 50, "output_dim": 64, "initializer_range": SPREAD}
    sight = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64, "fullatt_block_indexes": [0],
             "initializer_range": SPREAD}
    named = {"audio_token_index": "audio_token", "image_token_index": "image_token", "video_token_index": "video_token",
             "audio_start_token_id": "audio_bos_token", "audio_end_token_id": "audio_eos_token",
             "vision_start_token_id": "vision_bos_token", "vision_end_token_id": "vision_eos_token"}
    numbers: dict[str, Any] = {key: number(MEDIA[name]) for key, name in named.items()}
    numbers |= {key: text[key] for key in ("pad_token_id", "eos_token_id")}
    config = Qwen2_5OmniThinkerConfig(text_config=text, audio_config=sound, vision_config=sight, initializer_range=SPREAD, **numbers)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), float32_by_default():
        torch.manual_seed(seed)
        return Qwen2_5OmniThinkerForConditionalGeneration(config).eval()


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Make weights in float32, whatever a trainer has set."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def tiny(seed: int = 0, dtype: torch.dtype | None = None) -> tuple[Any, PicturesAndSound, str]:
    """Make model, processor and the name of the weights, a digest of them before they are cast to `dtype`."""
    processor = tiny_processor()
    model: Any = tiny_thinker(processor.tokenizer, seed)
    content = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        content.update(name.encode() + value.contiguous().numpy().tobytes())
    return model if dtype is None else model.to(dtype), processor, f"tiny {content.hexdigest()}"


def pretrained(name: str, dtype: torch.dtype | None = None) -> tuple[Any, PicturesAndSound, str]:
    """Load model, processor and the name of the weights from a folder or the Hub, of `dtype` or of that in which they were saved.

    Raises ValueError if what is there is no thinker.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        parts = (Qwen2VLImageProcessorPil.from_pretrained(name), WhisperFeatureExtractor.from_pretrained(name))
        processor = PicturesAndSound(*parts, tokenizer)
        model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(name, dtype=dtype or "auto").eval()
    except (OSError, AttributeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"module.pretrained: {name}: holds no Qwen2.5-Omni with its processor ({reason})") from error
    folder = Path(name).expanduser()
    return model, processor, digest_of_folder(folder) if folder.is_dir() else f"{name} {model.config._commit_hash}"


def digest_of_folder(folder: Path) -> str:
    """Hash names, sizes and the first MiB of all files, which for weights holds the names of all tensors and some of their values."""
    content = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                content.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode() + file.read(HEAD))
    return content.hexdigest()
