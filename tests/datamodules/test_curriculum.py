from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from small_rationales import some_rows, tokenizer_of

from datamodules.collation import Form, TrainingBatches
from datamodules.curriculum import Curriculum, CurriculumLoader, CurriculumOrder, Draw
from datamodules.rows import DataError
from datamodules.samples import ANSWER, Wording, make_samples

COUNT = 23


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return make_samples(tmp_path_factory.mktemp("samples"), some_rows(COUNT), Wording(), tokenizer_of("gpt2"), 1000)[0]


@pytest.fixture(scope="module")
def curriculum(samples):
    """Weights by chance, and a table that gives all steps at first and one fewer at each stage, down to none at stage 3."""
    chance = np.random.default_rng(0)
    table = np.maximum(samples.counts - np.arange(4)[:, None] * 2, 0)
    table[3] = 0
    return Curriculum(samples, chance.random(len(samples.ids)).astype(np.float32), table)


def loader(curriculum, batch=3, rank=0, world=1, accumulate=1, epoch_batches=None, workers=0, seed=1, layout="causal"):
    order = CurriculumOrder(curriculum, batch, seed, rank, world, accumulate, epoch_batches)
    return CurriculumLoader(TrainingBatches(curriculum, Form(layout, eos=0, pad=1)), order, workers)


def take(loader, count):
    """Take batches as a trainer does, epoch after epoch."""
    def endless():
        while True:
            yield from loader

    return list(islice(endless(), count))


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others):
        assert batch.keys() == other.keys()
        assert all(torch.equal(batch[name], other[name]) for name in batch)


def learned_by_hand(samples, index, given):
    """Count a sample's tokens to be learned, one by one."""
    return sum(step == ANSWER or step >= given for step in samples.steps[samples.span(index)].tolist())


def test_epoch_e_is_stage_e_plus_1_and_after_the_last_stage_nothing_is_given(curriculum, samples):
    everyone = np.arange(COUNT)
    for epoch in range(3):
        assert np.array_equal(curriculum.given(epoch, everyone), curriculum.table[epoch + 1])
        assert [int(curriculum.given(epoch, index)) for index in range(COUNT)] == curriculum.table[epoch + 1].tolist()
    assert not curriculum.given(3, everyone).any()
    assert not curriculum.given(50, everyone).any()
    assert not Curriculum(samples).given(0, everyone).any()


def test_a_table_or_weights_that_do_not_fit_the_samples_are_refused(curriculum, samples):
    for wrong in ({"weights": curriculum.weights[1:]}, {"table": curriculum.table[:, 1:]}, {"table": curriculum.table + samples.counts},
                  {"table": curriculum.table - 1}, {"weights": curriculum.weights * np.nan}):
        with pytest.raises(AssertionError):
            Curriculum(samples, **wrong)


