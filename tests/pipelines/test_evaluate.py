"""fivefold evaluate prints what training printed at its end."""

import pytest
import torch

from lightning_modules.base import Table
from pipelines.describe import printed_tables
from pipelines.evaluate import _shared_out

WORDS = ["trainer.max_steps=6", "trainer.val_every_n_steps=4", "run.name=run"]


@pytest.fixture
def trained(here, debug):
    words = [word for word in debug if not word.startswith(("trainer.max_steps", "trainer.val_every"))]
    return here(*words, *WORDS)


def figures(done):
    return [line.split() for line in done.stdout.splitlines() if line.startswith("val/")]


def test_the_newest_checkpoint_gives_the_figures_of_the_end_and_an_older_one_those_of_its_step(here, trained, tmp_path):
    assert trained.returncode == 0, trained.stderr
    again = here("evaluate", f"run={tmp_path}/run")
    assert (again.returncode, again.stderr) == (0, "")
    assert len(figures(again)) == 3
    assert figures(again) == figures(trained)
    older = here("evaluate", f"run={tmp_path}/run", f"checkpoint={tmp_path}/run/checkpoints/step=00000004.ckpt")
    shown = next(line for line in trained.stdout.splitlines() if line.startswith("step 4  val/"))
    perplexity = dict(figures(older))["val/perplexity"]
    assert f"val/perplexity {perplexity}" in shown
    assert perplexity != dict(figures(again))["val/perplexity"]


def test_evaluating_writes_nothing(here, trained, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    here("evaluate", f"run={tmp_path}/run")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_settings_may_be_changed_for_an_evaluation(here, trained, tmp_path):
    whole = here("evaluate", f"run={tmp_path}/run", "trainer.limit_val_batches=null")
    assert whole.returncode == 0, whole.stderr
    assert figures(whole) != figures(trained)


@pytest.mark.parametrize(("words", "message"), [
    ([], "run: which one? Write fivefold evaluate run=FOLDER"),
    (["run=nowhere"], "nowhere is no run folder: it has no config.yaml"),
    (["run=run", "checkpoint=nowhere.ckpt"], "nowhere.ckpt does not exist"),
])
def test_what_cannot_be_evaluated_is_refused_in_one_line(here, tmp_path, words, message):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    done = here("evaluate", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_without_a_whole_checkpoint_is_refused(here, trained, tmp_path):
    for path in (tmp_path / "run" / "checkpoints").glob("step=*.ckpt"):
        path.write_bytes(path.read_bytes()[:-10])
    done = here("evaluate", f"run={tmp_path}/run")
    assert done.returncode == 2
    assert "holds no checkpoint yet" in done.stderr


@pytest.mark.parametrize(("words", "added"), [
    (["method=x", "trainer.devices=2"], ["strategy=ddp"]),
    (["method=x", "trainer.num_nodes=3"], ["strategy=ddp"]),
    (["method=x", "trainer.devices=1"], []),
    (["method=x"], []),
    (["method=x", "trainer.devices=2", "strategy=fsdp"], []),
    (["experiment=x", "trainer.devices=2"], []),
])
def test_an_examination_on_several_processes_is_shared_out_by_ddp_unless_the_words_say_otherwise(words, added):
    assert _shared_out(words) == [*words, *added]


def test_only_tables_that_are_meant_for_the_terminal_are_printed(capsys):
    printed_tables({"a": Table(("name", "count"), [("loud", 7), ("soft", 12)], printed=True), "b": Table(("other",), [("x",)])})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["name", "count"], ["loud", "7"], ["soft", "12"]]


def test_weights_decide_the_figures(here, trained, tmp_path):
    path = tmp_path / "run" / "checkpoints" / "step=00000006.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"] = {name: torch.zeros_like(weight) for name, weight in checkpoint["state_dict"].items()}
    torch.save(checkpoint, path)
    done = here("evaluate", f"run={tmp_path}/run")
    assert float(dict(figures(done))["val/perplexity"]) == pytest.approx(512, rel=1e-4)  # all tokens equally likely
