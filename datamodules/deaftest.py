"""DeafTest made on the spot: four questions that anyone who hears can answer, after AV-Odyssey Bench (arXiv 2412.02611).

How many sounds; which of two is louder, higher, longer. Every item is drawn by a counter-based generator (Philox) from the seed, the split,
the task and its number alone, so that any process makes any item, and splits never meet. Levels are nominal decibels, of which 100 are full
scale; nothing is normalised, and nothing clips but in the profile that imitates the published files.

    paper         the paper's ranges; those of the two sounds never overlap, so that one sound alone gives most answers away
    paper_clipped the same with full scale at 60 dB and hard clipping, as in the published loud examples
    hard          overlapping ranges and small gaps, which only a comparison answers
    mixed         paper and hard in turns
    varied        hard, noise, timbre and confound in turns, each behind one from paper, whose clear differences are learnt first
    noise         hard, in white or pink noise, one for both sounds, 30 to 40 dB below the peak of the softer one
    timbre        hard, with harmonic tones, and in the tasks that ask no pitch noise bands or clicks, in place of sines
    confound      hard, with a second difference that points the other way: the louder sound is lower, the higher softer, the longer softer
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from datamodules.av_plan import TOKENS_A_SECOND
from datamodules.av_questions import LETTERS, Audio, MadeQuestions, Question

Profile = Literal["paper", "paper_clipped", "hard", "mixed", "varied", "noise", "timbre", "confound"]
Control = Literal["none", "silent", "shuffled", "single_clip", "swapped"]
Split = Literal["train", "valid", "test"]

RATE = 16_000  # Hz
RAMP = 0.01  # seconds of a raised cosine at both ends
FULL = 100.0  # nominal dB of full scale
TASKS = ("count", "loudness", "pitch", "duration")
CLICKS, DECAY = 60, 0.002  # clicks a second, and the seconds in which one falls to 1 / e
FIRST_ID = 27  # DeafTest's task numbers go on where AV-Odyssey's end
SPLITS = ("train", "valid", "test")
TURNS: Mapping[str, tuple[Any, ...]] = {"mixed": ("paper", "hard"),
                                      "varied": ("paper", "hard", "paper", "noise", "paper", "timbre", "paper", "confound")}
WORDS = {"loudness": "louder", "pitch": "higher in pitch", "duration": "longer"}


@dataclass(frozen=True)
class Sound:
    """What one clip is made of; `tones` of `seconds` each, with `gaps` behind them and `lead` before the first."""

    level: float  # nominal dB of the peak
    f0: float  # Hz
    seconds: float
    count: int = 1
    gap: float = 0.0
    lead: float = 0.0
    kind: Literal["sine", "harmonic", "band", "click"] = "sine"

    @property
    def total(self) -> float:
        """Seconds from the first sample to the last."""
        return self.lead + self.count * self.seconds + (self.count - 1) * self.gap

    @property
    def onsets(self) -> list[float]:
        """Seconds at which its tones begin."""
        return [self.lead + number * (self.seconds + self.gap) for number in range(self.count)]


@dataclass(frozen=True)
class Rendered(Mapping[str, Audio]):
    """Sounds by tag, each rendered when it is asked for; those of one question have one phase and, where it is made of noise, one noise."""

    sounds: Mapping[str, Sound]
    seed: int
    full: float = FULL
    noise: float | None = None  # nominal dB of its root mean square; None: no noise

    def __getitem__(self, tag: str) -> Audio:
        return Audio(rendered(self.sounds[tag], np.random.default_rng(self.seed), self.full, self.noise)[None], RATE)

    def __iter__(self) -> Iterator[str]:
        return iter(self.sounds)

    def __len__(self) -> int:
        return len(self.sounds)

    @property
    def digests(self) -> dict[str, str]:
        """Name each sound by all that it is rendered from."""
        return {tag: repr((sound, self.seed, self.full, self.noise)) for tag, sound in self.sounds.items()}

    @property
    def tokens(self) -> dict[str, float]:
        """Estimate what each sound costs a model."""
        return {tag: sound.total * TOKENS_A_SECOND for tag, sound in self.sounds.items()}


class DeafTest(MadeQuestions):
    """`each` questions of every task, task after task in turns; question i depends on seed, split and i alone."""

    def __init__(self, seed: int, split: Split, each: int, profile: Profile = "hard", control: Control = "none") -> None:
        self.seed, self.split, self.each, self.profile, self.control = seed, split, each, profile, control

    def __len__(self) -> int:
        return self.each * len(TASKS)

    def made(self, index: int) -> Question:
        """Make question `index`."""
        number, task = index // len(TASKS), TASKS[index % len(TASKS)]
        question = make(self.generator(task, number), task, self._profile(number), f"{FIRST_ID + TASKS.index(task)}_{number + 1}")
        return controlled(question, self.control, lambda: self.generator(task, number + self.each))

    @property
    def name(self) -> str:
        """Tell this set from any other."""
        return f"deaftest {self.seed} {self.split} {self.each} {self.profile} {self.control}"

    def generator(self, task: str, number: int) -> np.random.Generator:
        """Return the random numbers of one item."""
        words = [self.seed, SPLITS.index(self.split), TASKS.index(task), number]
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))

    def _profile(self, number: int) -> Profile:
        turns = TURNS.get(self.profile, (self.profile,))
        return turns[number % len(turns)]


def make(rng: np.random.Generator, task: str, profile: Profile, name: str) -> Question:
    """Draw one question of a task."""
    if task == "count":
        sounds, options, right = _count(rng, profile)
        return posed(rng, task, profile, name, "How many sounds are there in [audio1]?", sounds, options, right)
    return posed_pair(rng, task, profile, name, *PAIRS[task](rng, profile))


def posed_pair(rng: np.random.Generator, task: str, profile: str, name: str, low: Sound, high: Sound) -> Question:
    """Ask which of two sounds has more of something, in random order."""
    sounds, right = ([low, high], 1) if rng.random() < 0.5 else ([high, low], 0)
    text = f"Listen to [audio1] and [audio2]. Which audio is {WORDS[task]}?"
    return posed(rng, task, profile, name, text, sounds, ("the first audio", "the second audio"), right)


def posed(rng: np.random.Generator, task: str, profile: str, name: str, text: str, sounds: Sequence[Sound], options: tuple[str, str],
          right: int) -> Question:
    """Ask a question about sounds, its options in random order."""
    if rng.random() < 0.5:
        options, right = options[::-1], 1 - right
    full = 60.0 if profile == "paper_clipped" else FULL
    noise = min(sound.level for sound in sounds) - rng.uniform(30, 40) if profile == "noise" else None
    media = Rendered({f"audio{place}": sound for place, sound in enumerate(sounds, 1)}, int(rng.integers(2**32)), full, noise)
    truth = {tag: vars(sound) | {"clipped": sound.level > full, "peak_dbfs": min(sound.level - full, 0.0), "onsets": sound.onsets}
             for tag, sound in media.sounds.items()} | {"profile": profile}
    return Question(name, task, FIRST_ID + TASKS.index(task), f"DeafTest {profile}", text, options, LETTERS[right], media, truth)


def _count(rng: np.random.Generator, profile: Profile) -> tuple[list[Sound], tuple[str, str], int]:
    """Draw a sound of 3 to 8 tones, and the wrong number beside the right one."""
    count = int(rng.integers(3, 9))
    sound = Sound(rng.uniform(55, 85), rng.uniform(200, 1000), rng.uniform(0.12, 0.30), count, rng.uniform(0.12, 0.40),
                  rng.uniform(0.05, 0.30), _kind(rng, profile, "count"))
    others = [n for n in range(3, 9) if n != count and (profile in ("paper", "paper_clipped") or abs(n - count) == 1)]
    return [sound], (str(count), str(rng.choice(others))), 0


def _kind(rng: np.random.Generator, profile: Profile, task: str) -> Any:
    if profile != "timbre":
        return "sine"
    return str(rng.choice(["harmonic"] if task == "pitch" else ["harmonic", "band", "click"]))


def _loudness(rng: np.random.Generator, profile: Profile) -> tuple[Sound, Sound]:
    f0, seconds, kind = rng.uniform(200, 1000), rng.uniform(1, 4), _kind(rng, profile, "loudness")
    if profile in ("paper", "paper_clipped"):
        low, high = rng.uniform(30, 60), rng.uniform(70, 100)
    else:
        low = rng.uniform(40, 90)
        high = low + _log_uniform(rng, 1, 8)
    lower = f0 / _log_uniform(rng, 1.2, 1.6) if profile == "confound" else f0
    return Sound(low, f0, seconds, kind=kind), Sound(high, lower, seconds, kind=kind)


def _pitch(rng: np.random.Generator, profile: Profile) -> tuple[Sound, Sound]:
    level, seconds, kind = rng.uniform(55, 85), rng.uniform(1, 4), _kind(rng, profile, "pitch")
    if profile in ("paper", "paper_clipped"):
        low, high = rng.uniform(100, 500), rng.uniform(1000, 2000)
    else:
        low = _log_uniform(rng, 150, 1500)
        high = low * 2 ** (_log_uniform(rng, 0.5, 6) / 12)
    softer = level - rng.uniform(3, 10) if profile == "confound" else level
    return Sound(level, low, seconds, kind=kind), Sound(softer, high, seconds, kind=kind)


def _duration(rng: np.random.Generator, profile: Profile) -> tuple[Sound, Sound]:
    level, f0, kind = rng.uniform(55, 85), rng.uniform(200, 1000), _kind(rng, profile, "duration")
    if profile in ("paper", "paper_clipped"):
        low, high = rng.uniform(1, 3), rng.uniform(4, 6)
    else:
        low = rng.uniform(1, 4.5)
        high = min(low * _log_uniform(rng, 1.1, 1.5), 6.0)
    softer = level - rng.uniform(3, 10) if profile == "confound" else level
    return Sound(level, f0, low, kind=kind), Sound(softer, f0, high, kind=kind)


PAIRS: Mapping[str, Callable[[np.random.Generator, Profile], tuple[Sound, Sound]]] = {
    "loudness": _loudness, "pitch": _pitch, "duration": _duration}


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def rendered(sound: Sound, rng: np.random.Generator, full: float = FULL, noise: float | None = None) -> np.ndarray:
    """Render a sound, in noise of so many nominal dB if any: (time,) float32, full scale 1 at `full` nominal dB; what is louder clips."""
    tone = _tone(sound, rng) * 10 ** ((sound.level - full) / 20)
    samples = np.zeros(round(sound.total * RATE), np.float32)
    for onset in sound.onsets:
        start = min(round(onset * RATE), len(samples) - len(tone))
        samples[start : start + len(tone)] += tone
    if noise is not None:
        samples += _noise(len(samples), rng) * 10 ** ((noise - full) / 20)
    return np.clip(samples, -1, 1).astype(np.float32)


def _tone(sound: Sound, rng: np.random.Generator) -> np.ndarray:
    """Make one tone with a peak of 1 and a random phase."""
    t = np.arange(round(sound.seconds * RATE), dtype=np.float32) / RATE
    phase = rng.uniform(0, 2 * np.pi)
    if sound.kind == "band":
        wave = _band(sound.f0, len(t), rng)
    elif sound.kind == "click":
        since = np.mod(t + phase / (2 * np.pi * CLICKS), 1 / CLICKS)
        wave = np.sin(2 * np.pi * sound.f0 * since) * np.exp(-since / DECAY)
    else:
        overtones = range(1, 6 if sound.kind == "harmonic" else 2)
        parts = [np.sin(2 * np.pi * k * sound.f0 * t + phase * k) / k for k in overtones if k * sound.f0 < RATE / 2]
        wave = np.sum(parts, axis=0)
    wave = wave / np.abs(wave).max()
    ramp = 0.5 - 0.5 * np.cos(np.pi * np.arange(round(RAMP * RATE)) / round(RAMP * RATE))
    wave[: len(ramp)] *= ramp
    wave[-len(ramp) :] *= ramp[::-1]
    return wave


def _band(centre: float, length: int, rng: np.random.Generator) -> np.ndarray:
    """Make noise of a third of an octave around a frequency."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    frequency = np.fft.rfftfreq(length, 1 / RATE)
    spectrum[(frequency < centre * 2 ** (-1 / 6)) | (frequency > centre * 2 ** (1 / 6))] = 0
    return np.fft.irfft(spectrum, length)


def _noise(length: int, rng: np.random.Generator) -> np.ndarray:
    """Make white or pink noise with a root mean square of 1."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    if rng.random() < 0.5:
        spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    noise = np.fft.irfft(spectrum, length)
    return noise / np.sqrt(np.mean(noise**2))


def controlled(question: Question, control: Control, another: Callable[[], np.random.Generator]) -> Question:
    """Take away what the answer needs: sound, the right sounds, the second of two; or exchange the two, which turns the answer round."""
    if control == "none":
        return question
    media: dict[str, Any] = dict(question.media)
    if control == "silent":
        media = {tag: Audio(np.zeros((1, RATE), np.float32), RATE) for tag in media}  # one second each: lengths tell something, too
    elif control == "shuffled":
        media = dict(make(another(), question.task, question.truth["profile"], question.id).media)
    elif control == "single_clip" and len(media) > 1:
        media["audio2"] = media["audio1"]
    elif control == "swapped" and len(media) > 1:
        media["audio1"], media["audio2"] = media["audio2"], media["audio1"]
    return Question(question.id, question.task, question.task_id, question.attribute, question.text, question.options, question.answer,
                    media, question.truth)
