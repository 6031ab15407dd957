"""The optimizer benchmark: what it measures is what is there, and it does not call a miss a success."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "optimizer_step.py"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("optimizer_step_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_peak_counts_everything_that_is_held_at_once(benchmark):
    x = torch.ones(300, 400)

    def work():
        y = x * 2
        z = y + x
        del y
        return z * x  # two alive again

    assert 2 * x.nbytes <= benchmark.peak_temporary_bytes(work, CPU) < 2.1 * x.nbytes
    assert benchmark.peak_temporary_bytes(lambda: x.mul_(2.0), CPU) < 1000


@pytest.mark.parametrize(("rows", "columns"), [(256, 256), (256, 512), (512, 256)])
def test_a_step_needs_no_second_matrix(benchmark, rows, columns):
    parameter, gradient = torch.nn.Parameter(torch.zeros(rows, columns)), benchmark.gradient_like_training(rows, columns, CPU)
    optimizer = benchmark.contenders(rank=32)[benchmark.OURS](parameter)
    for _ in range(2):  # the first step refreshes
        parameter.grad = gradient.clone()
        peak = benchmark.peak_temporary_bytes(optimizer.step, CPU)
    assert 0 < peak <= 0.5 * gradient.nbytes


def test_every_installed_contender_is_measured_in_turn(benchmark):
    found = benchmark.measure_steps(96, 64, 8, CPU, seconds=0)
    assert {benchmark.ADAMW, benchmark.OFFICIAL, benchmark.OURS} <= found.keys()
    assert {len(m.steps) for m in found.values()} == {5}
    assert all(m.step > 0 for m in found.values())


def test_state_counts_the_memory_behind_views_and_projectors(benchmark):
    found = benchmark.measure_steps(96, 64, 8, CPU, seconds=0)
    assert found[benchmark.ADAMW].state == pytest.approx(2, abs=0.01)
    assert found[benchmark.OURS].state == pytest.approx((2 * 96 * 8 + 64 * 8) / (96 * 64), abs=0.01)
    assert found[benchmark.OFFICIAL].state == pytest.approx((2 * 96 * 8 + 64 * 64) / (96 * 64), abs=0.01)  # keeps all of V'


def test_a_missed_goal_is_called_missed(benchmark):
    goal = benchmark.Goal("step", 0.5)
    assert [benchmark.judged(goal, ratio) for ratio in (0.5, 0.51, None)] == ["0.50 (kept)", "0.51 (MISSED)", "not installed"]


def test_the_script_prints_and_writes_its_tables(benchmark, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(benchmark, "SHAPES", [(64, 48, 4), (48, 64, 4)])
    monkeypatch.setattr(sys, "argv", ["optimizer_step.py", "--seconds", "0.01", "--markdown", str(tmp_path / "figures.md")])
    threads = torch.get_num_threads()
    benchmark.main()
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert printed.strip() == (tmp_path / "figures.md").read_text().strip()
    assert printed.count("| 48x64, r 4 |") == 5
    widths = {line.count("|") for line in printed.split("\n\n")[1].splitlines()}
    assert len(widths) == 1
