"""Omni models behind the contract of adapters: prompts with the media exactly where their tags stand, greedy replies, letters' logits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import gcd
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import transformers
from torch import Tensor

from datamodules.av_questions import Audio, Picture, Question, Video, segments
from datamodules.av_tasks import SPATIAL
from lightning_modules.av_odyssey.adapter import MONO, Check, Reply
from lightning_modules.av_odyssey.checks import batch_equals_single, loudness_is_kept
from lightning_modules.av_odyssey.kinds import kind_of
from lightning_modules.av_odyssey.kinds.prompts import batch_of, full_precision
from lightning_modules.language.lora import LoraSection

if TYPE_CHECKING:
    from lightning_modules.av_odyssey.kinds.kind import OmniKind

LIMITS = {torch.float32: 1e-3, torch.float64: 1e-6}  # largest difference of logits between batch and single; in half precision:
HALF = 0.5


@dataclass(frozen=True)
class OmniSection:
    together: int = 1
    """questions in one pass. With one, a reply does not depend on what else is asked; with more, logits may differ in the last bits"""
    new_tokens: int = 64
    """most tokens of a reply; one that is cut off there is counted as truncated"""
    frames: int = 8
    """most pictures that a film is shown as, spread evenly over it"""
    train: Literal["lora", "projector"] = "lora"
    """what learns, all else held still: low-rank adapters in the language model, or the last layer of the ear, which turns what is heard
    into words' embeddings"""
    lora: LoraSection = field(default_factory=lambda: LoraSection(rank=16))
    """those adapters"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, about a third more time"""

    def __post_init__(self) -> None:
        for name in ("together", "new_tokens", "frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be 1 or above, not {getattr(self, name)}")
        if self.train == "lora" and not self.lora.rank:
            raise ValueError("lora.rank: must be 1 or above where train=lora, not 0")

    def without_effect(self) -> dict[str, str]:
        """Name what only adapters need."""
        return {"lora": "train=projector has no adapters"} if self.train == "projector" else {}


@dataclass(frozen=True)
class Shown:
    """A prompt for the processor: text with a placeholder for each medium, and the media of each kind in their order."""

    text: str
    pictures: list[np.ndarray]  # (height, width, 3) uint8
    sounds: list[np.ndarray]  # (samples,) float32 at the model's rate
    note: str = ""


