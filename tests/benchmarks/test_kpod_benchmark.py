"""The KPOD benchmark: contenders do the same work before their times are compared."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(FOLDER))  # as for a script, which finds its neighbours
    try:
        spec = importlib.util.spec_from_file_location("kpod_benchmark", FOLDER / "kpod.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def data(benchmark, tmp_path_factory):
    return benchmark.open_data("", tmp_path_factory.mktemp("cache"))


def test_one_forward_and_one_a_step_find_the_same_difficulties(benchmark, data):
    found = benchmark.measure_difficulty(data, count=24, rounds=2, size="debug")
    assert 0 < found.difference < 1e-5
    assert found.samples == 24
    assert len(found.ours) == len(found.peer) == 2
    assert found.ratio > 0


def test_the_schedule_is_timed_on_the_table_that_training_gets(benchmark):
    counts = np.random.default_rng(0).integers(1, 8, 3000)
    found = benchmark.measure_schedule(counts, rounds=2)
    assert found.questions == 3000
    assert 0 < found.worst < found.table < 5


def test_the_greedy_in_plain_python_is_compared_choice_by_choice(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "greedy_by_heads", lambda *arguments: np.zeros(3, int))
    with pytest.raises(AssertionError, match="both greedies take the same"):
        benchmark.measure_schedule(np.full(100, 3), rounds=1)


def test_both_trainers_see_the_same_batches_and_find_the_same_losses(benchmark, data, tmp_path):
    pytest.importorskip("trl", reason="TRL comes with `make bench` only")
    found = benchmark.measure_training(data, "", tmp_path, steps=10, rounds=1)
    assert found.difference < 1e-5
    assert found.ratio > 0


def test_the_report_says_when_trl_is_missing(benchmark, data):
    difficulty = benchmark.Difficulty([1.0], [4.0], samples=2, steps=3.0)
    schedule = benchmark.Scheduling([0.1], [0.2], questions=7473, table=6.0, worst=5.5)
    text = benchmark.report(difficulty, [schedule], None)
    assert "| 2 | 3.00 | 1.00 | 4.00 | 0.25 |" in text
    assert "5.50 (MISSED)" in text
    assert "TRL is not installed; `make bench` installs it." in text
