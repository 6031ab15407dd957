"""Tiny students of each architecture, with random weights that differ from token to token."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_modules.language.llama import new_llama
from lightning_modules.language.t5 import new_t5

VOCABULARY, PAD, EOS = 31, 0, 1


def student(kind, seed=0):
    torch.manual_seed(seed)
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=48, n_embd=32, n_layer=2, n_head=4, bos_token_id=None,
                                          eos_token_id=EOS, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
    if kind == "t5":
        return new_t5("debug", VOCABULARY, EOS, PAD)
    return new_llama("debug", VOCABULARY, 48, EOS)


def tokens(*shape, seed=0):
    """Random tokens that are neither padding nor the end of a text."""
    return torch.randint(2, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))
