"""Qwen2.5-Omni behind the contract of adapters: prompts with the media exactly where their tags stand, greedy replies, letters' logits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from torch import Tensor

from datamodules.av_questions import Audio, Picture, Question, Video, segments
from datamodules.av_tasks import SPATIAL
from lightning_modules.av_odyssey.adapter import MONO, Check, Reply
from lightning_modules.av_odyssey.checks import batch_equals_single, loudness_is_kept

if TYPE_CHECKING:
    from lightning_modules.av_odyssey.thinker import PicturesAndSound

OPENING = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"  # as the released template has it
CLOSING = "<|im_end|>\n<|im_start|>assistant\n"
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

    def __post_init__(self) -> None:
        for name in ("together", "new_tokens", "frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be 1 or above, not {getattr(self, name)}")


@dataclass(frozen=True)
class Shown:
    """A prompt for the processor: text with a placeholder for each medium, and the media of each kind in their order."""

    text: str
    pictures: list[np.ndarray]  # (height, width, 3) uint8
    sounds: list[np.ndarray]  # (samples,) float32 at the model's rate
    note: str = ""


class OmniAdapter:
    """The thinker; it hears in mono, its window is that of its feature extractor, and films are shown as pictures."""

    def __init__(self, model: Any, processor: "PicturesAndSound", weights: str, section: OmniSection) -> None:
        self.model, self.processor, self.weights, self.section = model, processor, weights, section
        self.together = section.together
        self.cannot: Mapping[str, str] = dict.fromkeys(SPATIAL, MONO)
        self.letters = [processor.tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "ABCD"]

    @classmethod
    def load(cls, name: str | None, section: OmniSection) -> "OmniAdapter":
        """Load the model of a folder or of the Hub, or make the tiny one."""
        from lightning_modules.av_odyssey.thinker import pretrained, tiny  # a second of imports that no other adapter needs

        return cls(*(pretrained(name) if name else tiny()), section)

    @property
    def identity(self) -> str:
        """Name weights, precision, library and what decides a reply beside them."""
        return repr(("qwen2_5_omni 1", self.weights, str(self.model.dtype), transformers.__version__, self.section))

    def checks(self) -> list[Check]:
        """Check that batches reply as single questions do, else ask one by one; and that loudness can be heard, else mark its task."""
        self.together = max(self.section.together, 2)
        batch = batch_equals_single(self._together, LIMITS.get(self.model.dtype, HALF))
        self.together = self.section.together if batch.holds else 1
        loudness = loudness_is_kept(self._features)
        if not loudness.holds:
            self.cannot = {**self.cannot, "loudness": "the model's front end gives all levels the same features"}
        return [batch, loudness]

    def replies(self, questions: Sequence[Question]) -> list[Reply]:
        """Reply greedily, `together` questions at a time."""
        found: list[Reply] = []
        for start in range(0, len(questions), self.together):
            found += self._together(questions[start: start + self.together])
        return found

    @torch.no_grad()
    def _together(self, questions: Sequence[Question]) -> list[Reply]:
        shown = [self.shown(question) for question in questions]
        given = self.given(shown).to(self.model.device)
        for name in ("pixel_values", "input_features"):
            if name in given:
                given[name] = given[name].to(self.model.dtype)
        greedy = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        made = self.model.generate(**given, **greedy, max_new_tokens=self.section.new_tokens, output_logits=True,
                                   return_dict_in_generate=True)
        written, first = made.sequences[:, given["input_ids"].shape[1]:], made.logits[0].float()
        return [self._reply(row, logits[self.letters[: len(q.options)]], one.note)
                for row, logits, q, one in zip(written, first, questions, shown, strict=True)]

    def _reply(self, tokens: Tensor, logits: Tensor, note: str) -> Reply:
        ends = {self.processor.tokenizer.eos_token_id, self.processor.tokenizer.pad_token_id}
        words = tokens.tolist()
        end = next((place for place, token in enumerate(words) if token in ends), None)
        text = self.processor.tokenizer.decode(words[:end], skip_special_tokens=True)
        return Reply(text.strip(), "truncated" if end is None else "ok", tuple(logits.tolist()), note)

    def given(self, shown: Sequence[Shown]) -> Any:
        """Turn prompts into the model's tensors, padded on the left."""
        pictures, sounds = [p for one in shown for p in one.pictures], [s for one in shown for s in one.sounds]
        return self.processor(text=[one.text for one in shown], images=pictures or None, audio=sounds or None, return_tensors="pt",
                              padding=True)

    def shown(self, question: Question) -> Shown:
        """Write a question's prompt, each medium's placeholder where its tag stands."""
        one = Shown("", [], [])
        text = "".join(self._placed(piece, one) for piece in segments(question))
        window = self.processor.feature_extractor.chunk_length
        long = [tag for tag, medium in question.media.items() if isinstance(medium, Audio) and medium.seconds > window]
        return replace(one, text=f"{OPENING}{text}{CLOSING}", note=f"heard only the first {window} s of {', '.join(long)}" if long else "")

    def _placed(self, piece: Any, one: Shown) -> str:
        p = self.processor
        if isinstance(piece, Audio):
            one.sounds.append(mono(piece, p.feature_extractor.sampling_rate))
            return f"{p.audio_bos_token}{p.audio_token}{p.audio_eos_token}"
        if isinstance(piece, Picture | Video):
            pictures = [piece.pixels] if isinstance(piece, Picture) else pictures_of(piece, self.section.frames)
            one.pictures.extend(pictures)
            return f"{p.vision_bos_token}{p.image_token}{p.vision_eos_token}" * len(pictures)
        return without_special(piece, p.tokenizer.all_special_tokens)

    def _features(self, audio: Audio) -> np.ndarray:
        extractor = self.processor.feature_extractor
        rate = extractor.sampling_rate
        found = extractor([mono(audio, rate)], sampling_rate=rate, padding="longest", return_tensors="np")
        return next(iter(found.values()))


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


def without_special(text: str, special: Sequence[str]) -> str:
    """Break up what a tokenizer would take for special tokens: a question's own words place no media and end no turn."""
    for token in special:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
