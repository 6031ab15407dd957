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


def batches_of_all_kinds() -> list[list[Question]]:
    """Make pairs of questions as batches have them, of one mix and of different lengths, for each kind of mix."""
    made, heard = SyntheticQuestions(0, 2), DeafTest(0, "valid", 2)
    return [[made[0], made[1]], [made[26], made[27]], [heard[1], heard[5]]]


def batch_equals_single(replies: Callable[[Sequence[Question]], list[Reply]], limit: float) -> Check:
    """Ask pairs of questions together and one by one; measured: the largest difference of a letter's logit, infinite where texts differ."""
    apart, same = 0.0, True
    for batch in batches_of_all_kinds():
        for one, question in zip(replies(batch), batch, strict=True):
            other = replies([question])[0]
            pairs = zip(one.letter_logits or (), other.letter_logits or (), strict=True)
            apart, same = max([apart, *(abs(a - b) for a, b in pairs)]), same and one.text == other.text
    measured = apart if same or apart > limit else float("inf")
    return Check("batch equals single", measured, limit, same and apart <= limit, "questions are asked one by one")


def loudness_is_kept(features: Callable[[Audio], np.ndarray]) -> Check:
    """Play one tone at three levels; measured: the least rise of the mean feature over 20 dB, in the features' own spread."""
    t = np.arange(16_000) / 16_000
    tone = np.sin(2 * np.pi * 440 * t)
    found = [features(Audio((10 ** (level / 20) * tone[None]).astype(np.float32), 16_000)) for level in LEVELS]
    means, spread = [float(one.mean()) for one in found], max(float(one.std()) for one in found) or 1.0
    rise = min(np.diff(means)) / spread
    return Check("front end keeps loudness", float(rise), LEAST, bool(rise >= LEAST), "loudness is not measurable")
