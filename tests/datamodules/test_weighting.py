"""Batches for learning token weights: question and rationale in, answer out."""

import numpy as np
import pytest
import torch

from datamodules.blocks import IGNORED, PADDING
from datamodules.problems import problems
from datamodules.rows import DataError
from datamodules.samples import ANSWER, Samples, Wording, make_samples
from datamodules.tokenization import train_tokenizer
from datamodules.weighting import KINDS, NO_TOKEN, WeightingData, kind_of


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Samples of 40 problems and their tokenizer."""
    rows = problems({"train": 40}, 4, 0)
    tokenizer = train_tokenizer([" ".join(Wording().parts(row)) for row in rows], 300, for_answers=True)
    return make_samples(tmp_path_factory.mktemp("samples"), rows, Wording(), tokenizer, 1000)[0], tokenizer


def text(tokenizer, ids):
    return tokenizer.decode([int(token) for token in ids if token != IGNORED], skip_special_tokens=True)


def test_a_batch_holds_prompt_and_rationale_with_the_answer_as_labels(made):
    samples, tokenizer = made
    batch = WeightingData(samples, tokenizer, 8).rows.__getitems__([5, 0, 31])
    for row, index in enumerate([5, 0, 31]):
        steps, ids = batch["steps"][row], batch["input_ids"][row]
        span = samples.span(index)
        given = samples.steps[span] != ANSWER
        assert ids[steps != NO_TOKEN].tolist() == samples.ids[span][given].tolist()
        assert steps[steps != NO_TOKEN].tolist() == samples.steps[span][given].tolist()
        assert text(tokenizer, ids[steps >= 0]).strip() == " ".join(samples.rows[index].steps)
        assert text(tokenizer, batch["labels"][row]).strip() == samples.rows[index].answer
        assert batch["labels"][row][batch["labels"][row] != IGNORED][-1] == tokenizer.eos_token_id
    assert len({int((row >= 0).int().argmax()) for row in batch["steps"]}) == 1, "rationales begin in one column"
    assert batch["index"].tolist() == [5, 0, 31]


def test_every_sample_is_weighed_once_and_those_held_out_are_not_trained_on(made):
    data = WeightingData(*made, batch_size=5, held_out=0.2)
    assert sorted(index for batch in data.everything(7) for index in batch["index"].tolist()) == list(range(40))
    trained = [index for batch in data.train_dataloader() for index in batch["index"].tolist()]
    validated = [index for batch in data.val_dataloader() for index in batch["index"].tolist()]
    assert len(validated) == 8
    assert len(trained) == len(set(trained)) == 30, "of 32, as many as fill batches"
    assert not set(trained) & set(validated)
    assert sorted([*data.held_out, *data.training]) == list(range(40))


def test_two_processes_share_the_batches_of_one_and_fill_up_their_held_out_rows(made, monkeypatch):
    alone = next(iter(WeightingData(*made, batch_size=6, held_out=0.12).train_dataloader()))["index"].tolist()
    shares, validated = [], []
    for rank in range(2):
        monkeypatch.setattr("datamodules.weighting.place", lambda rank=rank: (rank, 2))
        data = WeightingData(*made, batch_size=3, held_out=0.12)
        shares += next(iter(data.train_dataloader()))["index"].tolist()
        validated.append([index for batch in data.val_dataloader() for index in batch["index"].tolist()])
    assert shares == alone
    assert len(validated[0]) == len(validated[1]) == 3
    assert sorted(validated[0] + validated[1]) == [PADDING, *data.held_out]


def test_the_order_goes_on_where_a_checkpoint_was_taken(made):
    whole, begun, resumed = (WeightingData(*made, batch_size=4).train_dataloader() for _ in range(3))
    expected = [batch["index"].tolist() for _ in range(2) for batch in whole]
    iterator = iter(begun)
    first = [next(iterator)["index"].tolist() for _ in range(5)]
    resumed.load_state_dict(begun.state_dict())
    rest = [batch["index"].tolist() for _ in range(2) for batch in resumed]
    assert first + rest[: len(expected) - 5] == expected


def test_another_predictor_gets_the_answers_in_its_own_tokens(made, tmp_path):
    samples, tokenizer = made
    other = train_tokenizer(["other words with 12 and 13"], 280)
    other.save_pretrained(tmp_path)
    batch = WeightingData(samples, tokenizer, 8, predictor=str(tmp_path)).rows.__getitems__([3, 4])
    for row, index in zip(batch["labels"], (3, 4)):
        assert other.decode(row[row != IGNORED]) == samples.rows[index].answer + other.eos_token
    assert text(tokenizer, batch["input_ids"][0][batch["steps"][0] >= 0]).strip() == " ".join(samples.rows[3].steps)


def test_tokens_are_of_a_kind(made):
    samples, tokenizer = made
    assert [KINDS[kind_of(piece)] for piece in (" 12", "7", "$3", " +", "=", " - ", " apples", ".", "", " ")] == [
        "digits", "digits", "digits", "operators", "operators", "operators", "words", "words", "words", "words"]
    kinds = WeightingData(samples, tokenizer, 8).kinds(len(tokenizer) + 5)
    assert kinds.shape == (len(tokenizer) + 5,)
    assert KINDS[kinds[tokenizer.convert_tokens_to_ids("7")]] == "digits"
    assert KINDS[kinds[tokenizer.convert_tokens_to_ids("Ġ=")]] == "operators"


def test_rows_that_cannot_be_weighed_are_named(made):
    samples, tokenizer = made
    with pytest.raises(DataError, match=r"38 samples .* one batch of 39; lower module\.weighting\.batch_size"):
        WeightingData(samples, tokenizer, 39).train_dataloader()
    bare = Samples(np.array([1, 2], np.int32), np.array([-1, -2], np.int16), np.array([0, 2]), np.array([0]), samples.rows[:1], "key")
    with pytest.raises(DataError, match=f"{samples.rows[0].id} has no rationale"):
        WeightingData(bare, tokenizer, 1)


def test_answers_that_are_all_the_same_keep_their_end(made):
    samples, tokenizer = made
    same = Samples(*[np.concatenate([a[samples.span(0)]] * 2) for a in (samples.ids, samples.steps)],
                   np.arange(3) * samples.offsets[1], np.repeat(samples.counts[:1], 2), samples.rows[:1] * 2, "key")
    labels = WeightingData(same, tokenizer, 1).rows.__getitems__([0, 1])["labels"]
    assert torch.equal(labels, torch.full((2, 1), tokenizer.eos_token_id))
