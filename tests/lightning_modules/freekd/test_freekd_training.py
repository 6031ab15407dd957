"""FreeKD in the launcher: nothing leaks, twins are fair, every switch trains, batches and processes make no difference."""

import csv
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from lightning_modules.freekd import pieces
from lightning_modules.freekd.agent import CollapseWatch
from lightning_modules.freekd.module import FreekdModule
from pipelines.runs import steps_saved
from tests.exactness import assert_same, fitted_in_process, latest

WORDS = ["experiment=freekd_debug", "trainer.threads=1", "trainer.max_steps=4", "trainer.limit_val_batches=0", "data.batch=full"]


def fitted(*words, change=None):
    return fitted_in_process(latest([*WORDS, *words]), change)


def weights(module, part=""):
    return {name: value for name, value in module.state_dict().items() if name.startswith(part)}


def memory(module):
    return dict(vars(module.told))


def scramble_held_out(data):
    """Give all validation and test nodes other labels, in place: every batch is made of these."""
    for holder in {id(h): h for h in (data.graph, data._training, data._held_out, data._batch)}.values():
        mask = holder.train if hasattr(holder, "train") else holder.train_mask
        holder.y[~mask] = (holder.y[~mask] + 1 + torch.arange(int((~mask).sum())) % 5) % 6


@pytest.mark.parametrize("batch", ["full", "clustered"])
@pytest.mark.parametrize("reward", ["advantage", "paper"])
def test_labels_of_validation_and_test_leave_no_trace_in_training(batch, reward):
    words = [f"data.batch={batch}", f"module.reward.kind={reward}", "trainer.max_steps=6"]
    honest, scrambled = fitted(*words), fitted(*words, change=scramble_held_out)
    assert not torch.equal(honest.trainer.datamodule.graph.y, scrambled.trainer.datamodule.graph.y)
    assert_same(weights(honest), weights(scrambled))
    assert_same(memory(honest), memory(scrambled))
    assert torch.equal(honest.baseline.nan_to_num(7.0), scrambled.baseline.nan_to_num(7.0))
    figures = [module.trainer.callback_metrics for module in (honest, scrambled)]
    assert {"train/ce", "train/node", "train/structure", "train/policy"} <= figures[0].keys()
    assert_same(*figures)


def test_without_distillation_networks_and_twins_stay_equal_to_the_last_bit():
    module = fitted("module.distil.direction=none", "module.prompt.tokens=0")
    networks, twins = weights(module, "networks."), weights(module, "base.")
    assert_same(networks, {name.replace("base.", "networks.", 1): value for name, value in twins.items()})


def test_twins_do_not_notice_what_their_siblings_are_taught():
    taught, alone = fitted(), fitted("module.distil.direction=none", "module.prompt.tokens=0")
    assert_same(weights(taught, "base."), weights(alone, "base."))
    assert not torch.equal(taught.networks[0].convs[0].lin.weight, alone.networks[0].convs[0].lin.weight)


def test_prompts_at_zero_make_the_first_step_of_no_prompts():
    without, prompted = (fitted("trainer.max_steps=1", f"module.prompt.tokens={tokens}") for tokens in (0, 5))
    assert_same(weights(without, "networks."), weights(prompted, "networks."))
    assert weights(prompted, "prompts.")["prompts.0.tokens"].abs().sum() > 0
    two, prompted_two = (fitted("trainer.max_steps=2", f"module.prompt.tokens={tokens}") for tokens in (0, 5))
    assert not torch.equal(two.networks[0].convs[0].lin.weight, prompted_two.networks[0].convs[0].lin.weight)


def prompts_by_hand(module, lr=3e-5):
    """Move the tokens from 0 by Adam's first step, lr g / (|g| + eps), g the gradient at the module's networks as they are."""
    batch = next(iter(module.trainer.datamodule.train_dataloader()))
    module.train()
    module._record = lambda figures: None  # no run is there any more to log to
    weights = [own.tokens for own in module.prompts]
    gradients = torch.autograd.grad(module._prompt_loss(batch, module.place(batch)), weights)
    return [-lr * g / (g.abs() + 1e-8) for g in gradients]


