"""Pictures of what a model hears: just-noticeable differences, and the sounds that it got wrong."""

import contextlib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datamodules.av_questions import Audio, Question
from lightning_modules.av_odyssey.staircase import Noticeable
from lightning_modules.intervals import wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLOOR = -100.0  # dB of full scale: what is softer is drawn black


def noticeable_figure(found: Mapping[str, Noticeable], target: float) -> "Figure":
    """Draw, for each task, shares of right answers over the gap with their 95 % intervals, and the just-noticeable difference.

    Names of `found` carry the unit, as in "pitch, semitones"; `target` is the share of right answers at a threshold.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(3.4 * len(found), 3.2), dpi=120, layout="constrained")
    for axes, (name, one) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        gaps, shares = [gap for gap, _, _ in one.curve], np.array([100 * right / count for _, right, count in one.curve])
        ends = 100 * np.array([wilson(right, count) for _, right, count in one.curve])
        axes.errorbar(gaps, shares, (shares - ends[:, 0], ends[:, 1] - shares), fmt="o", markersize=3, linewidth=0.8)
        axes.axhline(100 * target, color="0.4", linestyle=":", linewidth=1)
        axes.axvline(one.value, color="#c1440e", linewidth=1.2, label=str(one))
        axes.axvspan(one.low, one.high, color="#c1440e", alpha=0.15, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(LogLocator(2, numticks=5))
        axes.xaxis.set_major_formatter("{x:.2g}")
        axes.set_xlabel(name)
        axes.set_ylabel("right answers, %")
        axes.set_ylim(0, 105)
        axes.legend(frameon=False, fontsize="small", loc="lower right")
    return figure


def spectrogram(audio: Audio, size: int = 512) -> np.ndarray:
    """Return the power of each window and frequency in dB of a full-scale sine, (size / 2 + 1, windows); windows half overlap."""
    mono = np.pad(audio.samples.mean(0), (0, max(0, size - audio.samples.shape[-1])))
    windows = np.lib.stride_tricks.sliding_window_view(mono, size)[:: size // 2] * np.hanning(size)
    amplitude = np.abs(np.fft.rfft(windows)).T / (np.hanning(size).sum() / 2)
    return np.maximum(20 * np.log10(amplitude + 1e-12), FLOOR)


def failure_figure(question: Question, reply: str) -> "Figure":
    """Draw the spectrograms of a question's sounds, one scale for all, under what was asked and what was said."""
    from matplotlib.figure import Figure

    sounds = {tag: medium for tag, medium in question.media.items() if isinstance(medium, Audio)}
    figure = Figure(figsize=(3.4 * len(sounds), 3.4), dpi=120, layout="constrained")
    for axes, (tag, sound) in zip(figure.subplots(1, len(sounds), squeeze=False)[0], sounds.items(), strict=True):
        extent = (0.0, sound.seconds, 0.0, sound.rate / 2000)
        axes.imshow(spectrogram(sound), origin="lower", aspect="auto", extent=extent, vmin=FLOOR, vmax=0, cmap="magma")
        axes.set_title(tag, fontsize="small")
        axes.set_xlabel("s")
        axes.set_ylabel("kHz")
    said = " ".join(reply.split())[:60]
    figure.suptitle(f"{question.id} {question.task}: right is {question.answer}, said was {said!r}", fontsize="small",
                    parse_math=False)  # a dollar in a reply is a dollar
    return figure


def draw_failures(wrong: Iterable[tuple[Question, str]], folder: Path, most: int = 4) -> list[Path]:
    """Draw the first `most` questions with sounds that got a wrong reply, into failure-1.png and so on in `folder`.

    What can no longer be read is passed over.
    """
    heard = ((question, reply) for question, reply in wrong if any(tag.startswith("audio") for tag in question.media))
    drawn: list[Path] = []
    for question, reply in heard:
        if len(drawn) == most:
            break
        with contextlib.suppress(OSError, ValueError), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a reply may be of any alphabet, and the font is not
            picture = folder / f"failure-{len(drawn) + 1}.png"
            failure_figure(question, reply).savefig(picture)
            drawn.append(picture)
    return drawn
