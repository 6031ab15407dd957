"""What a model is checked for before it is asked: that batches reply as single questions do, and that its front end keeps loudness.

Batched sound was wrong in released versions of transformers, and front ends that normalise each clip erase its level: the score of a
loudness task would then measure nothing.
"""

from collections.abc import Callable, Sequence

import numpy as np

from datamodules.av_questions import Audio, Question
from datamodules.av_synthetic import SyntheticQuestions
from datamodules.deaftest import DeafTest
from lightning_modules.av_odyssey.adapter import Check, Reply

LEVELS = (-50.0, -30.0, -10.0)  # dBFS, of one tone
LEAST = 0.05  # of a feature's own spread (over time and bands), by which its mean has to rise over 20 dB


def questions_of_all_kinds() -> list[Question]:
    """Make three questions that differ in media and length: four pictures and a sound, a picture and four sounds, two sounds."""
    first, other, pair = SyntheticQuestions(0, 2)[0], SyntheticQuestions(0, 2)[26], DeafTest(0, "valid", 1)[1]
    return [first, other, pair]


def batch_equals_single(replies: Callable[[Sequence[Question]], list[Reply]], limit: float) -> Check:
    """Ask three questions together and one by one; measured: the largest difference of a letter's logit, infinite where texts differ."""
    asked = questions_of_all_kinds()
    together, alone = replies(asked), [replies([question])[0] for question in asked]
    apart = 0.0
    for one, other in zip(together, alone, strict=True):
        pairs = zip(one.letter_logits or (), other.letter_logits or (), strict=True)
        apart = max([apart, *(abs(a - b) for a, b in pairs)])
    holds = apart <= limit and [one.text for one in together] == [other.text for other in alone]
    measured = apart if holds or apart > limit else float("inf")
    return Check("batch equals single", measured, limit, holds, "questions are asked one by one")


def loudness_is_kept(features: Callable[[Audio], np.ndarray]) -> Check:
    """Play one tone at three levels; measured: the least rise of the mean feature over 20 dB, in the features' own spread."""
    t = np.arange(16_000) / 16_000
    tone = np.sin(2 * np.pi * 440 * t)
    found = [features(Audio((10 ** (level / 20) * tone[None]).astype(np.float32), 16_000)) for level in LEVELS]
    means, spread = [float(one.mean()) for one in found], max(float(one.std()) for one in found) or 1.0
    rise = min(np.diff(means)) / spread
    return Check("front end keeps loudness", float(rise), LEAST, bool(rise >= LEAST), "loudness is not measurable")
