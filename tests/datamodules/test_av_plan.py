import numpy as np
import pytest

from datamodules.av_exam import Exam, stepwise
from datamodules.av_plan import Item, batches, deal, item_of, plan, tokens_of
from datamodules.av_questions import Audio, Picture, Video
from datamodules.av_synthetic import SyntheticQuestions
from datamodules.deaftest import DeafTest


def made(count=500, seed=0):
    """Items whose costs differ by ten, as the benchmark's do."""
    rng = np.random.default_rng(seed)
    return [Item(index, f"q{index}", f"k{index}", f"mix {rng.integers(5)}", float(rng.uniform(100, 1000))) for index in range(count)]


@pytest.mark.parametrize("processes", [1, 2, 3, 7, 600])
def test_every_item_is_dealt_once_whatever_the_number_of_processes(processes):
    shares = deal(made(), processes)
    assert len(shares) == processes
    assert sorted(item.index for share in shares for item in share) == list(range(500))


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_shares_cost_the_same_up_to_one_item(processes):
    items = made()
    costs = [sum(item.cost for item in share) for share in deal(items, processes)]
    assert max(costs) - min(costs) <= max(item.cost for item in items)
    assert max(costs) < 1.01 * sum(costs) / processes


def test_a_batch_holds_one_mix_and_no_more_than_its_size():
    found = batches(made(), 8)
    assert all(len({item.mix for item in batch}) == 1 and len(batch) <= 8 for batch in found)
    assert sorted(item.index for batch in found for item in batch) == list(range(500))
    assert sum(len(batch) < 8 for batch in found) <= 5  # one remainder a mix


def test_what_is_finished_is_left_out_and_the_rest_comes_once():
    items = made()
    finished = {item.key for item in items[::3]}
    left = [item.key for share in plan(items, finished, 3, 4) for batch in share for item in batch]
    assert sorted(left) == sorted({item.key for item in items} - finished)
    assert plan(items, {item.key for item in items}, 2, 4) == [[], []]


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_processes_in_step_are_shown_pictures_at_the_same_time(processes):
    """Those that gather each other's weights would wait for ever if one called the eye and another did not."""
    mixed = [*SyntheticQuestions(1, 2), *DeafTest(1, "valid", 20)]
    items = [item_of(index, question, "both") for index, question in enumerate(mixed)]
    found = stepwise(plan(items, [], processes, 3))
    assert len({len(own) for own in found}) == 1
    for step in zip(*found, strict=True):
        assert len({"img" in batch[0].mix or "video" in batch[0].mix for batch, _ in step}) == 1
    asked = [item.key for own in found for batch, spare in own for item in batch if not spare]
    assert sorted(asked) == sorted(item.key for item in items)


def test_a_question_that_comes_twice_is_named():
    with pytest.raises(ValueError, match="question q7: comes twice"):
        plan([*made(10), made(10)[7]], [], 1, 1)


def test_a_key_tells_source_words_and_media_apart():
    one, other = SyntheticQuestions(1, 2)[3], SyntheticQuestions(2, 2)[3]
    keys = {item_of(0, one, "a").key, item_of(0, one, "b").key, item_of(0, other, "a").key}
    assert len(keys) == 3
    assert item_of(5, SyntheticQuestions(1, 2)[3], "a").key in keys


def test_costs_are_tokens_of_28_by_28_pixels_and_forty_milliseconds():
    assert tokens_of(Audio(np.zeros((2, 16_000), np.float32), 16_000)) == 25
    assert tokens_of(Picture(np.zeros((280, 56, 3), np.uint8))) == 20
    assert tokens_of(Video(np.zeros((5, 280, 56, 3), np.uint8), 2.0)) == 100


@pytest.mark.parametrize("processes", [1, 2, 5, 40])
def test_processes_in_step_get_as_many_batches_and_no_question_counts_twice(processes):
    exam = Exam(SyntheticQuestions(1, 1), "synthetic", {4: "audio1: is silent"})
    finished = {item.key for item in exam.items[:3]}
    shares = [list(exam.loader(finished, rank, processes, 4, in_step=True)) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1
    counted = [item.index for share in shares for batch in share if not batch.spare for item in batch.items]
    assert sorted(counted) == [3, *range(5, 26)]
    assert [question.id for share in shares for batch in share for question in batch.questions] == [
        item.id for share in shares for batch in share for item in batch.items]
    assert list(exam.unusable) == [exam.items[4].key]
    alone = [list(exam.loader(finished, rank, processes, 4)) for rank in range(processes)]
    assert not any(batch.spare for share in alone for batch in share)
