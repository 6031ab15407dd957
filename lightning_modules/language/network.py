"""A language model ready to train, and what gives it weights once it is sharded: until then it needs no memory."""

import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from lightning_modules.language import llama, t5
from lightning_modules.language.lora import LoraSection, add_lora
from lightning_modules.language.pretrained import Keys, load_pretrained, place_of, require_fit
from lightning_modules.language.weights import draw_weights, find_weights, read_weights


@dataclass(frozen=True)
class Recipe:
    """A language model, and the data that it is for."""

    size: str  # of fresh weights; without effect on a pretrained model
    pretrained: str | None  # hub name or folder
    vocab_size: int
    block_size: int  # tokens of the longest sequence
    eos_token_id: int | None
    pad_token_id: int | None = None
    seq2seq: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    lora: LoraSection = field(default_factory=LoraSection)
    precision: str = "32-true"  # trainer.precision
    keys: Keys = field(default_factory=Keys)

    @property
    def dtype(self) -> torch.dtype:
        """Keep weights that never change in the type that mixed precision multiplies them in; peft makes the factors float32."""
        short = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.precision)
        frozen = self.pretrained and self.lora.rank
        return short if short and frozen else torch.get_default_dtype()  # the default is what trainer.precision asks for


def fresh_sizes(seq2seq: bool) -> list[str]:
    """Name the sizes of models with fresh weights, smallest first."""
    return [*(t5.SIZES if seq2seq else llama.SIZES)]


def build(recipe: Recipe, mesh: DeviceMesh | None, parted: bool = False) -> tuple[Any, Callable[[], None]]:
    """Return the network, adapters included, and what gives it weights once it is sharded over `mesh`, or `parted` in another way.

    Where nothing is sharded, beside adapters, and from files with other names than the model's, pretrained weights come at once.
    Raises ValueError that names an option for a model that cannot be had or does not fit the data.
    """
    device = torch.get_default_device() if mesh is None else torch.device(mesh.device_type)
    if recipe.pretrained:
        model, give_weights = _pretrained(recipe, recipe.pretrained, device, parted)
    else:
        model, give_weights = _fresh(recipe, device)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return add_lora(model, recipe.lora) if recipe.lora.rank else model, give_weights


def _fresh(recipe: Recipe, device: torch.device) -> tuple[PreTrainedModel, Callable[[], None]]:
    """Draw the weights under the run's seed: at once where adapters are added, which look at them."""
    with torch.device("meta"):
        if recipe.seq2seq:
            assert recipe.pad_token_id is not None, "T5 starts its decoder with padding"
            model: PreTrainedModel = t5.new_t5(recipe.size, recipe.vocab_size, recipe.eos_token_id, recipe.pad_token_id)
        else:
            model = llama.new_llama(recipe.size, recipe.vocab_size, recipe.block_size, recipe.eos_token_id)
    draw = partial(draw_weights, model, device, torch.initial_seed())
    if not recipe.lora.rank:
        return model, draw
    draw()
    return model, lambda: None


def _pretrained(recipe: Recipe, name: str, device: torch.device, parted: bool) -> tuple[PreTrainedModel, Callable[[], None]]:
    """Read the weights by rows once they are sharded, where that can be; else load them now."""
    load = partial(load_pretrained, name, recipe.dtype, recipe.seq2seq, recipe.keys)
    fits = (name, recipe.vocab_size, recipe.block_size, recipe.keys)
    if parted and not recipe.lora.rank:
        with torch.device("meta"):
            model = load(weights=False)
        require_fit(model, *fits)
        if found := find_weights(place_of(name), model):
            return model, lambda: read_weights(model, device, found)
        warnings.warn(f"{recipe.keys.model}: {name} has no safetensors with the names of its class; "
                      "each process loads the whole model before it is sharded", stacklevel=2)
    model = load()
    require_fit(model, *fits)
    return model, lambda: None


def blocks_of(model: Any) -> list[nn.Module]:
    """Return the transformer layers of a network, adapters or not: the parts to gather one at a time."""
    return [layer for layer in model.modules() if type(layer).__name__ in (model._no_split_modules or ())]


def require_compiler() -> None:
    """Raise ValueError if torch.compile could not work here, for want of a C++ compiler."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ValueError(f"module.compile: needs a C++ compiler, and {compiler} is not found; "
                         "install it (apt install g++), or set module.compile=false")
