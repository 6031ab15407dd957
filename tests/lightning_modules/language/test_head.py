"""Logits at chosen places are those of the whole forward, and so are the gradients."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_modules.language.head import logits_only_at
from lightning_modules.language.llama import new_llama
from lightning_modules.language.lora import LoraSection, add_lora
from lightning_modules.language.t5 import new_t5

SEQ2SEQ = {"decoder_input_ids": torch.tensor([[0, 5, 6], [0, 7, 8]])}


def made(kind):
    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=8))
    if kind == "t5":
        return new_t5("debug", 50, 1, 0)
    model = new_llama("debug", 50, 8, 1)
    return add_lora(model, LoraSection(rank=2, dropout=0.0)) if kind == "lora" else model


@pytest.mark.parametrize("kind", ["llama", "gpt2", "lora", "t5"])
def test_logits_and_gradients_at_places_are_those_of_the_whole_forward(kind):
    model = made(kind).eval()
    inputs = {"input_ids": torch.tensor([[2, 3, 4], [9, 10, 11]]), **(SEQ2SEQ if kind == "t5" else {})}
    places, other = torch.tensor([1, 2, 3, 5]), copy.deepcopy(model)
    with logits_only_at(model, places):
        chosen = model(**inputs).logits
    whole = other(**inputs).logits
    assert chosen.shape == (4, 50)
    assert torch.allclose(chosen, whole.flatten(0, 1)[places], atol=1e-6)
    chosen.square().sum().backward()
    whole.flatten(0, 1)[places].square().sum().backward()
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None), name
        assert one.grad is None or torch.allclose(one.grad, two.grad, atol=1e-5), name


def test_afterwards_the_model_gives_all_logits_again():
    model = made("llama")
    with pytest.raises(IndexError), logits_only_at(model, torch.tensor([99])):
        model(input_ids=torch.tensor([[2, 3]]))
    assert model(input_ids=torch.tensor([[2, 3]])).logits.shape == (1, 2, 50)
