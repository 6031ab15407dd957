"""Collated batches against values worked out token by token, and against what models of transformers make of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_rationales import some_rows, tokenizer_of
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from datamodules.blocks import IGNORED, PADDING
from datamodules.collation import Form, FullBatches, Prompts, TrainingBatches, full_batches, loader_of, shared_out
from datamodules.curriculum import Curriculum, Draw
from datamodules.samples import ANSWER, PROMPT, Wording, make_samples, prompt_tokens

EOS, PAD = 0, 1
COUNT = 16


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Samples with a different weight on each token."""
    samples, _ = make_samples(tmp_path_factory.mktemp("samples"), some_rows(COUNT), Wording(), tokenizer_of("gpt2"), 1000)
    return Curriculum(samples, np.linspace(0.1, 0.9, len(samples.ids), dtype=np.float32))


def draws_of(samples, seed=0):
    chance = np.random.default_rng(seed)
    return [Draw(index, int(chance.integers(0, samples.counts[index] + 1)), 123.0) for index in chance.permutation(COUNT).tolist()]


def tokens(samples, index):
    """List (place in the flat arrays, id, step) of each token of a sample."""
    span = samples.span(index)
    return list(zip(range(span.start, span.stop), samples.ids[span].tolist(), samples.steps[span].tolist()))


def is_learned(step, given):
    return step == ANSWER or step >= given


def weight(curriculum, place, step):
    return 1.0 if step == ANSWER else float(curriculum.weights[place])


def test_a_causal_batch_predicts_each_token_that_is_not_given_from_the_one_before_it(taught):
    draws = draws_of(taught.samples)
    batch = TrainingBatches(taught, Form("causal", EOS, PAD)).__getitems__(draws)
    for row, draw in enumerate(draws):
        sample = tokens(taught.samples, draw.index)
        pad = batch["input_ids"].shape[1] - len(sample) + 1
        assert batch["input_ids"][row].tolist() == [token for _, token, _ in sample[:-1]] + [PAD] * pad
        assert batch["attention_mask"][row].tolist() == [1] * (len(sample) - 1) + [0] * pad
        labels = [token if is_learned(step, draw.given) else IGNORED for _, token, step in sample[1:]]
        assert batch["labels"][row].tolist() == labels + [IGNORED] * pad
        weights = [weight(taught, place, step) if is_learned(step, draw.given) else 0.0 for place, _, step in sample[1:]]
        assert batch["weights"][row].tolist() == weights + [0.0] * pad
    learned = torch.full((batch["labels"].numel(),), IGNORED)
    learned[batch["places"]] = batch["labels"].flatten()[batch["places"]]
    assert torch.equal(learned.view_as(batch["labels"]), batch["labels"])
    assert (batch["labels"].flatten()[batch["places"]] != IGNORED).all()
    assert batch["index"].tolist() == [draw.index for draw in draws]
    assert batch["total"].shape == ()
    assert float(batch["total"]) == 123.0
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "input_ids": torch.int64, "attention_mask": torch.int64, "labels": torch.int64, "weights": torch.float32, "places": torch.int64,
        "index": torch.int64, "total": torch.float32}


@pytest.mark.parametrize("placement", ["encoder", "decoder"])
def test_a_seq2seq_batch_gives_steps_to_the_encoder_or_ignores_their_labels_in_the_decoder(taught, placement):
    draws = draws_of(taught.samples, 1)
    batch = TrainingBatches(taught, Form("seq2seq", EOS, PAD, placement)).__getitems__(draws)
    for row, draw in enumerate(draws):
        sample = tokens(taught.samples, draw.index)
        moved = [t for t in sample if t[2] == PROMPT or (placement == "encoder" and t[2] != ANSWER and t[2] < draw.given)]
        rest = sample[len(moved) :]
        encoder = [token for _, token, _ in moved] + [EOS]
        assert batch["input_ids"][row][: len(encoder)].tolist() == encoder
        assert batch["attention_mask"][row].sum() == len(encoder)
        assert batch["decoder_input_ids"][row][: len(rest)].tolist() == [PAD, *(token for _, token, _ in rest[:-1])]
        labels = [token if is_learned(step, draw.given) else IGNORED for _, token, step in rest]
        assert batch["labels"][row].tolist() == labels + [IGNORED] * (batch["labels"].shape[1] - len(labels))
        weights = [weight(taught, place, step) if is_learned(step, draw.given) else 0.0 for place, _, step in rest]
        assert batch["weights"][row][: len(rest)].tolist() == weights
        assert not batch["weights"][row][len(rest) :].any()


@pytest.mark.parametrize("form", [Form("causal", EOS, PAD), Form("seq2seq", EOS, PAD, "encoder"), Form("seq2seq", EOS, PAD, "decoder")])
def test_tokens_to_be_learned_are_as_many_as_the_order_counts(taught, form):
    draws = draws_of(taught.samples, 2)
    batch = TrainingBatches(taught, form).__getitems__(draws)
    counted = [int(taught.samples.active(draw.index, draw.given)) for draw in draws]
    assert (batch["labels"] != IGNORED).sum(1).tolist() == counted


def test_without_weights_every_token_to_be_learned_weighs_one(taught):
    draws = draws_of(taught.samples, 3)
    batch = TrainingBatches(Curriculum(taught.samples), Form("causal", EOS, PAD)).__getitems__(draws)
    assert torch.equal(batch["weights"], (batch["labels"] != IGNORED).float())


def tiny_t5(vocabulary):
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(vocab_size=vocabulary, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
                                               dropout_rate=0.0,
                                               pad_token_id=PAD, decoder_start_token_id=PAD, eos_token_id=EOS)).eval()


