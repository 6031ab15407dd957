"""Events come in time order, task after task, and one integer restores the place."""

import pytest
import torch

from datamodules.rows import DataError
from datamodules.task_order import TaskLoader
from pipelines.callbacks import size_of


def loader(batch_size=3, passes=2, sizes=(7, 2)):
    events, start = [], 0
    for size in sizes:
        events.append(torch.arange(start, start + 2 * size, 2))
        start += 2 * size
    src = torch.arange(start) * 10
    return TaskLoader(src, src + 1, src + 2, events, batch_size, passes)


def test_each_task_is_passed_over_in_time_order_before_the_next_one_opens():
    made = loader()
    found = [(b.task, b.number, b.event.tolist(), b.first, b.last, b.final) for b in made]
    assert len(found) == len(made) == 8
    assert found[:3] == [(0, 0, [0, 2, 4], True, False, False), (0, 0, [6, 8, 10], False, False, False), (0, 0, [12], False, True, False)]
    assert found[5] == (0, 1, [12], False, True, True)
    assert found[6:] == [(1, 0, [14, 16], True, True, False), (1, 1, [14, 16], True, True, True)]


def test_a_batch_carries_the_ends_and_times_of_its_events():
    batch = loader().batch(1)
    assert batch.src.tolist() == [60, 80, 100]
    assert batch.dst.tolist() == [61, 81, 101]
    assert batch.t.tolist() == [62, 82, 102]


def test_a_loader_goes_on_where_another_stood():
    one, two = loader(), loader()
    walk = iter(one)
    for _ in range(4):
        next(walk)
    two.load_state_dict(one.state_dict())
    assert [b.event.tolist() for b in two] == [b.event.tolist() for b in walk]


def test_another_batch_size_is_refused_where_a_run_goes_on():
    with pytest.raises(DataError, match=r"data\.passes: the checkpoint was made with 2 passes of"):
        loader(batch_size=4).load_state_dict(loader().state_dict())


def test_a_task_without_training_events_is_refused():
    with pytest.raises(DataError, match="task 1 has no training events"):
        loader(sizes=(3, 0))


def test_throughput_counts_the_events_of_a_batch():
    assert size_of(loader(batch_size=7).batch(0)) == (7, 7)


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 9])
def test_processes_share_a_batch_without_overlap_in_order(processes):
    batch = loader(batch_size=7).batch(0)
    parts = [batch.share(rank, processes) for rank in range(processes)]
    assert torch.equal(torch.cat([p.event for p in parts]), batch.event)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
