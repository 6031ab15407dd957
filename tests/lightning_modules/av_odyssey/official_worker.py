"""Save omni models with transformers' own processors, which have a part for films, and what those make of some prompts.

Run by a test in a process that finds torchvision, which that part needs: official_worker.py FOLDER
"""

import sys
from pathlib import Path

import torch
from transformers import Gemma4Processor, Gemma4VideoProcessor, Qwen2_5OmniProcessor, Qwen2VLVideoProcessor, Qwen3OmniMoeProcessor

from lightning_modules.av_odyssey.omni import OmniAdapter, OmniSection
from tests.lightning_modules.av_odyssey.test_omni_kinds import PROMPTS


def official(name, processor):
    pictures, sounds, tokenizer = processor.image_processor, processor.feature_extractor, processor.tokenizer
    if name == "gemma4":
        return Gemma4Processor(sounds, pictures, tokenizer, Gemma4VideoProcessor())
    whole = Qwen2_5OmniProcessor if name == "qwen2_5_omni" else Qwen3OmniMoeProcessor
    return whole(pictures, Qwen2VLVideoProcessor(), sounds, tokenizer)


def save(name, folder):
    omni = OmniAdapter.load(name, None, OmniSection(frames=2))
    processor = official(name, omni.processor)
    omni.model.save_pretrained(folder)
    processor.save_pretrained(folder)
    given = []
    for shown in map(omni.shown, PROMPTS):
        pictures = [shown.pictures] if name == "gemma4" and shown.pictures else shown.pictures or None
        given.append(dict(processor(text=[shown.text], images=pictures, audio=shown.sounds, return_tensors="pt", padding=True,
                                    text_kwargs={"add_special_tokens": False})))
    torch.save(given, folder / "given.pt")


if __name__ == "__main__":
    for kind in ("qwen2_5_omni", "qwen3_omni", "gemma4"):
        save(kind, Path(sys.argv[1]) / kind)