@pytest.mark.parametrize("epoch_batches", [None, 3, 2, 5])
@pytest.mark.parametrize("accumulate", [1, 2, 4, 100])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_total_of_a_window_is_a_count_over_its_batches_and_all_processes(curriculum, samples, world, accumulate, epoch_batches):
    batch, steps = 2, 40
    walks = [CurriculumOrder(curriculum, batch, 1, rank, world, accumulate, epoch_batches).walk(0, 0) for rank in range(world)]
    drawn = [[next(walk) for walk in walks] for _ in range(steps)]  # batches of every process, over several epochs
    trainer_epoch = min(COUNT // (batch * world), epoch_batches or 1000)
    windows, current = [], []
    for number in range(steps):  # as the trainer accumulates
        current.append(number)
        place = number % trainer_epoch
        if (place + 1) % accumulate == 0 or place + 1 == trainer_epoch:
            windows.append(current)
            current = []
    assert len(windows) > 1
    for window in windows:
        learned = [learned_by_hand(samples, draw.index, draw.given) for number in window for rank in drawn[number] for draw in rank]
        assert {draw.total for number in window for rank in drawn[number] for draw in rank} == {sum(learned)}


def test_draws_follow_the_stages_even_where_the_trainer_ends_its_epochs_early(curriculum):
    batches = COUNT // 3
    walk = CurriculumOrder(curriculum, 3, 1, epoch_batches=2).walk(0, 0)
    for number in range(4 * batches):
        for draw in next(walk):
            assert draw.given == curriculum.given(number // batches, draw.index)


def test_every_epoch_draws_each_sample_at_most_once_and_batches_are_whole(curriculum):
    walk = CurriculumOrder(curriculum, 3, 1).walk(0, 0)
    for _ in range(3):
        indices = [draw.index for _ in range(COUNT // 3) for draw in next(walk)]
        assert len(set(indices)) == len(indices) == 21


def test_fewer_samples_than_a_batch_are_refused(curriculum):
    with pytest.raises(DataError, match=r"^there are 23 training samples, fewer than one batch of 24; lower data.batch_size"):
        CurriculumOrder(curriculum, 12, 1, world_size=2)


@pytest.mark.parametrize("layout", ["causal", "seq2seq"])
def test_workers_give_the_same_batches_as_none_over_all_stages(curriculum, layout):
    expected = take(loader(curriculum, accumulate=2, layout=layout), 30)
    assert_same(take(loader(curriculum, accumulate=2, layout=layout, workers=2), 30), expected)
    assert len({float(batch["total"]) for batch in expected}) > 5


@pytest.mark.parametrize(("stop", "workers"), [*((stop, 0) for stop in range(1, 24)), (1, 2), (7, 2), (12, 2)])
def test_a_run_that_is_resumed_at_any_batch_goes_on_bit_for_bit(curriculum, stop, workers):
    whole = take(loader(curriculum), 24)
    first = loader(curriculum, workers=workers)
    assert_same(take(first, stop), whole[:stop])
    second = loader(curriculum, workers=workers)
    second.load_state_dict(first.state_dict())
    assert_same(take(second, 24 - stop), whole[stop:])


@pytest.mark.parametrize("stop", [2, 4, 6, 7, 9])
def test_with_accumulation_a_run_is_resumed_at_the_end_of_any_window(curriculum, stop):
    whole = take(loader(curriculum, accumulate=2), 20)
    first, second = loader(curriculum, accumulate=2), loader(curriculum, accumulate=2)
    take(first, stop)
    second.load_state_dict(first.state_dict())
    assert_same(take(second, 20 - stop), whole[stop:])


def test_a_checkpoint_of_another_curriculum_is_refused(curriculum, samples):
    state = loader(curriculum).state_dict()
    weights, table = curriculum.weights, curriculum.table
    for other in (Curriculum(samples), Curriculum(samples, weights), Curriculum(samples, weights, table // 2),
                  Curriculum(samples, 1 - weights, table)):
        with pytest.raises(DataError, match="the checkpoint was made with other samples, weights or schedule"):
            loader(other).load_state_dict(state)


def test_processes_may_change_between_epochs_and_in_one_only_where_a_window_begins(curriculum):
    first = loader(curriculum, batch=2, accumulate=2)
    take(first, 6)  # 12 samples, three windows
    ranks = [loader(curriculum, batch=1, rank=rank, world=2, accumulate=2) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(first.state_dict())
    expected = take(first, 6)
    both = zip(*(take(rank, 6) for rank in ranks))
    assert [[int(i) for rank in step for i in rank["index"]] for step in both] == [batch["index"].tolist() for batch in expected]
    with pytest.raises(DataError, match="the checkpoint stands within a step of this run"):
        loader(curriculum, batch=5, accumulate=2).load_state_dict({**first.state_dict(), "epoch": 0, "offset": 12})
    with pytest.raises(DataError, match="the checkpoint stands within a step of this run"):
        loader(curriculum, batch=4, accumulate=2).load_state_dict({**first.state_dict(), "epoch": 0, "offset": 12})
    at_the_end = loader(curriculum, batch=5, accumulate=2)
    at_the_end.load_state_dict({**first.state_dict(), "epoch": 0, "offset": 22})
    assert take(at_the_end, 1)[0]["index"].tolist() == at_the_end.order.permutation(1)[:5].tolist()


def test_a_draw_is_small_and_travels_to_workers():
    import pickle

    assert pickle.loads(pickle.dumps(Draw(3, 1, 20.0))) == Draw(3, 1, 20.0)


@pytest.mark.parametrize("normaliser", ["weights", "sum"])
def test_a_window_can_be_divided_by_its_weights_or_not_at_all(curriculum, normaliser):
    other = replace(curriculum, normaliser=normaliser)
    totals = [(float(batch["total"]), float(batch["weights"].sum())) for batch in loader(other)]
    assert len({total for total, _ in totals}) == (1 if normaliser == "sum" else len(totals))
    for total, weights in totals:
        assert total == (1.0 if normaliser == "sum" else pytest.approx(weights, rel=1e-5))
    assert other.key != curriculum.key
