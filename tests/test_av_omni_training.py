"""An omni model trains in the launcher: it scores otherwise after than before, its checkpoints hold what was trained, a resumed run ends as
one that was never cut, two processes train and answer like one under each strategy, and what cannot be is refused.
"""

import json
import os
import shutil
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from lightning_modules.av_odyssey.omni import OmniAdapter, OmniSection
from pipelines.config import ConfigError, compose
from pipelines.runs import newest_checkpoint, steps_saved
from tests.exactness import assert_same, figures, latest, rows, state

WORDS = ["train", "method=av_odyssey", "module.adapter=qwen2_5_omni", "module.omni.new_tokens=4", "module.omni.lora.rank=2",
         "data.items=2", "data.questions=1", "data.profiles=[paper]", "data.profile=paper", "data.batch_size=2", "data.eval_batch_size=3",
         "trainer=debug", "logger=csv", "trainer.threads=1", "optim.lr=0.03", "trainer.max_steps=4", "trainer.log_every_n_steps=1",
         "trainer.val_every_n_steps=null", "checkpoint.every_n_steps=2", "checkpoint.keep=-1"]


def test_a_run_with_adapters_keeps_only_them_and_goes_on_bit_for_bit(here, tmp_path):
    whole = here(*WORDS, f"run.root={tmp_path}", "run.name=whole", "module.before=true")
    assert whole.returncode == 0, whole.stderr
    assert "before it learns: val/accuracy " in whole.stdout
    saved = torch.load(newest_checkpoint(tmp_path / "whole"), weights_only=True)["state_dict"]
    assert len(saved) == 2 * 4 * 2  # two factors beside each projection of attention in both layers
    assert all("language_model" in name and "lora_" in name for name in saved)
    broken = shutil.copytree(tmp_path / "whole", tmp_path / "broken", symlinks=True)
    for path in steps_saved(broken / "checkpoints")[1:]:
        path.unlink()
    record = json.loads((broken / "run.json").read_text())
    (broken / "run.json").write_text(json.dumps({**record, "status": "running"}))  # as a kill would have left it
    resumed = here(*WORDS, f"run.root={tmp_path}", "run.name=broken", "module.before=true", "run.resume=auto")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed at step 2)" in resumed.stdout
    assert "before it learns" not in resumed.stdout
    assert_same(state(tmp_path / "whole"), state(broken))
    assert rows(tmp_path / "whole") == rows(broken)


def test_a_run_is_examined_before_and_after_and_so_it_is_by_evaluate_and_as_it_is_exported(here, tmp_path):
    """What it learns in 24 steps is to reply with a letter; the same figures come of a model as it is, a run, and what it exports."""
    asked = ["data.profiles=[paper]", "data.questions=2", "data.eval_batch_size=8", "module.omni.new_tokens=12", "module.omni.together=8",
             "logger=csv", "trainer.accelerator=cpu", "trainer.threads=1"]
    model = ["method=av_odyssey", "module.adapter=qwen2_5_omni"]
    before = here("evaluate", *model, *asked, f"run.root={tmp_path}", "run.name=before")
    assert before.returncode == 0, before.stderr
    words = latest([*WORDS, *asked, "data.items=16", "data.batch_size=8", "module.omni.lora.rank=8", "optim.lr=0.02",
                    "trainer.max_steps=24", "checkpoint.every_n_steps=24", "module.before=true", f"run.root={tmp_path}", "run.name=run"])
    trained = here(*words)
    assert trained.returncode == 0, trained.stderr
    curve = rows(tmp_path / "run")
    first, losses = curve[0], [float(row["train/loss"]) for row in curve[1:]]
    assert first["step"] == "-1"
    assert {key: round(float(value), 5) for key, value in first.items() if key.startswith("val/")} == figures(before)
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
    evaluated = here("evaluate", f"run={tmp_path / 'run'}")
    assert evaluated.returncode == 0, evaluated.stderr
    exported = here("export", f"run={tmp_path / 'run'}", f"to={tmp_path / 'taught'}")
    assert exported.returncode == 0, exported.stderr
    after = here("evaluate", *model, *asked, f"module.pretrained={tmp_path / 'taught'}", f"run.root={tmp_path}", "run.name=after")
    assert after.returncode == 0, after.stderr
    assert figures(trained) == figures(evaluated) == figures(after)
    odyssey = [*model, *asked[2:], "data.source=synthetic", "data.questions=1", "module.omni.frames=2", f"run.root={tmp_path}"]
    others = [here("evaluate", *latest([*odyssey, *words, f"run.name=odyssey-{number}"]))
              for number, words in enumerate(([], [f"module.pretrained={tmp_path / 'taught'}"]))]
    assert [done.returncode for done in others] == [0, 0], others[1].stderr
    untaught, taught = map(figures, others)
    assert untaught["val/invalid_rate"] == 1
    assert taught["val/invalid_rate"] < 0.5
    assert figures(before)["val/invalid_rate"] > 0.9
    assert figures(after)["val/invalid_rate"] < 0.5
    other = here("evaluate", f"run={tmp_path / 'run'}", "module.omni.train=projector")
    assert (other.returncode, other.stderr.splitlines()[-1].count("module.omni: other parts learnt in this checkpoint")) == (2, 1)


