"""Teaching the ear: it learns to read level, pitch, length and number out of single sounds, before any language."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchmetrics import MeanMetric

from datamodules.av_odyssey import EarData
from datamodules.av_questions import Audio
from datamodules.deaftest import Profile
from lightning_modules.av_odyssey.hearing import BANDS, READ, SCALES, Encoder, Frames, facts_of, frames_of, mel_filters, reading_loss
from lightning_modules.base import MethodModule, OptimizerFactory, Phase
from lightning_modules.optim.adamw import AdamW, AdamWConfig

WEIGHTS = "ear.safetensors"


@dataclass(frozen=True)
class EarSection:
    width: int = 128
    """channels of the ear's convolutions"""
    items: int = 500
    """questions of each task of pairs whose sounds it learns from"""
    counts: int = 3000
    """sounds that it learns to count in; a pair has two to compare, and counting takes the most examples"""
    epochs: int = 8
    """passes over them"""
    batch_size: int = 64
    """sounds of each process in a batch"""
    lr: float = 0.003
    """peak learning rate"""

    def __post_init__(self) -> None:
        for name in ("width", "items", "counts", "epochs", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: must be above 0, not {getattr(self, name)}")


class Reader:
    """Turns a sound and what is true of it into frames, (1, BANDS, T), and targets, (4,)."""

    def __init__(self) -> None:
        self.filters = mel_filters()

    def __call__(self, sound: Audio, truth: Any) -> tuple[Frames, Tensor]:
        return frames_of([sound], self.filters), torch.tensor(facts_of(truth), dtype=torch.float32)


def stacked(read: Sequence[tuple[Frames, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Make a batch of what is read: padded frames (N, BANDS, T), their lengths (N,), and targets (N, 4)."""
    lengths = torch.cat([frames.lengths for frames, _ in read])
    values = torch.zeros(len(read), BANDS, int(lengths.max()))
    for row, (frames, _) in zip(values, read, strict=True):
        row[:, : frames.values.shape[-1]] = frames.values[0]
    return values, lengths, torch.stack([facts for _, facts in read])


class EarModule(MethodModule):
    """The encoder with its readings; leaves its weights in `folder` when the fit ends."""

    STRATEGIES = ("single", "ddp")
    UNIT = "frames"

    def __init__(self, section: EarSection, folder: Path) -> None:
        super().__init__(section, OptimizerFactory(AdamW, AdamWConfig(section.lr)))
        self.folder, self.encoder = folder, Encoder(section.width)
        self.errors = torch.nn.ModuleList(MeanMetric(nan_strategy="disable") for _ in READ)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        values, lengths, wanted = batch
        loss = reading_loss(self.encoder.read(self.encoder(Frames(values, lengths))), wanted)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        values, lengths, wanted = batch
        read = self.encoder.read(self.encoder(Frames(values, lengths)))
        wrong = (read * read.new_tensor(SCALES) - wanted).abs()
        for place, metric in enumerate(self.errors):
            metric.update(wrong[wanted[:, place].isfinite(), place])  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        for name, metric in zip(READ, self.errors, strict=True):
            self.log(f"val/error_{name.replace(' ', '_')}", metric.compute().item(), sync_dist=True)  # type: ignore[operator]
            metric.reset()  # type: ignore[operator]

    def on_fit_end(self) -> None:
        """Write the weights, and last of all the file that says that they are there."""
        if self.trainer.is_global_zero:
            part = self.folder / f"part-{WEIGHTS}"
            save_file({name: value.contiguous().cpu() for name, value in self.encoder.state_dict().items()}, part)
            os.replace(part, self.folder / WEIGHTS)
            errors = {name: float(value) for name, value in self.trainer.callback_metrics.items() if name.startswith("val/")}
            (self.folder / f"part-{Phase.DONE}").write_text(json.dumps({"validation": errors}, indent=1))
            os.replace(self.folder / f"part-{Phase.DONE}", self.folder / Phase.DONE)
        self.trainer.strategy.barrier("the ear is written")


def ear_phase(section: EarSection, seed: int, profile: Profile, folder: Path) -> Phase:
    """Describe the training of an ear."""
    data = EarData(seed, profile, section.items, section.counts, section.batch_size, Reader(), stacked)
    return Phase("ear", folder, EarModule(section, folder), data, section.epochs)


def load_ear(encoder: Encoder, folder: Path) -> None:
    """Take the weights of a trained ear."""
    encoder.load_state_dict(load_file(folder / WEIGHTS))
