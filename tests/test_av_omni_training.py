"""An omni model trains in the launcher: it scores otherwise after than before, its checkpoints hold what was trained, a resumed run ends as
one that was never cut, two processes train like one, and what cannot be is refused.
"""

import json
import shutil

import pytest
import torch

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
    assert figures(before)["val/invalid_rate"] > 0.9
    assert figures(after)["val/invalid_rate"] < 0.5
    other = here("evaluate", f"run={tmp_path / 'run'}", "module.omni.train=projector")
    assert (other.returncode, other.stderr.splitlines()[-1].count("module.omni: other parts learnt in this checkpoint")) == (2, 1)


def test_fira_projects_what_learns(here, tmp_path):
    done = here(
        *[word for word in WORDS if not word.startswith(("optim", "trainer.max_steps"))], "optim=fira", "optim.rank=1",
        "optim.targets=[lora_]", f"run.root={tmp_path}", "run.name=run", "trainer.max_steps=2", "trainer.limit_val_batches=0")
    assert done.returncode == 0, done.stderr
    states = torch.load(newest_checkpoint(tmp_path / "run"), weights_only=True)["optimizer_states"][0]["state"]
    assert any("basis" in one for one in states.values())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_an_omni_model_like_one(strategy, fivefold_in, tmp_path):
    words = [word for word in WORDS if not word.startswith("data.batch_size")] + ["module.omni.lora.dropout=0", f"run.root={tmp_path}"]
    alone = fivefold_in(tmp_path, *words, "run.name=alone", "data.batch_size=2")
    assert alone.returncode == 0, alone.stderr
    both = fivefold_in(tmp_path, *words, "run.name=both", "data.batch_size=1", f"strategy={strategy}", "trainer.devices=2",
                       "module.before=true")
    assert both.returncode == 0, both.stderr
    one, two = (torch.load(newest_checkpoint(tmp_path / name), weights_only=True)["state_dict"] for name in ("alone", "both"))
    assert one.keys() == two.keys()
    assert max(float((value - two[name]).abs().max()) for name, value in one.items()) < 2e-3
    assert max(float(value.abs().max()) for name, value in one.items() if "lora_B" in name) > 0.02  # which began as nothing


def test_what_is_small_is_not_parted():
    with pytest.raises(ConfigError, match=r"strategy=fsdp: method av_odyssey runs on single, ddp only. Write strategy=single"):
        compose(["method=av_odyssey", "strategy=fsdp", "trainer.devices=2"])
    assert compose(["method=av_odyssey", "module.adapter=qwen2_5_omni", "strategy=fsdp", "trainer.devices=2"]).strategy.name == "fsdp"


@pytest.mark.parametrize(("words", "message"), [
    (["module.omni.train=all"], "module.omni.train: no such choice 'all'. Choices: lora, projector"),
    (["module.omni.lora.rank=0"], "module.omni.lora.rank: must be 1 or above where train=lora, not 0"),
    (["module.omni.lora.targets=[fc1]"], "module.omni.lora.targets: no linear layer of the language model is called fc1; choose from"),
    (["module.pretrained=."], "module.pretrained: .: holds no Qwen2.5-Omni with its processor"),
    (["strategy=deepspeed", "trainer.devices=2"], "strategy=deepspeed: method av_odyssey runs on single, ddp, fsdp only"),
])
def test_what_cannot_be_is_refused_in_one_line(words, message, here, tmp_path):
    done = here(*latest([*WORDS, f"run.root={tmp_path}", *words]))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