@pytest.mark.slow
def test_zero_3_is_refused_where_a_model_reads_weights_past_their_layers(fivefold_in, tmp_path):
    done = fivefold_in(tmp_path, *APART, *BOTH, "module.adapter=gemma4", "strategy=deepspeed", "strategy.stage=3", f"run.root={tmp_path}")
    assert done.returncode == 2
    assert "error: strategy.stage: must be 1 or 2 for Gemma 4, not 3, or write strategy=fsdp" in done.stderr
    assert "Traceback" not in done.stderr


def test_fira_projects_what_learns(here, tmp_path):
    done = here(
        *[word for word in WORDS if not word.startswith(("optim", "trainer.max_steps"))], "optim=fira", "optim.rank=1",
        "optim.targets=[lora_]", f"run.root={tmp_path}", "run.name=run", "trainer.max_steps=2", "trainer.limit_val_batches=0")
    assert done.returncode == 0, done.stderr
    states = torch.load(newest_checkpoint(tmp_path / "run"), weights_only=True)["optimizer_states"][0]["state"]
    assert any("basis" in one for one in states.values())


APART = [word for word in WORDS if not word.startswith(("module.adapter", "data.batch_size"))] + ["module.omni.lora.dropout=0"]
ALONE, BOTH = ["data.batch_size=2"], ["data.batch_size=1", "trainer.devices=2"]
ZERO = ["strategy=deepspeed", "strategy.stage=2"]


def weights(folder):
    return torch.load(newest_checkpoint(folder), weights_only=True)["state_dict"]


def furthest(folder, other):
    one, two = weights(folder), weights(other)
    assert one.keys() == two.keys()
    return max(float((value - two[name]).abs().max()) for name, value in one.items())


ROOT, BESIDE = Path(__file__).parents[1], Path(sys.prefix) / "seeing"


def seeing(adapter):
    """Return the environment in which a model finds the packages that it sees with."""
    return {"PYTHONPATH": os.pathsep.join(map(str, [ROOT / "tests/seeing", BESIDE, ROOT]))} if adapter == "gemma3n" else None


@pytest.fixture(scope="module")
def alone(fivefold_in, tmp_path_factory):
    """Train a model on one process, once a module; return the run's folder."""
    @cache
    def run(adapter):
        folder = tmp_path_factory.mktemp(adapter)
        done = fivefold_in(folder, *APART, *ALONE, f"module.adapter={adapter}", f"run.root={folder}", "run.name=alone", env=seeing(adapter))
        assert done.returncode == 0, done.stderr
        return folder / "alone"

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "strategy"), [
    ("qwen2_5_omni", ["strategy=ddp"]), ("qwen2_5_omni", ["strategy=fsdp"]), ("qwen2_5_omni", ZERO),
    ("qwen3_omni", ["strategy=fsdp"]), ("qwen3_omni", ["strategy=deepspeed", "strategy.stage=3"]),
    ("gemma4", ["strategy=fsdp"]), ("gemma4", ZERO), ("gemma3n", ["strategy=fsdp"])],
    ids=lambda value: value if isinstance(value, str) else value[-1])
def test_two_processes_train_an_omni_model_like_one(adapter, strategy, alone, fivefold_in, tmp_path):
    if adapter == "gemma3n" and not BESIDE.is_dir():
        pytest.skip("torchvision and timm are not in seeing/ of the environment, where make test puts them")
    both = fivefold_in(tmp_path, *APART, *BOTH, *strategy, f"module.adapter={adapter}", f"run.root={tmp_path}", "run.name=both",
                       "module.before=true", env=seeing(adapter))
    assert both.returncode == 0, both.stderr
    assert furthest(alone(adapter), tmp_path / "both") < 1e-5
    began_as_nothing = [value for name, value in weights(tmp_path / "both").items() if "lora_B" in name]
    assert max(float(value.abs().max()) for value in began_as_nothing) > 0.02


