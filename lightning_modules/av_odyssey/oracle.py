"""The oracle: DeafTest answered by signal processing. It bounds what a model can reach, and checks what the generator makes.

Sounds are where the envelope stands within 20 dB of its 95th percentile. Of two sounds the oracle compares the level, the peak of the
spectrum or the length of that part; the choice is read from the option's text. In DeafTest's pictures it counts dots, measures the bar,
or looks how high the mark stands, by the picture's own grey lines, and takes what comes nearest to the sound.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from datamodules.av_questions import LETTERS, Audio, Picture, Question
from datamodules.av_synthetic import ORDINALS as PLACES
from lightning_modules.av_odyssey.adapter import Check, Reply

FRAME = 0.02  # seconds
BELOW = 10 ** (-20 / 20)  # of the 95th percentile of the envelope
ORDINALS = {"first": "audio1", "second": "audio2"}


def envelope(audio: Audio) -> np.ndarray:
    """Return the root mean square of each frame of 20 ms, over all channels: (frames,)."""
    size = round(FRAME * audio.rate)
    mono = np.sqrt(np.mean(audio.samples.astype(np.float64) ** 2, axis=0))
    whole = mono[: len(mono) // size * size].reshape(-1, size)
    return np.sqrt(np.mean(whole**2, axis=1))


def active(audio: Audio) -> np.ndarray:
    """Tell which frames sound, (frames,) bool."""
    level = envelope(audio)
    return level > BELOW * np.percentile(level, 95)


def count_of(audio: Audio) -> int:
    """Count sounds: rising edges of the envelope over the threshold."""
    sounding = active(audio).astype(int)
    return int(sounding[0] + (np.diff(sounding) == 1).sum())


def loudness_of(audio: Audio) -> float:
    """Return the root mean square of the sounding part."""
    level = envelope(audio)[active(audio)]
    return float(np.sqrt(np.mean(level**2))) if len(level) else 0.0


def pitch_of(audio: Audio) -> float:
    """Return the frequency in Hz of the highest peak of the windowed, zero-padded spectrum."""
    mono = audio.samples.mean(0)
    spectrum = np.abs(np.fft.rfft(mono * np.hanning(len(mono)), 4 * len(mono)))
    return float(spectrum.argmax() * audio.rate / (4 * len(mono)))


def duration_of(audio: Audio) -> float:
    """Return the seconds that sound."""
    return float(active(audio).sum() * FRAME)


def dots_of(picture: Picture) -> float:
    """Count white parts that hang together."""
    return float(ndimage.label(_white(picture))[1])


def bar_of(picture: Picture) -> float:
    """Return the length of the bar in seconds: a grey line stands at each."""
    lines = np.flatnonzero(picture.pixels[0, :, 0])
    return float(_white(picture).any(0).sum() / np.diff(lines).mean())


def mark_of(picture: Picture) -> float:
    """Return the frequency in Hz at which the mark stands: grey lines, from 100 Hz below on, are octaves."""
    lines = np.flatnonzero(picture.pixels[:, 0, 0])
    row = np.flatnonzero(_white(picture).any(1)).mean()
    return float(100 * 2 ** ((lines.max() - row) / np.diff(lines).mean()))


def _white(picture: Picture) -> np.ndarray:
    return picture.pixels[..., 0] > 200


SEEN = {"seen_count": (count_of, dots_of), "seen_duration": (duration_of, bar_of), "seen_pitch": (pitch_of, mark_of)}
MEASURES = {"loudness": loudness_of, "pitch": pitch_of, "duration": duration_of}


class Oracle:
    """Replies to DeafTest's questions, with pictures or without; those of other sets it cannot answer."""

    cannot: Mapping[str, str] = {}
    identity = "oracle 2"
    together: int | None = 1

    def checks(self) -> list[Check]:
        """Find nothing to check."""
        return []

    def replies(self, questions: Sequence[Question]) -> list[Reply]:
        """Reply to each question with its letter."""
        return [Reply(_letter(question)) for question in questions]


def _letter(question: Question) -> str:
    sounds = {tag: medium for tag, medium in question.media.items() if isinstance(medium, Audio)}
    if question.task == "count":
        said = str(count_of(sounds["audio1"]))
        near = [abs(int(option) - int(said)) for option in question.options]
        return LETTERS[int(np.argmin(near))]
    if question.task in SEEN:
        return _seen_letter(question)
    if question.task not in MEASURES:
        raise ValueError(f"the oracle knows {', '.join(['count', *MEASURES, *SEEN])}, not {question.task}")
    values = {tag: MEASURES[question.task](sounds[tag]) for tag in ("audio1", "audio2")}
    more = max(values, key=lambda tag: values[tag])
    place = next(i for i, option in enumerate(question.options) if any(word in option and tag == more for word, tag in ORDINALS.items()))
    return LETTERS[place]


def _seen_letter(question: Question) -> str:
    heard, seen = SEEN[question.task]
    values = {tag: np.log(heard(medium) if isinstance(medium, Audio) else seen(medium))
              for tag, medium in question.media.items() if isinstance(medium, Audio | Picture)}
    one, many = ("img", "audio") if "audio2" in values else ("audio", "img")
    nearest = min((1, 2, 3, 4), key=lambda place: abs(values[f"{many}{place}"] - values[f"{one}1"]))
    return LETTERS[next(place for place, option in enumerate(question.options) if PLACES[nearest - 1] in option)]
