"""DeafTest's comparisons with a gap that is asked for, as staircases do; all else is drawn as in the hard profile."""

import numpy as np

from datamodules.av_questions import Question
from datamodules.deaftest import FIRST_ID, SPLITS, TASKS, Sound, Split, posed_pair

UNITS = {"loudness": "dB", "pitch": "semitones", "duration": "share of the shorter"}
RANGES = {"loudness": (0.05, 8.0), "pitch": (0.02, 6.0), "duration": (0.005, 0.5)}  # gaps, smallest and largest
STAIRCASE = 1000  # sets these items apart from those of other profiles


def with_gap(seed: int, split: Split, task: str, number: int, gap: float) -> Question:
    """Make comparison `number` of a task whose sounds lie `gap` apart, in the task's unit; the rest depends on seed, split and number."""
    words = [seed, SPLITS.index(split), STAIRCASE + TASKS.index(task), number]
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
    level, f0, seconds = rng.uniform(40, 90), rng.uniform(200, 1000), rng.uniform(1, 4)
    low = Sound(level, float(np.exp(rng.uniform(np.log(150), np.log(1500)))) if task == "pitch" else f0, seconds)
    high = {"loudness": Sound(level + gap, low.f0, seconds), "pitch": Sound(level, low.f0 * 2 ** (gap / 12), seconds),
            "duration": Sound(level, low.f0, seconds * (1 + gap))}[task]
    return posed_pair(rng, task, "adaptive", f"adaptive_{FIRST_ID + TASKS.index(task)}_{number + 1}", low, high)