def test_prompts_learn_at_the_networks_that_have_stepped():
    """A run whose prompts have a rate of nothing shows the networks after one step."""
    one, stepped = fitted("trainer.max_steps=1"), fitted("trainer.max_steps=1", "module.prompt.lr=1e-30")
    assert_same(weights(one, "networks."), weights(stepped, "networks."))
    for own, wanted in zip(one.prompts, prompts_by_hand(stepped)):
        assert torch.allclose(own.tokens, wanted, atol=3e-7)
        assert own.tokens.abs().max() > 2e-5


SWITCHES = {
    "agent": [], "random": ["module.distil.direction=random"], "mutual": ["module.distil.direction=mutual"],
    "confidence": ["module.distil.direction=confidence"], "loss": ["module.distil.direction=loss", "module.distil.nodes=train"],
    "paper": ["module.distil.nodes=train", "module.reward.kind=paper", "module.agent.policy=concat"],
    "all neighbours": ["module.distil.neighbours=all"], "all structures": ["module.distil.structure=all"],
    "no structure level": ["module.distil.structure=none"], "centered": ["module.reward.kind=centered"],
    "three networks": ["module.networks=[gcn,sage,gat]", "module.network.heads=2"],
    "no twins": ["module.compare_base=false"], "cka": ["module.prompt.similarity=cka"],
    "no labels in the reward": ["module.reward.unlabelled=none"], "ramp": ["module.distil.warmup=1", "module.distil.ramp=2"],
}


def test_every_switch_trains_and_no_two_train_the_same():
    found = {name: weights(fitted(*words), "networks.") for name, words in SWITCHES.items()}
    sums = {name: sum(float(v.double().sum()) for v in state.values()) for name, state in found.items()}
    assert all(torch.tensor(total).isfinite() for total in sums.values())
    del sums["no twins"]  # which changes nothing for the networks
    assert_same(found["no twins"], found["agent"])
    assert len({round(total, 9) for total in sums.values()}) == len(sums), sums


def test_one_batch_that_holds_all_nodes_trains_like_the_whole_graph():
    """The sampler's order of nodes differs, the choices belong to the nodes: losses are equal but for the order of sums."""
    words = ["module.network.dropout=0", "module.network.attention_dropout=0", "trainer.max_steps=3"]
    whole = fitted(*words)
    batch = fitted(*words, "data.batch=clustered", "data.batch_size=1200", "data.fanouts=[-1,-1]")
    for name, value in weights(whole).items():
        assert torch.allclose(value, weights(batch)[name], atol=2e-4), name
    order = torch.sort(torch.stack([whole.told.teacher, whole.told.carried.long()]).sum(0)).values
    assert torch.equal(order, torch.sort(torch.stack([batch.told.teacher, batch.told.carried.long()]).sum(0)).values)


def test_validation_in_pieces_finds_what_it_finds_of_the_whole_graph_at_once(monkeypatch):
    calls, stretches = [], pieces._stretches
    monkeypatch.setattr(pieces, "_stretches", lambda *given: calls.append(given) or stretches(*given))
    words = ["trainer.limit_val_batches=1", "trainer.max_steps=3", "module.networks=[gcn,gat]", "module.network.heads=2"]
    at_once = fitted(*words).trainer.callback_metrics
    assert not calls
    in_pieces = fitted(*words, "module.edges_at_once=500").trainer.callback_metrics
    assert calls
    assert in_pieces.keys() == at_once.keys() >= {"val/loss", "test/micro_f1", "test/base_micro_f1"}
    for name, value in at_once.items():
        assert float(in_pieces[name]) == pytest.approx(float(value), rel=1e-5), name


def test_figures_of_steps_that_are_not_written_down_are_not_made_and_change_nothing(monkeypatch):
    logged, log = [], FreekdModule.log
    monkeypatch.setattr(FreekdModule, "log", lambda module, name, *rest, **more: logged.append((module.trainer.global_step, name))
                        or log(module, name, *rest, **more))
    often = fitted("trainer.max_steps=6")
    assert {step for step, name in logged if name == "train/ce"} == set(range(6))
    logged.clear()
    seldom = fitted("trainer.max_steps=6", "trainer.log_every_n_steps=3")
    assert {step for step, name in logged if name == "train/ce"} == {2, 5}
    assert {step for step, name in logged if name == "train/loss"} == set(range(6))
    assert_same(weights(often), weights(seldom))
    assert_same(often.trainer.callback_metrics, seldom.trainer.callback_metrics)


