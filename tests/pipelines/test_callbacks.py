"""Seeds, learning rate, throughput and the last validation."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules.graphs import Graph, batch_of, whole
from pipelines.callbacks import LearningRate, RunRecord, SeedEachBatch, Throughput, size_of
from pipelines.tracking import MetricsFile
from tests.pipelines.tiny import Line, Numbers, trainer


class Draws(Line):
    """A module that notes a random number of each generator in every training batch."""

    def __init__(self, noise=0):
        super().__init__()
        self.noise, self.drawn = noise, []

    def training_step(self, batch, batch_idx):
        self.drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        return super().training_step(batch, batch_idx)

    def on_validation_epoch_end(self):
        torch.rand(self.noise)


def drawn(seed, **more):
    module = Draws(more.pop("noise", 0))
    trainer(max_epochs=2, callbacks=[SeedEachBatch(seed)], **more).fit(module, datamodule=Numbers(4))
    return module.drawn


def test_random_numbers_of_a_batch_depend_on_seed_and_place_and_on_nothing_before():
    first = drawn(1)
    assert len(set(first)) == 8
    assert drawn(1, noise=17, val_check_interval=1) == first
    assert not set(drawn(2)) & set(first)


def test_first_weights_do_not_depend_on_what_was_drawn_before_setup():
    weights = []

    class Late(Line):
        def configure_model(self):
            weights.append(torch.rand(3))

    for _ in range(2):
        trainer(max_steps=1, callbacks=[SeedEachBatch(3)]).fit(Late(), datamodule=Numbers(2))
        torch.rand(11)
    assert torch.equal(*weights)


@pytest.mark.parametrize(("more", "expected"), [
    ({"max_steps": 5, "val_check_interval": 2, "check_val_every_n_epoch": None}, [2, 4, 5]),
    ({"max_steps": 4, "val_check_interval": 2, "check_val_every_n_epoch": None}, [2, 4]),
    ({"max_epochs": 2, "val_check_interval": 5, "check_val_every_n_epoch": None}, [5, 8]),
    ({"max_steps": 6}, [4, 6]),
    ({"max_epochs": 2}, [4, 8]),
    ({"max_steps": 5, "accumulate_grad_batches": 2}, [2, 4, 5]),
    ({"max_steps": 5, "limit_val_batches": 0}, []),
])
def test_the_last_step_is_validated_once_whatever_the_interval(more, expected):
    module, record = Line(), RunRecord()
    trainer(**more, callbacks=[record]).fit(module, datamodule=Numbers(4))
    assert module.validated == expected
    assert record.validated_step == (expected[-1] if expected else -1)
    assert set(record.metrics) == ({"val/loss"} if expected else set())


def rows(tmp_path, *more, **settings):
    logger = MetricsFile(tmp_path)
    trainer(logger=logger, log_every_n_steps=1, callbacks=[*more], **settings).fit(Line(), datamodule=Numbers(8))
    return logger._rows((tmp_path / "metrics.csv").read_bytes())


def test_the_learning_rate_of_a_row_is_the_one_its_step_was_made_with(tmp_path):
    found = rows(tmp_path, LearningRate(), max_steps=4, limit_val_batches=0)
    assert [float(row["train/lr"]) for row in found] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])


def test_rates_are_logged_from_the_second_batch_and_no_operations_are_counted_on_an_unknown_device(tmp_path, monkeypatch):
    monkeypatch.setattr(Line, "flops_per_batch", property(lambda self: pytest.fail("counted")), raising=False)
    found = rows(tmp_path, Throughput(2), max_steps=4, val_check_interval=2, check_val_every_n_epoch=None)
    assert [bool(row["train/device/items_per_sec"]) for row in found] == [False, True, True, True]
    for row in found[1:]:
        samples, items = float(row["train/device/samples_per_sec"]), float(row["train/device/items_per_sec"])
        assert items == pytest.approx(3 * samples)
    assert not any("mfu" in key or key.startswith("validate") for key in found[0])


def test_where_the_peak_is_known_mfu_is_operations_a_second_over_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Line, "flops_per_batch", 5000, raising=False)
    monkeypatch.setattr("lightning.pytorch.callbacks.throughput_monitor.get_available_flops", lambda device, dtype: 1e6)
    found = rows(tmp_path, Throughput(2), max_steps=4, limit_val_batches=0)
    for row in found[1:]:
        per_second = 5000 * float(row["train/device/batches_per_sec"])
        assert float(row["train/device/mfu"]) == pytest.approx(per_second / 1e6, rel=1e-6)


def test_a_model_whose_operations_cannot_be_counted_trains_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(Line, "flops_per_batch", property(lambda self: 1 / 0), raising=False)
    monkeypatch.setattr("lightning.pytorch.callbacks.throughput_monitor.get_available_flops", lambda device, dtype: 1e6)
    with pytest.warns(UserWarning, match="no MFU: the operations of a batch cannot be counted"):
        found = rows(tmp_path, Throughput(2), max_steps=3, limit_val_batches=0)
    assert len(found) == 3


@pytest.mark.parametrize(("batch", "size"), [
    (torch.zeros(4, 7), (4, 28)),
    ({"labels": torch.zeros(3, 5), "more": torch.zeros(9)}, (3, 15)),
    ([["name"], (torch.tensor(1.0), torch.zeros(2, 3, 4))], (2, 24)),
    (["no", "tensor"], (1, 1)),
    (SimpleNamespace(units=7, x=torch.zeros(3, 5)), (7, 7)),
])
def test_a_batch_is_measured_by_its_own_word_or_by_its_first_tensor(batch, size):
    assert size_of(batch) == size


def test_a_graph_is_measured_by_the_nodes_that_a_step_is_about():
    nodes = torch.arange(6)
    graph = Graph(torch.rand(6, 2), torch.stack([nodes, nodes.roll(1)]), nodes % 2, nodes < 2, nodes > 4, nodes > 9, 2)
    assert size_of(whole(graph)) == (6, 6)
    assert size_of(batch_of(graph, nodes[:5], 3, torch.tensor([[3], [0]]), torch.empty(2, 0, dtype=torch.long))) == (3, 3)


