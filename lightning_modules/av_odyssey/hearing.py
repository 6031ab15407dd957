"""The ear of the small model: log-mel frames, three strided convolutions, one vector a clip; it first learns to read out what it hears.

Levels are kept: frames are shifted and scaled by constants, never by their own mean. Padding is masked behind every layer, so that a clip's
vector is the same in any batch. The sum over frames is what carries counts and durations, the mean what carries level and pitch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from datamodules.av_questions import Audio
from datamodules.deaftest import RATE

BANDS, WINDOW, HOP = 64, 512, 320  # mel bands; samples of a window, and between two: 20 ms
FLOOR = 1e-10  # of the power of a band
SHIFT, SCALE = -10.0, 5.0  # about the mean and spread of the natural log of such powers
READ = ("level", "log2 f0", "seconds", "count")
SCALES = (20.0, 1.0, 2.0, 2.0)  # what a unit of error is: dB, octaves, seconds, sounds


@dataclass(frozen=True)
class Frames:
    """Log-mel frames of N clips, (N, BANDS, T), and how many of each clip's are its own, (N,)."""

    values: Tensor
    lengths: Tensor


def mel_filters() -> Tensor:
    """Return Slaney's mel filters at RATE, (BANDS, WINDOW / 2 + 1)."""
    return torch.from_numpy(mel_filter_bank(WINDOW // 2 + 1, BANDS, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney").T).float()


def frames_of(sounds: Sequence[Audio], filters: Tensor) -> Frames:
    """Return the frames of some clips, all channels averaged. Raises ValueError for another sampling rate."""
    for sound in sounds:
        if sound.rate != RATE:
            raise ValueError(f"the small model hears {RATE} Hz, not {sound.rate}")
    waves = [torch.from_numpy(np.ascontiguousarray(sound.samples.mean(0))) for sound in sounds]
    lengths = torch.tensor([len(wave) // HOP + 1 for wave in waves])
    found = torch.zeros(len(waves), BANDS, int(lengths.max()))
    window = torch.hann_window(WINDOW)
    for row, wave in zip(found, waves, strict=True):
        power = torch.stft(wave, WINDOW, HOP, window=window, pad_mode="constant", return_complex=True).abs().square()
        row[:, : power.shape[1]] = ((filters @ power).clamp(min=FLOOR).log() - SHIFT) / SCALE
    return Frames(found, lengths)


class Encoder(nn.Module):
    """Frames to one vector a clip, (N, 2 width)."""

    STRIDES = (4, 2, 2)

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (BANDS, width, width, width)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, 5, stride, padding=2) for before, after, stride in zip(sizes, sizes[1:], self.STRIDES))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in self.STRIDES)
        self.read = nn.Linear(2 * width, len(READ))

    def forward(self, frames: Frames) -> Tensor:
        x, lengths = frames.values, frames.lengths
        for convolution, norm, stride in zip(self.convolutions, self.norms, self.STRIDES):
            x, lengths = convolution(x), (lengths - 1) // stride + 1
            own = (torch.arange(x.shape[-1], device=x.device) < lengths[:, None])[:, None]
            x = F.gelu(norm(x)) * own
        total = x.sum(-1)
        return torch.cat([total / lengths[:, None], total / 10], -1)


def reading_loss(read: Tensor, wanted: Tensor) -> Tensor:
    """Return the smooth L1 loss of what is read out (N, 4), in units of SCALES, where `wanted` (N, 4) is known: NaN elsewhere."""
    known = wanted.isfinite()
    scales = wanted.new_tensor(SCALES)
    return F.smooth_l1_loss(read[known], (wanted / scales)[known])


def facts_of(truth: dict) -> list[float]:
    """Return what is to be read from a clip by its truth: peak level in dB below full scale, log2 of Hz, seconds, number of sounds."""
    level = truth["level"] - 100.0 + 40.0  # about the middle of the range
    pitch = np.nan if truth["kind"] == "band" else np.log2(truth["f0"] / 500.0)
    return [np.nan if truth["clipped"] else level, pitch, truth["seconds"] if truth["count"] == 1 else np.nan, float(truth["count"])]
