"""Networks that get their weights after they are sharded: the same as one process's, without the memory of the whole."""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_modules.language.llama import new_llama
from lightning_modules.language.t5 import new_t5
from lightning_modules.language.weights import draw_weights, find_weights, read_weights

WORKER = Path(__file__).with_name("shard_worker.py")


def run_on(processes, *words):
    """Start the worker on several gloo processes; return what rank 0 reports, by check."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run([*launcher, str(WORKER), *map(str, words)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {report["check"]: report for report in reports}, done.stderr


def drawn(size="debug", seed=0, vocab_size=97):
    with torch.device("meta"):
        model = new_llama(size, vocab_size, 16)
    draw_weights(model, torch.device("cpu"), seed)
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Saved models: in several files, with a tied head, without a head, and not as safetensors."""
    folder = tmp_path_factory.mktemp("models")
    drawn(seed=1).save_pretrained(folder / "model", max_shard_size="200KB")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                                 tie_word_embeddings=True)).save_pretrained(folder / "tied")
    tied = LlamaForCausalLM.from_pretrained(folder / "tied")
    tied.model.save_pretrained(folder / "headless")  # keys without the prefix; the head is the embedding
    shutil.copy(folder / "tied" / "config.json", folder / "headless" / "config.json")
    shutil.copytree(folder / "tied", folder / "unsafe")
    (folder / "unsafe" / "model.safetensors").unlink()
    torch.save(tied.state_dict(), folder / "unsafe" / "pytorch_model.bin")
    torch.manual_seed(0)
    new_t5("debug", 97, 1, 0).save_pretrained(folder / "t5")
    return folder


def assert_same(report, held):
    assert report["weights"]
    assert report["held"] == pytest.approx(held, abs=0.02)
    assert report["logits"] == 0
    assert report["gradients"] <= 1e-6


@pytest.fixture(scope="module")
def two_processes(models):
    return run_on(2, "fresh", "checkpointed", "t5", "pretrained t5", models)


def test_fresh_weights_logits_and_gradients_equal_one_process(two_processes):
    reports, _ = two_processes
    for check in ("fresh", "checkpointed"):
        assert_same(reports[check], held=0.5)
        assert reports[check]["random_numbers_left_alone"]


def test_pretrained_weights_are_read_by_rows_whatever_their_files(models):
    reports, warned = run_on(3, "pretrained", "tied", "headless", "unsafe", models)
    assert all(report["weights"] and report["logits"] == 0 for report in reports.values())
    assert len(reports) == 4
    assert "unsafe has no safetensors with the names of its class" in warned
    assert "headless has no" not in warned


def test_an_encoder_decoder_is_drawn_and_read_alike_on_one_process_and_on_many(two_processes):
    reports, warned = two_processes
    for check in ("t5", "pretrained t5"):
        assert reports[check]["weights"]
        assert reports[check]["logits"] == 0
    assert "has no safetensors" not in warned


@pytest.mark.slow
def test_building_a_sharded_network_never_takes_the_memory_of_the_whole(tmp_path):
    drawn("130m", vocab_size=97).save_pretrained(tmp_path / "large", max_shard_size="50MB")
    for check in ("growth", "pretrained growth"):
        reports, _ = run_on(2, check, tmp_path)
        assert 0.45 < reports[check]["share"] < 0.75


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_work_on_shards_and_agree_with_one_process_to_rounding(models):
    reports, _ = run_on(2, "compiled", models)
    report = reports["compiled"]
    assert report["weights"]
    assert report["logits"] <= 1e-5
    assert report["gradients"] <= 1e-4


def test_a_layers_fresh_weights_depend_on_seed_and_name_only():
    one, again, other = drawn(seed=1), drawn(seed=1), drawn(seed=2)
    wider = drawn(seed=1, vocab_size=98)
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(one.get_parameter(name), again.get_parameter(name))
    assert torch.equal(one.get_parameter(name), wider.get_parameter(name))  # although more was drawn before
    assert not torch.equal(one.get_parameter(name), other.get_parameter(name))
    assert not torch.equal(one.get_parameter(name), one.get_parameter(name.replace("1", "0")))


def drawn_t5():
    with torch.device("meta"):
        model = new_t5("small", 97, 1, 0)
    draw_weights(model, torch.device("cpu"), 0)
    return model


@pytest.mark.parametrize(("own", "reference"), [(partial(drawn, "small"), partial(new_llama, "small", 97, 16)),
                                                (drawn_t5, partial(new_t5, "small", 97, 1, 0))], ids=["llama", "t5"])
def test_fresh_weights_have_the_distribution_that_transformers_draws(own, reference):
    torch.manual_seed(0)
    own, reference = own(), reference()
    assert own.state_dict().keys() == reference.state_dict().keys()
    for (name, p), q in zip(own.named_parameters(), reference.parameters()):
        assert p.mean().item() == pytest.approx(q.mean().item(), abs=max(0.02, q.std().item()) * 5 / p.numel() ** 0.5), name
        assert p.std().item() == pytest.approx(q.std().item(), rel=5 / p.numel() ** 0.5), name
    assert all(torch.equal(p, q) for p, q in zip(own.buffers(), reference.buffers()))  # rotary frequencies


def test_weights_read_without_memory_equal_those_that_transformers_loads(models):
    for kind in ("model", "tied", "headless"):
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig.from_pretrained(models / kind))
        read_weights(model, torch.device("cpu"), find_weights(str(models / kind), model))
        reference = LlamaForCausalLM.from_pretrained(models / kind)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), reference.parameters(), strict=True))
        tokens = torch.arange(16)[None]
        assert torch.equal(model(tokens).logits, reference(tokens).logits)
