"""Lessons for an omni model: questions with the replies that it is to learn, what of it learns, and the loss.

A reply names the content before the letter ("second B"), as the small model's does. Only the reply's own tokens and the end of the turn
are learned; each question counts alike, however long its reply, so that the loss of a batch is the mean of its halves'.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from datamodules.av_questions import Question
from lightning_modules.av_odyssey.omni import OmniAdapter
from lightning_modules.av_odyssey.words import reply_of, text_of
from lightning_modules.language.head import logits_only_at
from lightning_modules.language.lora import LINEAR, add_lora, attention_projections

IGNORED = -100
LANGUAGE = re.compile(r"(.*\.)?language_model\.")


class Lessons(Dataset):
    """Batches of questions, as the model's tensors, with `labels` (B, T) int64 that are IGNORED but where the reply stands, at the end."""

    def __init__(self, questions: Sequence[Question], adapter: OmniAdapter) -> None:
        self.questions, self.adapter = questions, adapter

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return lesson(self.adapter, [self.questions[index] for index in indices])


def lesson(adapter: OmniAdapter, questions: Sequence[Question]) -> dict[str, Tensor]:
    """Turn questions with their replies into a batch, padded on the left."""
    replies = [text_of(reply_of(question, content=True)) + adapter.kind.end for question in questions]
    shown = [adapter.shown(question) for question in questions]
    given = adapter.given([replace(one, text=one.text + reply) for one, reply in zip(shown, replies, strict=True)])
    words = given["input_ids"]
    labels = words.new_full(words.shape, IGNORED)
    for row, own, reply in zip(labels, words, replies, strict=True):
        count = len(adapter.processor.tokenizer.encode(reply, add_special_tokens=False))
        row[-count:] = own[-count:]
    return {**given, "labels": labels}


def reply_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return the mean over questions of the mean cross-entropy of the reply's tokens; logits are made only where it stands."""
    labels, given = batch["labels"], {name: value for name, value in batch.items() if name != "labels"}
    rows, length = labels.shape
    most = int((labels != IGNORED).any(0).sum())
    wanted = labels[:, -most:]  # (B, K)
    ends = (1 + labels.new_tensor(range(rows))) * length - 1  # (B,) places of the last tokens, whose logits foretell nothing here
    places = ends[:, None] - most + labels.new_tensor(range(most))
    with logits_only_at(model, places.flatten()):
        logits = model(**given, use_cache=False).logits  # (B K, V)
    losses = F.cross_entropy(logits.float(), wanted.flatten(), ignore_index=IGNORED, reduction="none").view_as(wanted)
    return (losses.sum(1) / (wanted != IGNORED).sum(1)).mean()


def made_ready(adapter: OmniAdapter) -> Any:
    """Freeze a model but for what its section says is to learn; return it, with adapters if those are it.

    Raises ValueError for a kind that cannot be trained.
    """
    if not adapter.kind.learns:
        raise ValueError(f"module.adapter: {adapter.kind.title} has adapters of its own, and no others are trained beside them; "
                         "evaluate it, or train another model")
    model, section = adapter.model, adapter.section
    model.requires_grad_(False)
    if section.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if section.train == "lora":
        return add_lora(model, replace(section.lora, targets=layers_for_lora(model, section.lora.targets)))
    model.get_submodule(adapter.kind.projector).requires_grad_(True)
    return model


def layers_for_lora(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Name, in full, the language model's linear layers that end in one of `targets`, or are of its attention where there is none.

    Raises ValueError for a target that no linear layer of the language model has.
    """
    linear = [name for name, layer in model.named_modules() if isinstance(layer, LINEAR) and LANGUAGE.match(name)]
    wanted = list(targets) or attention_projections(model)
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise ValueError(f"module.omni.lora.targets: no linear layer of the language model is called {target}; choose from {known}")
    return [name for name in linear if any(f".{name}".endswith(f".{target}") for target in wanted)]


def blocks_to_shard(adapter: OmniAdapter) -> list[nn.Module]:
    """Return the layers of ear, eye and language model: the parts to gather one at a time."""
    return [part for part in adapter.model.modules() if type(part).__name__ in adapter.kind.blocks]


def save_merged(adapter: OmniAdapter, folder: Path) -> None:
    """Write a model, adapters merged into its weights, and its processor, as `module.pretrained` reads them."""
    model = adapter.model
    whole = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    whole.save_pretrained(folder)
    adapter.processor.save_pretrained(folder)
