"""Small questions of all tasks and all five mixes of media, made on the spot: count the sounds, the dots or the flashes.

They have the shape of the benchmark's (ids, tags, ordinal options, four channels where the cue is spatial) and can be answered, so that
the whole path runs where no data are.
"""

from collections.abc import Callable

import numpy as np

from datamodules.av_questions import LETTERS, Audio, MadeQuestions, Medium, Picture, Question, Video
from datamodules.av_tasks import MATCHING, MIX_OF_TASK, SPATIAL, TASKS

RATE = 16_000  # Hz
SIDE = 32  # pixels of a picture's side
COUNTS = 6  # sounds, dots or flashes: 1 to COUNTS
ORDINALS = ("first", "second", "third", "fourth")


class SyntheticQuestions(MadeQuestions):
    """`each` questions of every task, in an order that goes through the tasks; question `i` depends on the seed and `i` alone."""

    def __init__(self, seed: int, each: int) -> None:
        self.seed, self.each = seed, each

    def __len__(self) -> int:
        return self.each * len(TASKS)

    def made(self, index: int) -> Question:
        """Make question `index`."""
        number, task_id = index // len(TASKS) + 1, index % len(TASKS) + 1
        return synthetic(task_id, number, np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, task_id, number]))))


def synthetic(task_id: int, number: int, rng: np.random.Generator) -> Question:
    """Make question `number` of a task, in one of its mixes."""
    task = TASKS[task_id]
    mix = MIX_OF_TASK.get(task_id) or MATCHING[number % 2]
    many_pictures, many_sounds = mix.startswith("4"), mix.endswith("4 audio")
    seen = "video" if "video" in mix else "img"
    channels = 4 if task.name in SPATIAL else 1
    show, sound = (_flashes if seen == "video" else _dots), (lambda count: _beeps(count, rng, channels))
    if many_pictures or many_sounds:
        text, options, right, media, counts = _which(seen, many_pictures, show, sound, rng)
    else:
        text, options, right, media, counts = _difference(seen, show, sound, rng)
    return Question(f"{task_id}_{number}", task.name, task_id, task.attribute, text, options, LETTERS[right], media, {"counts": counts})


Made = tuple[str, tuple[str, ...], int, dict[str, Medium], dict[str, int]]


def _which(seen: str, many_pictures: bool, show: Callable[[int], Medium], sound: Callable[[int], Medium], rng: np.random.Generator) -> Made:
    """Ask which of four media has the count of the one of the other kind; the ordinals are shuffled against the media."""
    counts = rng.permutation(np.arange(1, COUNTS + 1))[:4].tolist()
    right = int(rng.integers(4))
    order = rng.permutation(4).tolist()
    many, one = (seen, "audio") if many_pictures else ("audio", seen)
    make = {seen: show, "audio": sound}
    media = {f"{many}{place}": make[many](count) for place, count in enumerate(counts, start=1)} | {f"{one}1": make[one](counts[right])}
    listed = ", ".join(f"[{many}{place}]" for place in (1, 2, 3, 4))
    word = {"img": "image", "audio": "audio", "video": "video"}
    text = (f"Hear [audio1]. Which image has as many dots as there are sounds: {listed}?" if many_pictures else
            f"See [{one}1]. Which audio has as many sounds as it has {'flashes' if seen == 'video' else 'dots'}: {listed}?")
    options = tuple(f"the {ORDINALS[place]} {word[many]}" for place in order)
    facts = {f"{many}{place}": count for place, count in enumerate(counts, start=1)} | {f"{one}1": counts[right]}
    return text, options, order.index(right), media, facts


def _difference(seen: str, show: Callable[[int], Medium], sound: Callable[[int], Medium], rng: np.random.Generator) -> Made:
    """Ask how many sounds, and dots or flashes, there are together."""
    visible, audible = (int(count) for count in rng.integers(1, COUNTS + 1, size=2))
    others = [count for count in range(2, 2 * COUNTS + 1) if count != visible + audible]
    options = [visible + audible, *rng.permutation(others)[:3].tolist()]
    order = rng.permutation(4).tolist()
    media = {f"{seen}1": show(visible), "audio1": sound(audible)}
    text = f"How many {'flashes' if seen == 'video' else 'dots'} of [{seen}1] and sounds of [audio1] are there together?"
    return text, tuple(str(options[place]) for place in order), order.index(0), media, {f"{seen}1": visible, "audio1": audible}


def _beeps(count: int, rng: np.random.Generator, channels: int) -> Audio:
    """Sound `count` tones of 60 ms with 60 ms between; over several channels, louder on one."""
    t = np.arange(int(0.06 * RATE)) / RATE
    tone = np.sin(2 * np.pi * rng.uniform(300, 1000) * t) * np.sin(np.pi * t / t[-1]) ** 2
    samples = np.concatenate([np.zeros_like(t), *[np.concatenate([tone, np.zeros_like(t)]) for _ in range(count)]])
    gains = 10 ** (rng.uniform(-30, -10, size=(channels, 1)) / 20)
    return Audio((gains * samples).astype(np.float32), RATE)


def _dots(count: int) -> Picture:
    """Draw `count` bright squares on black, in rows of three."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    for place in range(count):
        top, left = 4 + 14 * (place // 3), 3 + 10 * (place % 3)
        pixels[top: top + 8, left: left + 6] = 230
    return Picture(pixels)


def _flashes(count: int) -> Video:
    """Show `count` white frames, a black one before and after each."""
    frames = np.zeros((2 * COUNTS + 1, SIDE, SIDE, 3), np.uint8)
    frames[1: 2 * count: 2] = 255
    return Video(frames, 8.0)
