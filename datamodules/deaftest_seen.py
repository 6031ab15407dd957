"""DeafTest with pictures: which image fits the sound, and which of four sounds fits the image; made on the spot like DeafTest itself.

As many dots as there are sounds, a bar as long as the sound lasts, a mark as high as its pitch. Questions have the shape of AV-Odyssey's
(tags, ordinal options that are shuffled against the media, four letters), and can be answered by anyone who hears and sees.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from datamodules.av_plan import PIXELS_A_TOKEN, TOKENS_A_SECOND
from datamodules.av_questions import LETTERS, Audio, MadeQuestions, Medium, Picture, Question
from datamodules.av_synthetic import ORDINALS
from datamodules.deaftest import RATE, SPLITS, Sound, Split, rendered

SeenProfile = Literal["paper", "hard"]
TASKS = ("seen_count", "seen_duration", "seen_pitch")
FIRST_ID = 31  # task numbers go on where DeafTest's end
SIDE = 160  # pixels of a picture's side
SECOND = 25  # pixels of a bar for each second
LOWEST, OCTAVE = 100.0, 32  # Hz of the lower edge, and pixels of an octave
WORDS = {
    "seen_count": "has as many dots as {audio} has sounds",
    "seen_duration": "has a bar as long as {audio} lasts, if its grey lines are seconds",
    "seen_pitch": "has its mark as high as the pitch of {audio}, if its grey lines are 100, 200, 400, 800 and 1600 Hz from below",
}
TURNED = {
    "seen_count": "has as many sounds as {image} has dots",
    "seen_duration": "lasts as long as the bar of {image}, if its grey lines are seconds",
    "seen_pitch": "has the pitch that the mark of {image} stands at, if its grey lines are 100, 200, 400, 800 and 1600 Hz from below",
}


@dataclass(frozen=True)
class Drawing:
    """A picture of a number: dots, seconds or Hz."""

    task: str
    value: float


@dataclass(frozen=True)
class Made(Mapping[str, Medium]):
    """Media by tag, each rendered or drawn when it is asked for."""

    plans: Mapping[str, Sound | Drawing]
    seed: int

    def __getitem__(self, tag: str) -> Medium:
        plan = self.plans[tag]
        if isinstance(plan, Drawing):
            return Picture(drawn(plan))
        return Audio(rendered(plan, np.random.default_rng(self.seed))[None], RATE)

    def __iter__(self) -> Iterator[str]:
        return iter(self.plans)

    def __len__(self) -> int:
        return len(self.plans)

    @property
    def digests(self) -> dict[str, str]:
        """Name each medium by all that it is made from."""
        return {tag: repr((plan, self.seed)) for tag, plan in self.plans.items()}

    @property
    def tokens(self) -> dict[str, float]:
        """Estimate what each medium costs a model."""
        return {tag: SIDE * SIDE / PIXELS_A_TOKEN if isinstance(plan, Drawing) else plan.total * TOKENS_A_SECOND
                for tag, plan in self.plans.items()}


class SeenDeafTest(MadeQuestions):
    """`each` questions of every task, tasks and both forms in turns; question i depends on seed, split, profile and i alone."""

    def __init__(self, seed: int, split: Split, each: int, profile: SeenProfile = "paper") -> None:
        self.seed, self.split, self.each, self.profile = seed, split, each, profile

    def __len__(self) -> int:
        return self.each * len(TASKS)

    def made(self, index: int) -> Question:
        """Make question `index`."""
        number, place = index // len(TASKS), index % len(TASKS)
        words = [self.seed, SPLITS.index(self.split), FIRST_ID + place, number, int(self.profile == "hard")]
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
        return make_seen(rng, TASKS[place], self.profile, number % 2 == 1, f"{FIRST_ID + place}_{number + 1}")

    @property
    def name(self) -> str:
        """Tell this set from any other."""
        return f"deaftest seen {self.seed} {self.split} {self.each} {self.profile}"


def make_seen(rng: np.random.Generator, task: str, profile: SeenProfile, turned: bool, name: str) -> Question:
    """Draw one question: four images and a sound, or, `turned`, an image and four sounds."""
    values = rng.permutation(np.array(VALUES[task](rng, profile), float)).tolist()
    right, order = int(rng.integers(4)), rng.permutation(4).tolist()
    sounds: Sequence[Sound | Drawing] = _sounds(rng, task, values)
    pictures: Sequence[Sound | Drawing] = [Drawing(task, value) for value in values]
    many, one = ("audio", "img") if turned else ("img", "audio")
    plans: dict[str, Sound | Drawing] = {f"{one}1": pictures[right] if turned else sounds[right]}
    plans |= {f"{many}{place}": plan for place, plan in enumerate(sounds if turned else pictures, start=1)}
    listed = ", ".join(f"[{many}{place}]" for place in (1, 2, 3, 4))
    text = (f"See [img1]. Which audio {TURNED[task].format(image='[img1]')}: {listed}?" if turned else
            f"Hear [audio1]. Which image {WORDS[task].format(audio='[audio1]')}: {listed}?")
    options = tuple(f"the {ORDINALS[place]} {'audio' if turned else 'image'}" for place in order)
    truth = {f"{many}{place}": value for place, value in enumerate(values, start=1)} | {f"{one}1": values[right], "profile": profile}
    task_id = FIRST_ID + TASKS.index(task)
    return Question(name, task, task_id, f"DeafTest {profile}", text, options, LETTERS[order.index(right)],
                    Made(plans, int(rng.integers(2**32))), truth)


def _counts(rng: np.random.Generator, profile: SeenProfile) -> list[float]:
    """Draw four numbers of 3 to 8: any for paper, one beside the other for hard."""
    if profile == "hard":
        return [*range(first := int(rng.integers(3, 6)), first + 4)]
    return rng.choice(np.arange(3, 9), 4, replace=False).tolist()


def _durations(rng: np.random.Generator, profile: SeenProfile) -> list[float]:
    """Draw four lengths in seconds, equally far apart."""
    step = rng.uniform(0.25, 0.4) if profile == "hard" else rng.uniform(1.0, 1.5)
    first = rng.uniform(0.5, 6 - 3 * step)
    return [first + step * place for place in range(4)]


def _pitches(rng: np.random.Generator, profile: SeenProfile) -> list[float]:
    """Draw four frequencies in Hz, equally many semitones apart."""
    step = rng.uniform(1.5, 3) if profile == "hard" else rng.uniform(6, 10)
    first = 150 * (2000 / 150 / 2 ** (3 * step / 12)) ** rng.random()
    return [first * 2 ** (step * place / 12) for place in range(4)]


VALUES = {"seen_count": _counts, "seen_duration": _durations, "seen_pitch": _pitches}


def _sounds(rng: np.random.Generator, task: str, values: Sequence[float]) -> list[Sound]:
    """Make a sound of each value; all else is the same in all four."""
    level, f0, seconds = rng.uniform(60, 85), rng.uniform(200, 1000), rng.uniform(1, 3)
    tone, gap = rng.uniform(0.12, 0.30), rng.uniform(0.12, 0.40)
    if task == "seen_count":
        return [Sound(level, f0, tone, int(value), gap, 0.1) for value in values]
    if task == "seen_duration":
        return [Sound(level, f0, value) for value in values]
    return [Sound(level, value, seconds) for value in values]


def drawn(drawing: Drawing) -> np.ndarray:
    """Draw a number, white on black with grey lines: (SIDE, SIDE, 3) uint8."""
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    if drawing.task == "seen_count":
        for place in range(int(drawing.value)):
            top, left = 20 + 48 * (place // 3), 20 + 48 * (place % 3)
            pixels[top: top + 24, left: left + 24] = 255
    elif drawing.task == "seen_duration":
        pixels[:, ::SECOND] = 90
        pixels[70:90, : round(drawing.value * SECOND)] = 255
    else:
        pixels[SIDE - 1:: -OCTAVE] = 90
        row = SIDE - 1 - round(OCTAVE * float(np.log2(drawing.value / LOWEST)))
        pixels[max(row - 1, 0): row + 2, 60:100] = 255
    return np.repeat(pixels[..., None], 3, axis=2)
