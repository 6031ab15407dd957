"""A question about sounds and pictures, whatever it was read from, and its prompt with the media where their tags stand."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from datamodules.rows import DataError

Kind = Literal["audio", "img", "video"]
LETTERS = "ABCD"
SUFFIX = "Answer with the option's letter from the given choices directly."
TAG = re.compile(r"\[((?:img|audio|video)[0-9]+)\]")


@dataclass(frozen=True)
class Audio:
    """A sound at its own level: samples (channels, time) float32, full scale 1; rate in Hz."""

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.samples.shape[-1] / self.rate


@dataclass(frozen=True)
class Picture:
    """An image: pixels (height, width, 3) uint8."""

    pixels: np.ndarray


@dataclass(frozen=True)
class Video:
    """A film without its sound: frames (frames, height, width, 3) uint8; rate in frames a second."""

    frames: np.ndarray
    rate: float


Medium: TypeAlias = Audio | Picture | Video


@dataclass(frozen=True)
class Question:
    """A multiple-choice question; `media` is by tag (img1, audio1, video1) and may read each medium when it is asked for.

    `truth` is exact for generated items, such as f0 in Hz and levels in dBFS, and empty for others.
    """

    id: str
    task: str
    task_id: int
    attribute: str
    text: str  # with tags such as [audio1] in place
    options: tuple[str, ...]  # bare, without letters
    answer: str  # a letter
    media: Mapping[str, Medium]
    truth: Mapping[str, Any] = field(default_factory=dict)

    @property
    def letters(self) -> str:
        """The letters that may be answered."""
        return LETTERS[: len(self.options)]

    @property
    def mix(self) -> str:
        """Name what a model is shown, as in "4 img + 1 audio"."""
        return mix_of(self.media)


class MadeQuestions(Sequence[Question]):
    """Questions that are made when they are asked for, each by its number alone; a set of them says how, and how many."""

    def made(self, number: int) -> Question:
        """Make question `number`, counted from 0."""
        raise NotImplementedError

    def __getitem__(self, index):  # noqa: ANN001, ANN204
        """Make question `index`, or those of a slice."""
        if isinstance(index, slice):
            return [self.made(number) for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.made(index)


def mix_of(tags: Mapping[str, Any]) -> str:
    """Name a mix of media by their tags, as in "4 img + 1 audio"."""
    counts = {kind: sum(tag.startswith(kind) for tag in tags) for kind in ("img", "video", "audio")}
    return " + ".join(f"{count} {kind}" for kind, count in counts.items() if count)


def kind_of(tag: str) -> Kind:
    """Tell a medium's kind by its tag."""
    return "audio" if tag.startswith("audio") else "img" if tag.startswith("img") else "video"


def prompt_text(question: Question) -> str:
    """Write the prompt with its tags: question, options behind A: to D:, and the benchmark's sentence, each on its line."""
    options = [f"{letter}:{option}" for letter, option in zip(question.letters, question.options, strict=True)]
    return "\n".join([question.text, *options, SUFFIX])


def tags_in(text: str) -> list[str]:
    """List the tags of a text in their order; one that stands twice comes twice."""
    return TAG.findall(text)


def check_tags(question: Question) -> None:
    """Raise DataError for a tag without a medium, or for a medium that no tag shows."""
    tags = tags_in(prompt_text(question))
    for tag in tags:
        if tag not in question.media:
            raise DataError(f"question {question.id}: shows [{tag}] but has no such medium; it has {', '.join(question.media) or 'none'}")
    for tag in question.media:
        if tag not in tags:
            raise DataError(f"question {question.id}: has the medium {tag} but its text never shows [{tag}]")


def segments(question: Question) -> list[str | Medium]:
    """Cut the prompt at its tags and put the media there; a tag that stands twice shows its medium twice. DataError as `check_tags`."""
    check_tags(question)
    pieces = TAG.split(prompt_text(question))  # text, tag, text, tag, ..., text
    return [question.media[piece] if place % 2 else piece for place, piece in enumerate(pieces) if place % 2 or piece]
