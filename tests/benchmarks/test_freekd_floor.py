"""The floor of plain networks: its epoch is chosen by validation alone."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datamodules.freekd import FreekdData, FreekdDataConfig

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "freekd_floor.py"


@pytest.fixture(scope="module")
def floor():
    spec = importlib.util.spec_from_file_location("freekd_floor_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def graph():
    data = FreekdData(FreekdDataConfig())
    data.setup()
    return next(iter(data.val_dataloader()))


def test_a_plain_network_learns_and_its_epoch_is_chosen_without_a_test_label(floor, graph):
    logits = floor.trained("sage", graph, 6, seed=1, epochs=40, patience=40)
    assert floor.accuracy(logits, graph.y, graph.test_mask) > 85
    scrambled = torch.where(graph.test_mask, (graph.y + 1) % 6, graph.y)
    assert torch.equal(logits, floor.trained("sage", replace(graph, y=scrambled), 6, seed=1, epochs=40, patience=40))


def test_training_stops_when_validation_has_not_improved_for_so_long(floor, graph):
    short, long = (floor.trained("gcn", graph, 6, seed=1, epochs=epochs, patience=1) for epochs in (400, 800))
    assert torch.equal(short, long)
    assert not torch.equal(short, floor.trained("gcn", graph, 6, seed=1, epochs=60, patience=60))