def test_a_training_step_is_one_step_whatever_the_number_of_optimizers():
    module = fitted("trainer.max_steps=5")
    assert module.trainer.global_step == 5
    assert module.trainer.fit_loop.epoch_loop._batches_that_stepped == 5
    assert [len(o.param_groups[0]["params"]) > 0 for o in module.trainer.optimizers] == [True] * 3
    for optimizer in module.trainer.optimizers:
        assert {int(entry["step"]) for entry in optimizer.entries.values()} == {5}


def test_a_node_has_no_baseline_before_its_second_visit():
    module = fitted("module.reward.kind=paper", "trainer.max_steps=1")
    assert module.told.worth.abs().sum() == 0
    assert module.baseline.isfinite().all()
    later = fitted("module.reward.kind=paper", "trainer.max_steps=2")
    assert later.told.worth.abs().sum() > 0


def test_a_run_that_goes_on_has_the_rewards_of_every_node_and_the_last_choices_to_the_last_bit(here, tmp_path):
    words = ["train", *latest([*WORDS, f"run.root={tmp_path}", "run.name=whole", "module.reward.kind=paper", "data.batch=clustered",
                               "trainer.max_steps=8", "checkpoint.every_n_steps=3", "checkpoint.keep=-1"])]
    assert here(*words).returncode == 0
    broken = shutil.copytree(tmp_path / "whole", tmp_path / "broken", symlinks=True)
    for path in steps_saved(broken / "checkpoints")[1:]:
        path.unlink()
    record = json.loads((broken / "run.json").read_text())
    (broken / "run.json").write_text(json.dumps({**record, "status": "running"}))  # as a kill would have left it
    resumed = here(*[word.replace("=whole", "=broken") for word in words], "run.resume=auto")
    assert "resumed at step 3)" in resumed.stdout, resumed.stderr
    one, two = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["freekd"] for name in ("whole", "broken"))
    assert one["baseline"].isfinite().any()
    assert torch.equal(one["baseline"].nan_to_num(7.0), two["baseline"].nan_to_num(7.0))  # NaN: never visited
    assert_same(one["told"], two["told"])


def test_a_collapsed_agent_is_called_so_once():
    watch = CollapseWatch(["gcn1", "sage2"])
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(80):
            watch(torch.tensor([0.99, 0.01]), torch.tensor(0.001))
    assert len(found) == 1
    assert "chosen the same at all nodes for 50 steps (gcn1 teaches at 99% of them)" in str(found[0].message)


def test_an_agent_that_stands_still_in_a_run_is_noticed():
    module = fitted("trainer.max_steps=3", "module.agent.lr=1e-30", "module.distil.nodes=train")
    assert module._watch.still >= 2


