"""The small audio-language model: an ear, a projector, and a LLaMA of about 0.8 M weights that reads a question with sounds in it.

Each clip becomes one token, projected from its vector and from what the ear reads out of it, with the place of the clip added. Readings
are scaled up: the vector alone has to be asked for small differences first, and a seed that never learns that stays at chance. Only the
words of DeafTest are known.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_modules.av_odyssey.hearing import READ, Encoder
from lightning_modules.av_odyssey.words import END, PAD, SOUND, VOCABULARY

CLIPS = 4  # most clips of a question
IGNORED = -100
READING_SCALE = 8.0  # by which readings are enlarged beside the normed vector


class SmallModel(nn.Module):
    """Ear, projector and language model."""

    def __init__(self, ear: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.encoder = Encoder(ear)
        self.norm = nn.LayerNorm(2 * ear)
        self.project = nn.Sequential(nn.Linear(2 * ear + len(READ), width), nn.GELU(), nn.Linear(width, width))
        self.place = nn.Embedding(CLIPS, width)
        self.language = LlamaForCausalLM(LlamaConfig(
            vocab_size=len(VOCABULARY), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads,
            max_position_embeddings=128, pad_token_id=PAD, eos_token_id=END, bos_token_id=None, tie_word_embeddings=False, use_cache=True))

    def embedded(self, words: Tensor, clips: Tensor) -> Tensor:
        """Return the embeddings of words (N, T), (N, T, width), the k-th SOUND of a row replaced by the k-th of its clips (N, K, 2 ear)."""
        found = self.language.get_input_embeddings()(words)
        row, column = (words == SOUND).nonzero(as_tuple=True)
        number = (words == SOUND).cumsum(1)[row, column] - 1
        clip = clips[row, number]
        sounds = self.project(torch.cat([self.norm(clip), READING_SCALE * self.encoder.read(clip)], -1)) + self.place(number)
        return found.index_put((row, column), sounds.to(found.dtype))

    def loss(self, words: Tensor, labels: Tensor, clips: Tensor) -> Tensor:
        """Return the mean cross-entropy of the words after the first that `labels` (N, T) has, IGNORED left out."""
        logits = self.language(inputs_embeds=self.embedded(words, clips), attention_mask=(words != PAD).long(), use_cache=False).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)

    @torch.no_grad()
    def answer(self, prompts: Tensor, clips: Tensor, most: int = 4) -> list[list[int]]:
        """Continue prompts (N, T), padded on the left, by the likeliest words."""
        language: Any = self.language
        return language.generate(inputs_embeds=self.embedded(prompts, clips), attention_mask=(prompts != PAD).long(), max_new_tokens=most,
                                 do_sample=False).tolist()