def test_given_steps_in_the_decoder_are_the_full_sequence_with_their_losses_left_out(taught):
    """The trap of transformers: labels of -100 alone would put padding in place of the given steps."""
    model, draws = tiny_t5(500), draws_of(taught.samples, 4)
    dataset = TrainingBatches(taught, Form("seq2seq", EOS, PAD, "decoder"))
    masked = dataset.__getitems__(draws)
    full = dataset.__getitems__([Draw(draw.index, 0, 1.0) for draw in draws])
    assert all(torch.equal(masked[name], full[name]) for name in ("input_ids", "attention_mask", "decoder_input_ids"))
    assert torch.equal(model._shift_right(full["labels"])[full["labels"] != IGNORED], full["decoder_input_ids"][full["labels"] != IGNORED])
    inputs = {name: masked[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    with torch.no_grad():
        theirs = model(input_ids=full["input_ids"], attention_mask=full["attention_mask"], labels=full["labels"]).logits
        each = F.cross_entropy(theirs.flatten(0, 1), full["labels"].flatten(), reduction="none", ignore_index=IGNORED)
        ours = F.cross_entropy(model(**inputs).logits.flatten(0, 1), masked["labels"].flatten(), reduction="sum", ignore_index=IGNORED)
    expected = (each * (masked["labels"] != IGNORED).flatten()).sum()
    assert expected < each.sum()
    torch.testing.assert_close(ours, expected)


def test_a_causal_batch_gives_the_loss_that_gpt2_computes_itself(taught):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=500, n_embd=16, n_layer=2, n_head=2, n_positions=600)).eval()
    batch = FullBatches(TrainingBatches(taught, Form("causal", EOS, PAD))).__getitems__(list(range(COUNT)))
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        ours = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED)
        whole = torch.cat([batch["input_ids"], torch.full((COUNT, 1), PAD)], 1)
        labels = torch.cat([torch.full((COUNT, 1), IGNORED), batch["labels"]], 1)  # not shifted, as transformers wants them
        mask = torch.cat([batch["attention_mask"], torch.zeros(COUNT, 1, dtype=torch.int64)], 1)
        torch.testing.assert_close(model(input_ids=whole, attention_mask=mask, labels=labels).loss, ours)


def test_prompts_are_padded_on_the_left_for_decoders_and_closed_for_encoders(taught):
    questions = [[5, 6, 7], [8], [9, 9]]
    left = Prompts(questions, Form("causal", EOS, PAD)).__getitems__([1, 0, PADDING])
    assert left["input_ids"].tolist() == [[PAD, PAD, 8], [5, 6, 7], [5, 6, 7]]
    assert left["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1], [1, 1, 1]]
    assert left["index"].tolist() == [1, 0, PADDING]
    right = Prompts(questions, Form("seq2seq", EOS, PAD)).__getitems__([1, 0])
    assert right["input_ids"].tolist() == [[8, EOS, PAD, PAD], [5, 6, 7, EOS]]
    assert right["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("layout", ["causal", "seq2seq"])
def test_a_prompt_is_what_training_puts_before_the_first_step(taught, layout):
    form = Form(layout, EOS, PAD)
    prompts = prompt_tokens([row.question for row in taught.samples.rows], Wording(), tokenizer_of("gpt2"))
    for index in range(COUNT):
        asked = Prompts(prompts, form).__getitems__([index])["input_ids"][0].tolist()
        batch = TrainingBatches(taught, form).__getitems__([Draw(index, 0, 1.0)])
        taught_from = batch["input_ids"][0].tolist()
        first = int((batch["labels"][0] != IGNORED).nonzero()[0])
        assert asked == (taught_from if layout == "seq2seq" else taught_from[: first + 1])


def test_a_row_that_only_fills_up_teaches_nothing(taught):
    for form in (Form("causal", EOS, PAD), Form("seq2seq", EOS, PAD, "encoder"), Form("seq2seq", EOS, PAD, "decoder")):
        batch = FullBatches(TrainingBatches(taught, form)).__getitems__([3, PADDING])
        assert (batch["labels"][1] == IGNORED).all()
        assert not batch["weights"][1].any()
        assert batch["index"].tolist() == [3, PADDING]
        assert float(batch["total"]) == (batch["labels"][0] != IGNORED).sum()


def test_full_batches_hold_exactly_the_samples_asked_for_in_their_order(taught):
    indices = [9, 2, 2, 15, 0]
    found = list(full_batches(FullBatches(TrainingBatches(taught, Form("causal", EOS, PAD))), indices, 2))
    assert [batch["index"].tolist() for batch in found] == [[9, 2], [2, 15], [0]]
    for batch in found:
        for row, index in enumerate(batch["index"].tolist()):
            labels = [token for token in batch["labels"][row].tolist() if token != IGNORED]
            assert labels == [token for _, token, step in tokens(taught.samples, index) if step != PROMPT]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_questions_are_shared_out_once_each_by_length_in_equally_many_rows(world):
    lengths = np.random.default_rng(0).integers(1, 50, 17)
    shares = [shared_out(lengths, 4, rank, world) for rank in range(world)]
    assert len({tuple(map(len, share)) for share in shares}) == 1
    flat = [index for share in shares for batch in share for index in batch]
    assert sorted(index for index in flat if index != PADDING) == list(range(17))
    assert flat.count(PADDING) == -17 % world
    for share in shares:
        seen = [lengths[index] for batch in share for index in batch if index != PADDING]
        assert seen == sorted(seen)


def test_loading_held_out_batches_draws_nothing_from_the_random_numbers_of_the_run():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert len(list(loader_of(Prompts([[1], [2], [3]], Form("causal", EOS, PAD)), [[0, 1], [2]]))) == 2
    assert torch.equal(torch.get_rng_state(), before)
