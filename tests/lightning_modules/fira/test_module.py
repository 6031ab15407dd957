"""The LLaMA of the paper's sizes, and what the module says about its loss."""

import math
from types import SimpleNamespace

import pytest
import torch

from lightning_modules.fira.llama import SIZES, new_llama
from lightning_modules.fira.module import FiraModule, FiraModuleConfig, LoraSection


def module_with(config, **data):
    """Build a module as Lightning would, around data that only has the properties asked for."""
    facts = {"vocab_size": 97, "block_size": 16, "batch_size": 2, "eos_token_id": 0, "tokens_per_byte": 0.25, **data}
    module = FiraModule(config, optimizer=None)
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(**facts))
    module.configure_model()
    return module


@pytest.mark.parametrize(("size", "adam_gib"), [("60m", 0.43), ("130m", 1.00), ("350m", 2.74), ("1b", 9.98), ("7b", 50.2)])
def test_sizes_have_the_parameters_that_the_papers_optimizer_memory_implies(size, adam_gib):
    with torch.device("meta"):
        model = new_llama(size, vocab_size=32000, max_positions=1024)
    parameters = sum(p.numel() for p in model.parameters())
    assert 8 * parameters / 2**30 == pytest.approx(adam_gib, abs=0.006 if adam_gib < 20 else 0.06)


def test_every_size_divides_into_its_heads():
    assert all(shape.hidden % shape.heads == 0 for shape in SIZES.values())


def test_the_loss_is_the_mean_negative_log_probability_of_the_next_token():
    torch.manual_seed(0)
    module = module_with(FiraModuleConfig(size="debug"))
    block = torch.randint(97, (2, 17))
    labels = block[:, 1:].clone()
    labels[1, -5:] = -100
    total, tokens = module.nll({"input_ids": block[:, :-1], "labels": labels})
    logits = module(block[:, :-1]).double()
    by_hand = [-torch.log_softmax(logits[b, t], 0)[labels[b, t]] for b in range(2) for t in range(16) if labels[b, t] >= 0]
    assert tokens == len(by_hand) == 27
    assert float(total) == pytest.approx(float(sum(by_hand)), rel=1e-5)


def test_a_token_sees_no_later_token():
    torch.manual_seed(0)
    module = module_with(FiraModuleConfig(size="debug")).eval()
    tokens = torch.randint(97, (1, 16))
    changed = tokens.clone()
    changed[0, 10:] = (changed[0, 10:] + 1) % 97
    assert torch.equal(module(tokens)[0, :10], module(changed)[0, :10])


def test_validation_weighs_tokens_equally_and_converts_to_bytes():
    torch.manual_seed(0)
    module = module_with(FiraModuleConfig(size="debug"))
    logged = {}
    module.log = lambda name, value, **_: logged.update({name: float(value)})
    total = count = 0.0
    for used in (16, 3):
        block = torch.randint(97, (2, 17))
        labels = block[:, 1:].clone()
        labels[:, used:] = -100
        batch = {"input_ids": block[:, :-1], "labels": labels}
        with torch.no_grad():
            nll, tokens = module.nll(batch)
            module.validation_step(batch, 0)
        total, count = total + float(nll), count + float(tokens)
    module.on_validation_epoch_end()
    assert logged["val/loss"] == pytest.approx(total / count)
    assert logged["val/perplexity"] == pytest.approx(math.exp(total / count))
    assert logged["val/byte_perplexity"] == pytest.approx(math.exp(total / count / 4))


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for on in (False, True):
        torch.manual_seed(0)
        module = module_with(FiraModuleConfig(size="debug", gradient_checkpointing=on))
        block = torch.randint(97, (2, 17))
        module.nll({"input_ids": block[:, :-1], "labels": block[:, 1:]})[0].backward()
        gradients.append([p.grad for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_lora_trains_only_its_factors_and_starts_at_the_frozen_model():
    torch.manual_seed(0)
    plain = module_with(FiraModuleConfig(size="debug")).eval()
    torch.manual_seed(0)
    lora = module_with(FiraModuleConfig(size="debug", lora=LoraSection(rank=4))).eval()
    tokens = torch.randint(97, (2, 16))
    assert torch.equal(plain(tokens), lora(tokens))
    trained = {name for name, p in lora.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_A" in name or "lora_B" in name for name in trained)


def test_a_saved_model_folder_can_be_fine_tuned_and_a_larger_tokenizer_is_refused(tmp_path):
    torch.manual_seed(0)
    plain = module_with(FiraModuleConfig(size="debug"))
    plain.model.save_pretrained(tmp_path)
    again = module_with(FiraModuleConfig(pretrained=str(tmp_path)))
    tokens = torch.randint(97, (2, 16))
    assert torch.equal(plain(tokens), again(tokens))
    with pytest.raises(ValueError, match=r"97 embeddings but the tokenizer has 98 ids; set data\.tokenizer="):
        module_with(FiraModuleConfig(pretrained=str(tmp_path)), vocab_size=98)


def test_flops_are_six_a_weight_and_token_plus_attention():
    module = module_with(FiraModuleConfig(size="debug"))
    tokens = 2 * 16
    embedding = module.model.get_input_embeddings().weight.numel()
    weights = sum(p.numel() for p in module.parameters() if p.ndim == 2) - embedding
    assert module.flops_per_batch == pytest.approx(6 * weights * tokens, rel=0.1)
    assert module.flops_per_batch > 6 * weights * tokens * 0.99
