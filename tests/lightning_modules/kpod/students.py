"""Tiny students of each architecture, with random weights that differ from token to token."""

from types import SimpleNamespace

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from datamodules.collation import Form, Prompts, shared_out
from lightning_modules.kpod.generation import GenerationSection, Generator
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


QUESTIONS = [tokens(length, seed=length).tolist() for length in (9, 4, 6, 12, 5, 7, 8)]
NEW = 16  # tokens to generate at most
END = {"gpt2": 15, "llama": 25, "t5": 5}  # tokens that end some of the texts, at different places, and occur in questions


def lively(kind):
    """A student whose texts wander and end at different places: weights three times as large make it surer of different tokens."""
    model = student(kind).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2 and not any(part in name for part in ("shared", "embed", "wte", "wpe")):
                p.mul_(6)
    return model


def prompt_batches(kind, rank=0, world_size=1, batch_size=2, pad=PAD):
    layout = "seq2seq" if kind == "t5" else "causal"
    prompts = Prompts(QUESTIONS, Form(layout, END[kind], pad))
    return [prompts.__getitems__(batch) for batch in shared_out([*map(len, QUESTIONS)], batch_size, rank, world_size)]


def generator_of(kind, model, pad=PAD, **config):
    """A generator whose texts are the numbers of their tokens."""
    tokenizer = SimpleNamespace(eos_token_id=END[kind], pad_token_id=pad, decode=lambda ids, skip_special_tokens: " ".join(map(str, ids)))
    return Generator(model, tokenizer, GenerationSection(**{"max_new_tokens": NEW, **config}))


@torch.no_grad()
def likeliest(kind, model, question):
    """Reference: extend one question by the likeliest token, without padding, batches or a cache."""
    text = []
    while len(text) < NEW:
        if kind == "t5":
            question_and_end, start = torch.tensor([[*question, END[kind]]]), torch.tensor([[PAD, *text]])
            logits = model(input_ids=question_and_end, decoder_input_ids=start, use_cache=False).logits
        else:
            logits = model(input_ids=torch.tensor([[*question, *text]]), use_cache=False).logits
        token = int(logits[0, -1].argmax())
        if token == END[kind]:
            break
        text.append(token)
    return " ".join(map(str, text))