class OmniAdapter:
    """A model of some kind; it hears in mono, as long as its window is, and films are shown as pictures."""

    def __init__(self, kind: "OmniKind", model: Any, processor: Any, weights: str, section: OmniSection) -> None:
        self.kind, self.model, self.processor, self.weights, self.section = kind, model, processor, weights, section
        self.together = section.together
        self.cannot: Mapping[str, str] = dict.fromkeys(SPATIAL, MONO)
        self.in_step = False  # whether processes gather each other's weights, so that all generate as many tokens
        tokenizer = processor.tokenizer
        self.letters = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "ABCD"]
        self.pad: int = tokenizer.pad_token_id
        self.filler: int = tokenizer.convert_tokens_to_ids(kind.end)  # before prompts: a pad may be zeros, whose root has no gradient
        self.special = special_tokens(tokenizer)
        ends = model.generation_config.eos_token_id or []
        self.ends = {self.filler, tokenizer.eos_token_id, *([ends] if isinstance(ends, int) else ends)}

    @classmethod
    def load(cls, kind: str, name: str | None, section: OmniSection, dtype: torch.dtype | None = None) -> "OmniAdapter":
        """Load the model of a folder or of the Hub, or make the tiny one; weights are of `dtype`, or as they were saved."""
        its = kind_of(kind)
        return cls(its, *(its.pretrained(name, dtype) if name else its.tiny(dtype=dtype)), section)

    @property
    def identity(self) -> str:
        """Name weights, precision, library and what decides a reply beside them."""
        s = self.section
        parts = self.kind.title, 2, self.weights, str(self.model.dtype), transformers.__version__, s.together, s.new_tokens, s.frames
        return repr(parts)

    def checks(self) -> list[Check]:
        """Check that batches reply as single questions do, else ask one by one; and that loudness can be heard, else mark its task."""
        self.together = max(self.section.together, 2)
        batch = batch_equals_single(self._together, LIMITS.get(self.model.dtype, HALF))
        self.together = self.section.together if batch.holds and self.kind.batches else 1
        loudness = loudness_is_kept(self._features)
        if not loudness.holds:
            self.cannot = {**self.cannot, "loudness": "the model's front end gives all levels the same features"}
        return [batch, loudness]

    def replies(self, questions: Sequence[Question]) -> list[Reply]:
        """Reply greedily, `together` questions at a time."""
        starts = range(0, len(questions), self.together)
        return [reply for start in starts for reply in self._together(questions[start: start + self.together])]

    @torch.no_grad()
    def _together(self, questions: Sequence[Question]) -> list[Reply]:
        shown = [self.shown(question) for question in questions]
        given = self.moved(self.given(shown))
        greedy = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None, "pad_token_id": self.pad,
                  "eos_token_id": sorted(self.ends)}
        self.kind.attune(self.model, given)
        made = self.model.generate(**given, **greedy, max_new_tokens=self.section.new_tokens, output_logits=True,
                                   return_dict_in_generate=True, synced_gpus=self.in_step)
        written, first = made.sequences[:, given["input_ids"].shape[1]:], made.logits[0].float()
        return [self._reply(row, logits[self.letters[: len(q.options)]], one.note)
                for row, logits, q, one in zip(written, first, questions, shown, strict=True)]

    def _reply(self, tokens: Tensor, logits: Tensor, note: str) -> Reply:
        words = tokens.tolist()
        end = next((place for place, token in enumerate(words) if token in self.ends or token == self.pad), None)
        text = self.processor.tokenizer.decode(words[:end], skip_special_tokens=True)
        return Reply(text.strip(), "truncated" if end is None else "ok", tuple(logits.tolist()), note)

    def given(self, shown: Sequence[Shown]) -> dict[str, Tensor]:
        """Turn prompts into the model's tensors by name, each by itself, and then together as `batch_of` does it; floats in float32."""
        with full_precision():  # a window of the Fourier transform in half precision would blur what is heard
            prompts = [self.kind.given(self.processor, one.text, one.pictures, one.sounds) for one in shown]
        return batch_of(prompts, self.filler)

    def moved(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move tensors to the model's device, and what it sees and hears to its type."""
        types = {name: self.model.dtype if value.is_floating_point() else value.dtype for name, value in given.items()}
        return {name: value.to(self.model.device, types[name]) for name, value in given.items()}

    def shown(self, question: Question) -> Shown:
        """Write a question's prompt, each medium's placeholder where its tag stands."""
        one = Shown("", [], [])
        text = "".join(self._placed(piece, one) for piece in segments(question))
        window = self.kind.window(self.processor)
        long = [tag for tag, medium in question.media.items() if isinstance(medium, Audio) and medium.seconds > window]
        note = f"heard only the first {window:g} s of {', '.join(long)}" if long else ""
        return replace(one, text=f"{self.kind.opening}{text}{self.kind.closing}", note=note)

    def _placed(self, piece: Any, one: Shown) -> str:
        if isinstance(piece, str):
            return without_special(piece, self.special)
        if isinstance(piece, Audio):
            one.sounds.append(mono(piece, self.kind.extractor(self.processor).sampling_rate))
            return self._placeholder(self.kind.sound)
        pictures = [piece.pixels] if isinstance(piece, Picture) else pictures_of(piece, self.section.frames)
        one.pictures.extend(pictures)
        return self._placeholder(self.kind.picture) * len(pictures)

    def _placeholder(self, names: Sequence[str]) -> str:
        return "".join(getattr(self.processor, name) for name in names)

    def _features(self, audio: Audio) -> np.ndarray:
        extractor = self.kind.extractor(self.processor)
        rate = extractor.sampling_rate
        with full_precision():
            found = extractor([mono(audio, rate)], sampling_rate=rate, padding="longest", return_tensors="np")
        return np.asarray(next(iter(found.values())))


def mono(audio: Audio, rate: int) -> np.ndarray:
    """Return the mean over channels at `rate` Hz, (samples,) float32, its level as it was."""
    samples = audio.samples.mean(0)
    if audio.rate != rate:
        from scipy.signal import resample_poly

        common = gcd(audio.rate, rate)
        samples = resample_poly(samples, rate // common, audio.rate // common)
    return samples.astype(np.float32)


def pictures_of(video: Video, most: int) -> list[np.ndarray]:
    """Take at most `most` frames, spread evenly from the first to the last."""
    count = len(video.frames)
    return [video.frames[place] for place in np.linspace(0, count - 1, min(count, most)).round().astype(int)]


def special_tokens(tokenizer: Any) -> list[str]:
    """List a tokenizer's special tokens, the longest first, with those that are marked as such but have no name."""
    marked = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(marked | set(tokenizer.all_special_tokens), key=lambda token: (-len(token), token))


def without_special(text: str, special: Sequence[str]) -> str:
    """Break up what a tokenizer would take for special tokens: a question's own words place no media and end no turn."""
    for token in special:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