def test_a_run_leaves_its_table_and_pictures(here, tmp_path):
    done = here("train", "experiment=freekd_debug", f"run.root={tmp_path}", "run.name=one", "trainer.threads=1")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "one" / "tables" / "micro_f1.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["network"] for row in table] == ["gcn1", "mlp2"]
    printed = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("test/")}
    for row in table:
        assert printed[f"test/micro_f1/{row['network']}"] == pytest.approx(float(row["test"]), rel=1e-4)
        assert printed[f"test/base_micro_f1/{row['network']}"] == pytest.approx(float(row["base test"]), rel=1e-4)
    metrics = (tmp_path / "one" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/oracle", "train/expert", "train/entropy", "train/share/gcn1", "val/base_micro_f1/gcn1"} <= set(metrics)
    for name in ("directions", "accuracy", "teachers"):
        assert (tmp_path / "one" / f"{name}.png").stat().st_size > 5000


@pytest.mark.parametrize(("word", "line"), [
    ("module.networks=[gcn]", "module.networks: must be at least two, which teach each other, not ['gcn']"),
    ("module.networks=[gcn,gnc]", "module.networks: must be of gcn, sage, gat, gin, gcnii, mlp, not gnc"),
    ("module.distil.direction=loss",
     "module.distil.direction: loss needs a label at every node; write nodes=train, or direction=confidence"),
    ("module.distil.tau=0", "module.distil.tau: must be above 0, not 0.0"),
    ("trainer.gradient_clip_val=1",
     "trainer.gradient_clip_val: method freekd has 2 optimizers and steps them itself. Write trainer.gradient_clip_val=null"),
    ("strategy=deepspeed",
     "strategy=deepspeed: takes one optimizer, and method freekd has 2. Write strategy=ddp or strategy=fsdp or strategy=single"),
])
def test_what_cannot_be_is_refused_in_one_line(here, word, line):
    done = here("train", "experiment=freekd_debug", word)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == f"error: {line}"


def distributed(fivefold_in, tmp_path: Path, name: str, *words: str):
    done = fivefold_in(tmp_path, "train", *latest([*WORDS, f"run.root={tmp_path}", f"run.name={name}", "trainer.limit_val_batches=1",
                       "trainer.val_every_n_steps=4", "module.network.dropout=0", "module.network.attention_dropout=0", *words]))
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True), done


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("more", [[], ["module.distil.direction=mutual"]])
def test_two_processes_that_see_the_same_graph_train_like_one(strategy, more, fivefold_in, tmp_path):
    """If the ranks parted, or a gradient were not averaged, their common weights could not be those of one process."""
    words = ["module.reward.kind=centered", "trainer.max_steps=6", *more]
    alone, _ = distributed(fivefold_in, tmp_path, "alone", *words)
    together, done = distributed(fivefold_in, tmp_path, "together", *words, f"strategy={strategy}", "trainer.devices=2")
    assert "find_unused_parameters" not in done.stderr
    for name, value in alone["state_dict"].items():
        assert torch.allclose(value, together["state_dict"][name], atol=1e-5), name
    assert together["global_step"] == 6
    assert len(together["freekd"]["told"]) == 2


@pytest.mark.slow
def test_spread_weights_train_like_copies_on_mini_batches_and_go_on_as_copies(fivefold_in, tmp_path):
    """FSDP2 beside DDP: each process has its own nodes, so gradients differ; the second half goes from rows to copies."""
    words = ["data.batch=clustered", "data.batch_size=300", "trainer.devices=2", "checkpoint.every_n_steps=4", "checkpoint.keep=-1",
             "trainer.max_steps=8"]
    copies, _ = distributed(fivefold_in, tmp_path, "copies", *words, "strategy=ddp")
    rows, _ = distributed(fivefold_in, tmp_path, "rows", *words, "strategy=fsdp")
    first = steps_saved(tmp_path / "rows" / "checkpoints")[0]
    moved, done = distributed(fivefold_in, tmp_path, "moved", *words, "strategy=ddp", f"run.resume={first}")
    assert "resumed at step 4)" in done.stdout
    for other in (rows, moved):
        assert len(copies["state_dict"]) == len(other["state_dict"])
        for name, value in copies["state_dict"].items():
            assert torch.allclose(value, other["state_dict"][name], atol=1e-5), name
    assert (tmp_path / "rows" / "teachers.png").stat().st_size > 5000


@pytest.mark.slow
def test_two_processes_that_share_mini_batches_go_on_exactly_and_reach_what_one_reaches(fivefold_in, tmp_path):
    words = ["data.batch=clustered", "data.batch_size=300", "trainer.max_steps=100", "trainer.val_every_n_steps=10"]
    pair = [*words, "strategy=ddp", "trainer.devices=2", "checkpoint.every_n_steps=50", "checkpoint.keep=-1"]
    whole, _ = distributed(fivefold_in, tmp_path, "whole", *pair)
    half = shutil.copytree(tmp_path / "whole", tmp_path / "half", symlinks=True)
    steps_saved(half / "checkpoints")[-1].unlink()
    record = json.loads((half / "run.json").read_text())
    (half / "run.json").write_text(json.dumps({**record, "status": "running"}))  # as a kill would have left it
    resumed, done = distributed(fivefold_in, tmp_path, "half", *pair, "run.resume=auto")
    assert "resumed at step 50)" in done.stdout
    assert_same(whole["state_dict"], resumed["state_dict"])
    assert_same(whole["freekd"], resumed["freekd"])
    alone, _ = distributed(fivefold_in, tmp_path, "alone", *words, "data.batch_size=600")
    best = [float(c["freekd"]["scores"]["best"][:2, 2].mean()) for c in (whole, alone)]  # test micro-F1 at the best validation
    assert min(best) > 0.7
    assert abs(best[0] - best[1]) < 0.03
