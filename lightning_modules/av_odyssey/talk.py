"""The small model in conversation: what it hears in questions, and its replies."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from datamodules.av_questions import Audio, Question
from datamodules.av_tasks import SPATIAL
from lightning_modules.av_odyssey.adapter import MONO, Check, Reply
from lightning_modules.av_odyssey.checks import loudness_is_kept
from lightning_modules.av_odyssey.hearing import Encoder, Frames, frames_of, mel_filters
from lightning_modules.av_odyssey.small import SmallModel
from lightning_modules.av_odyssey.words import padded, prompt_of, text_of

TOGETHER = 64  # questions that are heard at a time


@torch.no_grad()
def heard(encoder: Encoder, questions: Sequence[Question], filters: Tensor, device: torch.device) -> Tensor:
    """Return the vectors of each question's sounds, (N, K, 2 width), zeros where a question has fewer than K."""
    sounds = [[medium for medium in question.media.values() if isinstance(medium, Audio)] for question in questions]
    frames = frames_of([sound for own in sounds for sound in own], filters)
    vectors = encoder(Frames(frames.values.to(device), frames.lengths.to(device)))
    counts = [len(own) for own in sounds]
    rows = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    places = torch.cat([torch.arange(count) for count in counts])
    return vectors.new_zeros(len(questions), max(counts), vectors.shape[1]).index_put((rows.to(device), places.to(device)), vectors)


def vectors_of(encoder: Encoder, questions: Sequence[Question], filters: Tensor, device: torch.device) -> np.ndarray:
    """Hear all questions of one or two sounds, (N, 2, 2 width) float32."""
    found = np.zeros((len(questions), 2, 2 * encoder.read.in_features // 2), np.float32)
    for start in range(0, len(questions), TOGETHER):
        some = heard(encoder, [questions[index] for index in range(start, min(start + TOGETHER, len(questions)))], filters, device)
        found[start : start + len(some), : some.shape[1]] = some.cpu().numpy()
    return found


class SmallAdapter:
    """The small model behind the contract of adapters; it hears in mono, and levels as they are."""

    cannot: Mapping[str, str] = dict.fromkeys(SPATIAL, MONO)
    together: int | None = None

    def __init__(self, model: SmallModel, device: torch.device) -> None:
        self.model, self.device, self.filters = model, device, mel_filters()
        content = hashlib.sha256()
        for name, value in sorted(model.state_dict().items()):
            content.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        self.identity = f"small {content.hexdigest()}"

    def checks(self) -> list[Check]:
        """Check that the front end keeps loudness."""
        return [loudness_is_kept(lambda audio: frames_of([audio], self.filters).values.numpy())]

    def replies(self, questions: Sequence[Question]) -> list[Reply]:
        """Reply by the likeliest words."""
        clips = heard(self.model.encoder, questions, self.filters, self.device)
        prompts = padded([prompt_of(question) for question in questions], left=True).to(self.device)
        return [Reply(text_of(words)) for words in self.model.answer(prompts, clips)]