@pytest.mark.slow
def test_a_run_begun_under_zero_on_two_processes_goes_on_with_one(alone, fivefold_in, tmp_path):
    words = [*APART, "module.adapter=qwen2_5_omni", f"run.root={tmp_path}", "run.name=moved"]
    begun = fivefold_in(tmp_path, *latest([*words, *BOTH, *ZERO]))
    assert begun.returncode == 0, begun.stderr
    for path in steps_saved(tmp_path / "moved" / "checkpoints")[1:]:
        path.unlink()
    record = json.loads((tmp_path / "moved" / "run.json").read_text())
    (tmp_path / "moved" / "run.json").write_text(json.dumps({**record, "status": "running"}))  # as a kill would have left it
    resumed = fivefold_in(tmp_path, *words, *ALONE, "run.resume=auto")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed at step 2" in resumed.stdout
    assert furthest(alone("qwen2_5_omni"), tmp_path / "moved") < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [["strategy=single"], ["strategy=fsdp", "trainer.devices=2"]], ids=lambda value: value[0])
def test_a_projector_learns_in_full_precision_beside_weights_in_half(strategy, fivefold_in, tmp_path):
    done = fivefold_in(tmp_path, *APART, "data.batch_size=1", *strategy, "module.adapter=qwen2_5_omni", "module.omni.train=projector",
                       "trainer.precision=bf16-mixed", f"run.root={tmp_path}", "run.name=run")
    assert done.returncode == 0, done.stderr
    saved = weights(tmp_path / "run")
    assert sorted(name.rpartition(".")[2] for name in saved) == ["bias", "weight"]
    assert {value.dtype for value in saved.values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_processes_that_hold_parts_of_a_model_give_the_answers_of_one(dtype, fivefold_in, tmp_path):
    """A model is examined in the precision in which it was saved; under ZeRO 3 in the trainer's."""
    omni = OmniAdapter.load("qwen2_5_omni", None, OmniSection(), dtype)
    omni.model.save_pretrained(tmp_path / "model")
    omni.processor.save_pretrained(tmp_path / "model")
    words = ["evaluate", "method=av_odyssey", "module.adapter=qwen2_5_omni", "module.omni.new_tokens=3", "data.questions=2",
             f"module.pretrained={tmp_path / 'model'}", "data.profiles=[paper]", "logger=csv", "trainer.accelerator=cpu",
             "trainer.threads=1", f"run.root={tmp_path}"]
    half = ["trainer.precision=bf16-true"] if dtype == torch.bfloat16 else []
    for name, strategy in {"one": [], "fsdp": ["strategy=fsdp", "trainer.devices=2"],
                           "zero": ["strategy=deepspeed", "strategy.stage=3", "trainer.devices=2", *half]}.items():
        done = fivefold_in(tmp_path, *words, *strategy, f"run.name={name}")
        assert done.returncode == 0, done.stderr
    texts = [(tmp_path / name / "answers.jsonl").read_text() for name in ("one", "fsdp", "zero")]
    files = [[json.loads(line) for line in text.splitlines()] for text in texts]
    assert len(files[0]) == 8
    for answers in zip(*files, strict=True):
        assert len({(answer["key"], answer["reply"]) for answer in answers}) == 1
        logits = torch.tensor([answer["letter_logits"] for answer in answers])
        assert (logits - logits[0]).abs().max() < (1e-5 if dtype == torch.float32 else 0.1)


def test_what_is_small_is_not_parted():
    with pytest.raises(ConfigError, match=r"strategy=fsdp: method av_odyssey runs on single, ddp only. Write strategy=single"):
        compose(["method=av_odyssey", "strategy=fsdp", "trainer.devices=2"])
    assert compose(["method=av_odyssey", "module.adapter=qwen2_5_omni", "strategy=fsdp", "trainer.devices=2"]).strategy.name == "fsdp"


@pytest.mark.parametrize(("words", "message"), [
    (["module.omni.train=all"], "module.omni.train: no such choice 'all'. Choices: lora, projector"),
    (["module.omni.lora.rank=0"], "module.omni.lora.rank: must be 1 or above where train=lora, not 0"),
    (["module.omni.lora.targets=[fc1]"], "module.omni.lora.targets: no linear layer of the language model is called fc1; choose from"),
    (["module.pretrained=."], "module.pretrained: .: holds no Qwen2.5-Omni with its processor"),
])
def test_what_cannot_be_is_refused_in_one_line(words, message, here, tmp_path):
    done = here(*latest([*WORDS, f"run.root={tmp_path}", *words]))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
