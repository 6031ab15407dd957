"""What can be known of a language model before it is built where it trains: its name in a cache, and its input embedding."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig

from lightning_modules.language.lora import LoraSection
from lightning_modules.language.network import Recipe, build
from lightning_modules.language.pretrained import load_pretrained, place_of
from lightning_modules.language.weights import find_weights


def identity_of(recipe: Recipe, seed: int) -> str:
    """Name the weights that `build` gives a network: a folder's files by size and time, a Hub model by its commit, or size and seed.

    Adapters change nothing before they train, and are left out.
    """
    if not recipe.pretrained:
        facts: tuple[Any, ...] = ("fresh", recipe.size, recipe.seq2seq, recipe.vocab_size, recipe.eos_token_id, seed)
    elif (folder := Path(recipe.pretrained).expanduser()).is_dir():
        files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file())
        facts = ("folder", *files)
    else:
        facts = ("hub", recipe.pretrained, getattr(AutoConfig.from_pretrained(recipe.pretrained), "_commit_hash", None))
    return hashlib.blake2b(repr(facts).encode(), digest_size=10).hexdigest()


def input_embedding(recipe: Recipe) -> Tensor:
    """Return a copy of the input embedding (V, E), float32, that `build` gives a network; of a model in files nothing else is read."""
    if recipe.pretrained:
        with torch.device("meta"):
            shapes = load_pretrained(recipe.pretrained, torch.float32, recipe.seq2seq, recipe.keys, weights=False)
        wanted = shapes.get_input_embeddings().weight
        if found := find_weights(place_of(recipe.pretrained), shapes):
            path, key = found[next(name for name, p in shapes.named_parameters() if p is wanted)]
            with safe_open(path, "pt") as file:
                return file.get_tensor(key).float()
    model, give_weights = build(replace(recipe, lora=LoraSection(), gradient_checkpointing=False, compile=False), None)
    give_weights()
    return model.get_input_embeddings().weight.detach().float().cpu().clone()
