"""FreeKD's benchmarks: what is compared does the same work, and a difference is called one only where its interval leaves out zero."""

import importlib.util
import json
import math
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from lightning_modules.freekd.structure import edges_within
from pipelines.config import compose

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def script(name):
    sys.path.insert(0, str(FOLDER))  # as for a script, which finds its neighbours
    try:
        spec = importlib.util.spec_from_file_location(f"{name}_benchmark", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def cost():
    return script("freekd")


@pytest.fixture(scope="module")
def comparison():
    return script("freekd_comparison")


@pytest.fixture
def edges():
    torch.manual_seed(0)
    return edges_within(torch.randint(300, (2, 6000)), torch.arange(300), 300)


def test_the_reward_and_its_loop_agree_and_the_loops_time_is_that_of_all_nodes(cost, edges, monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 12.0])  # ours takes a second, the loop two
    monkeypatch.setattr(cost.time, "process_time", lambda: next(clock))
    found = cost.measure_reward(edges, rounds=1, sample=30)
    assert found.difference < 1e-5
    assert found.medians == (1.0, 2.0 * 300 / 30)


def test_a_node_without_neighbours_is_rewarded_for_all_nodes_alone(cost):
    lonely = edges_within(torch.tensor([[0, 1], [1, 0]]), torch.arange(3), 3)
    ce = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    assert cost.rewards_by_masks(ce, lonely, 0.5, torch.tensor([0, 2])).tolist() == [-2 - 0.5 * 2, -2]


def test_both_forms_of_the_structure_loss_have_one_gradient_and_ours_holds_less(cost, monkeypatch):
    torch.manual_seed(0)
    many = edges_within(torch.randint(400, (2, 40_000)), torch.arange(400), 400)
    found = cost.measure_structure(many, rounds=1)
    assert found.difference < 1e-4
    assert 0 < found.bytes[0] < found.bytes[1]
    assert found.bytes[1] > 2 * len(many.centre) * cost.WIDTH * 4  # both ends of all edges, float32


def test_the_first_epochs_are_not_counted(cost):
    assert cost.per_epoch([100.0, 150.0, 151.0, 152.0, 153.0]) == 1.0


def test_all_contenders_train_and_their_ratios_are_those_of_a_turn(cost, tmp_path):
    setting = cost.Setting("planted", "random", epochs=4)
    found = cost.measure_epochs(setting, cost.data_section(setting, None, tmp_path), 1, tmp_path)
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in found.seconds.values())
    found.seconds = {cost.PLAIN: [1.0, 2.0, 1.0], cost.ALONE: [1.0, 1.0, 1.0], cost.TRAIN: [1.5, 3.0, 9.0], cost.ALL: [2.1, 4.4, 2.0]}
    assert found.over(cost.TRAIN, cost.PLAIN) == 1.5  # of 1.5, 1.5 and 9
    text = cost.report([found], *[cost.Compared(3, 5, [0.001], [2.0], bytes=(2**20, 4 * 2**20))] * 2)
    assert "| planted | 1.50 (kept) | 2.10 (MISSED) | 3.00 | 2.10 |" in text
    assert "| 3 | 5 | 1.00 | 2,000 | 2,000 | 0.0e+00 |" in text
    assert "| 5 | 1.0 | 2000.0 | 0.00 | 1.0 | 4.0 | 0.25 | 0.0e+00 |" in text


def runs(comparison, taught, alone):
    return [comparison.Run(one, other) for one, other in zip(taught, alone, strict=True)]


@pytest.mark.parametrize("shift", [-3.0, 0.1, 3.0])
def test_the_paired_interval_is_that_of_scipy(comparison, shift):
    random = np.random.default_rng(0)
    alone = random.normal(80, 5, 10)
    taught = alone + shift + random.normal(0, 1, 10)
    low, high = ttest_rel(taught, alone).confidence_interval(0.95)
    expected = f"{(taught - alone).mean():+.2f} ± {(high - low) / 2:.2f}"
    verdict = " (better)" if low > 0 else " (worse)" if high < 0 else ""
    assert comparison.paired(runs(comparison, taught, alone)) == expected + verdict


def test_the_interval_of_two_runs_is_the_closed_form(comparison):
    half = math.tan(math.pi * 0.475) * 1.0  # Student's t of one degree of freedom is Cauchy's; gains of 1 and 3 have standard error 1
    assert comparison.paired(runs(comparison, [81.0, 73.0], [80.0, 70.0])) == f"+2.00 ± {half:.2f}"


def test_a_setting_shows_every_contender_beside_its_own_twins(comparison):
    text = comparison.section(comparison.SETTINGS["texas"], {
        "mutual": runs(comparison, [80.0, 82.0], [81.0, 83.0]), "agent": runs(comparison, [84.0, 84.0], [82.0, 80.0])})
    assert "**Texas, edges as stored: sage, sage; mu 1; 2 splits**" in text
    assert "| mutual, labelled nodes | 81.00 | 82.00 | -1.00 ± 0.00 (worse) |" in text
    assert "| agent that leans on confidence, all nodes | 84.00 | 81.00 | +3.00 ± 12.71 |" in text


def test_every_contender_composes_on_every_setting(comparison):
    for setting in comparison.SETTINGS.values():
        for contender in comparison.CONTENDERS.values():
            config = compose([*comparison.COMMON[1:], *setting.words(3, contender.networks), *contender.words])
            assert tuple(config.module.config.networks) == (contender.networks or setting.networks)
            assert config.run.seed == comparison.FIRST_SEED + 3
            assert config.module.config.compare_base
            assert config.data.config.split_index == (3 if setting.splits > 1 else 0)


def test_a_record_is_read_and_not_trained_again_though_its_name_has_dots(comparison, tmp_path, monkeypatch):
    monkeypatch.setitem(comparison.CONTENDERS, "prior0.5", comparison.CONTENDERS["agent"])
    for name, gain in (("prior0.5", 0.02), ("prior0", 0.5)):  # cutting a suffix off would mix them up
        record = tmp_path / f"texas-{name}-150steps-0.json"
        record.write_text(json.dumps({"test/micro_f1": 0.8 + gain, "test/base_micro_f1": 0.8}))
    monkeypatch.setattr(comparison, "fivefold", lambda words: pytest.fail("trained again"))
    found = comparison.train("texas", "prior0.5", 0, Namespace(out=tmp_path, steps=150, root="nowhere"))
    assert found.gain == pytest.approx(2.0)


def test_an_unknown_contender_is_refused_with_the_list(comparison):
    assert comparison.chosen("", comparison.SETTINGS) == list(comparison.SETTINGS)
    with pytest.raises(SystemExit, match=r"agnet: no such name; there are mutual, .*agent"):
        comparison.chosen("mutual,agnet", comparison.CONTENDERS)
