"""Exported folders: what transformers and peft load computes the same as the run's own module."""

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.__main__ import main
from pipelines.export import load, write
from pipelines.runs import newest_checkpoint

SHORT = ["trainer.max_steps=2", "trainer.val_every_n_steps=null", "trainer.limit_val_batches=0"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, cache):
    """A finished run of two steps."""
    root = tmp_path_factory.mktemp("runs")
    assert main(["train", "experiment=fira_debug", f"run.root={root}", "run.name=plain", f"data.cache={cache}", *SHORT]) == 0
    return root / "plain"


@pytest.fixture(scope="module")
def exported(run_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    assert write(load(run_folder, newest_checkpoint(run_folder)), folder, merge=False) == "model"
    return folder


@pytest.fixture(scope="module")
def adapter_run(exported, cache):
    """A run of two steps that trains an adapter beside the exported model."""
    root = exported.parent
    assert main(["train", "experiment=fira_debug", f"module.pretrained={exported}", "module.lora.rank=4", "optim.rank=2",
                 f"data.tokenizer={exported}", f"run.root={root}", "run.name=adapter", f"data.cache={cache}", *SHORT]) == 0
    return root / "adapter"


def logits_of(model):
    tokens = torch.arange(60).view(2, 30) % 512
    with torch.no_grad():
        return model.eval()(input_ids=tokens).logits


def test_transformers_loads_the_folder_and_gives_the_same_logits_bit_for_bit(run_folder, exported):
    saved = torch.load(newest_checkpoint(run_folder), weights_only=True)["state_dict"]
    again = AutoModelForCausalLM.from_pretrained(exported)
    loaded = again.state_dict()
    assert {key.removeprefix("model.") for key in saved} == loaded.keys()
    assert all(torch.equal(value, loaded[key.removeprefix("model.")]) for key, value in saved.items())
    own = load(run_folder, newest_checkpoint(run_folder)).model
    assert torch.equal(logits_of(own), logits_of(again))


def test_the_folder_has_weights_configuration_and_the_tokenizer_of_the_run(exported):
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in exported.iterdir()}
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer.decode(tokenizer.encode("def f(x): return x")) == "def f(x): return x"
    assert len(tokenizer) == json.loads((exported / "config.json").read_text())["vocab_size"] == 512


def test_an_adapter_is_exported_for_peft_and_merged_for_transformers(exported, adapter_run, tmp_path):
    checkpoint = newest_checkpoint(adapter_run)
    assert write(load(adapter_run, checkpoint), tmp_path / "adapter", merge=False) == "adapter"
    assert write(load(adapter_run, checkpoint), tmp_path / "merged", merge=True) == "merged model"
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert all("lora_" in key for key in file.keys())  # noqa: SIM118
    own = logits_of(load(adapter_run, checkpoint).model)
    assert torch.equal(logits_of(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")), own)
    assert torch.allclose(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), own, atol=1e-5)
    assert not torch.equal(own, logits_of(AutoModelForCausalLM.from_pretrained(exported)))


def test_an_adapter_on_fresh_weights_is_exported_merged_only(cache, tmp_path, here):
    done = here("train", "experiment=fira_debug", "module.lora.rank=4", "optim.rank=2", f"run.root={tmp_path}", "run.name=fresh",
                f"data.cache={cache}", *SHORT)
    assert done.returncode == 0, done.stderr
    done = here("export", f"run={tmp_path / 'fresh'}", f"to={tmp_path / 'adapter'}")
    assert done.returncode == 2
    assert "merge: the network under this adapter was trained from nothing and is saved nowhere else; write merge=true" in done.stderr
    done = here("export", f"run={tmp_path / 'fresh'}", f"to={tmp_path / 'merged'}", "merge=true")
    assert done.returncode == 0, done.stderr
    checkpoint = newest_checkpoint(tmp_path / "fresh")
    own = logits_of(load(tmp_path / "fresh", checkpoint).model)
    assert torch.allclose(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), own, atol=1e-5)


def test_weights_that_were_trained_in_bfloat16_stay_so(cache, tmp_path, here):
    done = here("train", "experiment=fira_debug", "trainer.precision=bf16-true", f"run.root={tmp_path}", "run.name=short",
                f"data.cache={cache}", *SHORT)
    assert done.returncode == 0, done.stderr
    done = here("export", f"run={tmp_path / 'short'}", f"to={tmp_path / 'model'}")
    assert done.returncode == 0, done.stderr
    saved = torch.load(newest_checkpoint(tmp_path / "short"), weights_only=True)["state_dict"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert {value.dtype for value in loaded.values()} == {torch.bfloat16}
    assert all(torch.equal(value, loaded[key.removeprefix("model.")]) for key, value in saved.items())


def test_the_command_writes_a_folder_and_says_from_which_step(run_folder, here, tmp_path):
    done = here("export", f"run={run_folder}", f"to={tmp_path / 'new' / 'model'}")
    assert done.returncode == 0, done.stderr
    assert "model of plain at step 2" in done.stdout
    assert (tmp_path / "new" / "model" / "model.safetensors").is_file()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["model"]


def test_a_folder_with_content_is_left_alone(run_folder, here, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    done = here("export", f"run={run_folder}", f"to={tmp_path / 'full'}")
    assert done.returncode == 2
    assert "is not an empty folder" in done.stderr
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_a_failure_while_writing_leaves_nothing_behind(run_folder, tmp_path, monkeypatch):
    found = load(run_folder, newest_checkpoint(run_folder))

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(type(found.tokenizer), "save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        write(found, tmp_path / "model", merge=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("words", "message"), [
    (["to=x"], "run: which one?"),
    (["run=x"], "to: where?"),
    (["run=x", "to=y", "merge=maybe"], "merge: must be true or false, not maybe"),
    (["run=x", "to=y", "format=gguf"], "format: no such key"),
    (["run=missing", "to=y"], "is no run folder"),
])
def test_wrong_words_are_refused_in_one_line(words, message, here):
    done = here("export", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_merging_without_an_adapter_is_refused(run_folder, here, tmp_path):
    done = here("export", f"run={run_folder}", f"to={tmp_path / 'merged'}", "merge=true")
    assert done.returncode == 2
    assert "no adapter to merge" in done.stderr
    assert not (tmp_path / "merged").exists()


def test_a_method_without_a_model_of_that_kind_is_refused(run_folder, monkeypatch):
    from lightning_modules.base import MethodModule
    from lightning_modules.fira.module import FiraModule
    from pipelines.config import ConfigError

    monkeypatch.setattr(FiraModule, "exportable", MethodModule.exportable)
    with pytest.raises(ConfigError, match="run: method fira has no model in the terms of transformers"):
        load(run_folder, newest_checkpoint(run_folder))
