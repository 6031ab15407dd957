"""The LLaMA of the paper's sizes, and what the module says about its loss."""

import math
import re
from types import SimpleNamespace

import pytest
import torch

from lightning_modules.fira.module import FiraLoraSection, FiraModule, FiraModuleConfig
from lightning_modules.language.llama import SIZES, new_llama


def random_batch(rows, tokens=16):
    block = torch.randint(97, (rows, tokens + 1))
    return {"input_ids": block[:, :-1], "labels": block[:, 1:]}


def module_with(config, **data):
    """Build a module as Lightning would, around data that only has the properties asked for."""
    facts = {"vocab_size": 97, "block_size": 16, "batch_size": 2, "eos_token_id": 0, "tokens_per_byte": 0.25, **data}
    module = FiraModule(config, optimizer=None)
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(**facts), precision="32-true")
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
    assert total.item() == pytest.approx(sum(by_hand).item(), rel=1e-5)


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
    module.on_validation_epoch_start()
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
    lora = module_with(FiraModuleConfig(size="debug", lora=FiraLoraSection(rank=4))).eval()
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


def test_a_model_that_is_not_there_or_too_short_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^module\.pretrained: \S+ cannot be loaded [^\n]*; give a model's folder, or its name"):
        module_with(FiraModuleConfig(pretrained=str(tmp_path)))
    module_with(FiraModuleConfig(size="debug")).model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^data\.block_size: \S+ was made for 16 positions, not 32; set data\.block_size=16$"):
        module_with(FiraModuleConfig(pretrained=str(tmp_path)), block_size=32)


def test_a_lora_target_without_a_layer_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"^module\.lora\.targets: no linear layer is called query; choose from .*q_proj"):
        module_with(FiraModuleConfig(size="debug", lora=FiraLoraSection(rank=4, targets=["v_proj", "query"])))


def test_compiling_without_a_compiler_is_refused_before_any_work(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"^module\.compile: needs a C\+\+ compiler, and no-such-compiler is not found"):
        FiraModule(FiraModuleConfig(compile=True), optimizer=None)


def test_validation_does_not_hide_a_loss_that_is_not_a_number():
    module = module_with(FiraModuleConfig(size="debug"))
    logged = {}
    module.log = lambda name, value, **_: logged.update({name: float(value)})
    for broken in (False, True):
        if broken:
            module.model.lm_head.weight.data.fill_(math.nan)
        module.on_validation_epoch_start()
        with torch.no_grad():
            module.validation_step(random_batch(2), 0)
        module.on_validation_epoch_end()
        assert math.isnan(logged["val/perplexity"]) == broken


def test_flops_are_six_a_weight_and_token_plus_attention():
    module = module_with(FiraModuleConfig(size="debug", gradient_checkpointing=True))
    weights = sum(layer.weight.numel() for layer in linear_layers(module))
    attention = 3 * SIZES["debug"].layers * 2 * (2 * 16 * 16 * 64)  # forward and twice backward: two products a layer and sequence of 2
    assert module.flops_per_batch == 6 * weights * 2 * 16 + 2 * attention


def test_flops_of_lora_leave_out_the_gradients_of_frozen_weights():
    plain = module_with(FiraModuleConfig(size="debug"))
    lora = module_with(FiraModuleConfig(size="debug", lora=FiraLoraSection(rank=4)))
    tokens = 2 * 16
    frozen = sum(layer.weight.numel() for layer in linear_layers(plain))
    factors = sum(p.numel() for p in lora.parameters() if p.requires_grad)
    queries_keys_values = re.compile(r"layers\.0\.self_attn\.[qkv]_proj\.(base_layer|lora_A\.default)\.weight")
    first = [p.numel() for name, p in lora.named_parameters() if queries_keys_values.search(name)]  # nothing trainable lies before these
    assert plain.flops_per_batch - lora.flops_per_batch == 2 * frozen * tokens - 6 * factors * tokens + 2 * sum(first) * tokens


def linear_layers(module):
    return [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
