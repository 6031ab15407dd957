import json
import logging
import multiprocessing
import re
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_rationales import SHARED_RATIONALES, needs_shared_rationales, row, tokenizer_of, write_rows

from datamodules.blocks import IGNORED, PADDING
from datamodules.kpod import KpodData, KpodDataConfig
from datamodules.rows import DataError

SMALL = {"problems": 60, "held_out_problems": 11, "problem_steps": 4}


@pytest.fixture
def made(tmp_path):
    """Make a data module of few problems, set up, for a trainer of these options."""

    def make(trainer=None, **options):
        data = KpodData(KpodDataConfig(**{"cache": str(tmp_path / "cache"), **SMALL, **options}))
        data.trainer = SimpleNamespace(**(trainer or {}))
        data.setup()
        return data

    return make


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A folder with a tokenizer that has no × ÷ −."""
    folder = tmp_path_factory.mktemp("t5")
    tokenizer_of("t5").save_pretrained(folder)
    return str(folder)


def test_the_embedded_problems_need_no_file_and_no_network(made):
    data = made()
    assert len(data.samples) == 60
    assert [each.id for each in data.held_out] == [f"problem-valid-{n:05}" for n in range(11)]
    assert data.block_size >= data.samples.longest
    assert data.vocab_size == len(data.tokenizer)
    assert data.pad_token_id != data.eos_token_id
    assert (data.answer_kind, data.seq2seq, data.seed) == ("number", False, 1)
    digits = {data.tokenizer.convert_ids_to_tokens(token) for token in data.tokenizer("1234567890")["input_ids"]}
    assert digits == set("1234567890")


def test_a_second_setup_in_another_process_finds_everything_and_gives_the_same(made, tmp_path, monkeypatch):
    first = made()
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.suffix != ".lock"}
    monkeypatch.setattr("datamodules.samples._tokenise", lambda *words: pytest.fail("tokenised again"))
    monkeypatch.setattr("datamodules.kpod.train_tokenizer", lambda *words, **options: pytest.fail("trained again"))
    second = made()
    assert second.samples.key == first.samples.key
    assert np.array_equal(second.samples.ids, first.samples.ids)
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_until_it_is_taught_it_gives_plain_training_and_then_weights_and_given_steps(made):
    data = made()
    for batch in islice(data.train_dataloader(), 3):
        assert torch.equal(batch["weights"], (batch["labels"] != IGNORED).float())
        assert float(batch["total"]) == (batch["labels"] != IGNORED).sum()
    weights = np.full(len(data.samples.ids), 0.25, np.float32)
    data.teach(weights, np.stack([data.samples.counts] * 2))
    for batch in islice(data.train_dataloader(), 15):  # the first epoch: all steps are given, and the answer weighs one
        assert torch.equal(batch["weights"], (batch["labels"] != IGNORED).float())
        first = data.samples.first(batch["index"].numpy(), data.samples.counts[batch["index"].numpy()])
        assert float(batch["total"]) == (data.samples.offsets[batch["index"].numpy() + 1] - first).sum()
    assert set(next(iter(data.full_batches([3], 1)))["weights"].unique().tolist()) == {0.0, 1.0}  # difficulties take no weights
    walk = data.train_dataloader().order.walk(1, 0)
    assert all(draw.given == 0 for draw in next(walk))


@pytest.mark.parametrize(("limit", "ends"), [(None, 15), (1.0, 15), (4, 4), (0.4, 6), (100, 15)])
def test_accumulation_and_the_length_of_an_epoch_are_the_trainers(made, limit, ends):
    data = made({"accumulate_grad_batches": 4, **({} if limit is None else {"limit_train_batches": limit})})
    order = data.train_dataloader().order
    assert [order.window(number) for number in range(ends)] == [
        range(number - number % 4, min(number - number % 4 + 4, ends)) for number in range(ends)]


def test_validation_asks_every_question_once_and_scores_every_rationale_once(made):
    data = made(eval_batch_size=4)
    questions, rationales = data.val_dataloader()
    asked = {}
    for batch in questions:
        for index, ids, mask in zip(batch["index"].tolist(), batch["input_ids"], batch["attention_mask"]):
            asked[index] = data.tokenizer.decode(ids[mask.bool()])
    assert asked == {n: f"Q: {each.question}\nA: Let's think step by step." for n, each in enumerate(data.held_out)}
    learned = {}
    for batch in rationales:
        for index, labels in zip(batch["index"].tolist(), batch["labels"]):
            learned[index] = data.tokenizer.decode(labels[labels != IGNORED], skip_special_tokens=True).strip()
    assert learned == {n: " ".join([*each.steps, f"Therefore, the answer is {each.answer}"]) for n, each in enumerate(data.held_out)}


def test_processes_share_the_questions_and_fill_up_with_rows_that_do_not_count(made, monkeypatch):
    data, seen = made(eval_batch_size=3), []
    for rank in range(4):
        monkeypatch.setattr("datamodules.kpod.place", lambda rank=rank: (rank, 4))
        for loader in data.val_dataloader():
            batches = list(loader)
            assert len(batches) == 1
            seen += batches[0]["index"].tolist()
    assert sorted(seen) == sorted([*range(11), PADDING] * 2)


@pytest.mark.parametrize("placement", ["encoder", "decoder"])
def test_an_encoder_decoder_gets_its_own_wording_and_batches(made, t5, placement):
    data = made(layout="seq2seq", prefix_placement=placement, tokenizer=t5)
    data.teach(None, np.stack([np.minimum(data.samples.counts, 1)] * 2))
    batch = next(iter(data.train_dataloader()))
    for encoder, decoder, index in zip(batch["input_ids"], batch["decoder_input_ids"], batch["index"].tolist()):
        each = data.samples.rows[index]
        prompt = f"Q: {each.question} A: Let's think step by step."
        given = each.steps[0]
        read = data.tokenizer.decode(encoder, skip_special_tokens=True)
        assert read == (f"{prompt} {given}" if placement == "encoder" else prompt)
        assert data.tokenizer.decode(decoder, skip_special_tokens=True).startswith(given) == (placement == "decoder")
        assert decoder[0] == data.pad_token_id == data.tokenizer.pad_token_id
    assert (batch["labels"] != IGNORED).sum() == batch["total"]


def test_symbols_become_plain_where_the_tokenizer_lacks_them_or_where_it_is_asked(made, t5, tmp_path):
    rows = [row(n, question=f"What is {n} × 2?", rationale=f"{n} × 2 ÷ 1 − 0 = {2 * n}.", answer=f"{2 * n}") for n in range(40)]
    write_rows(tmp_path / "gsm8k.jsonl", rows)
    plain, kept = made(root=str(tmp_path), tokenizer=t5), made(root=str(tmp_path))
    assert plain.samples.rows[0].steps == ("0 * 2 / 1 - 0 = 0.",)
    assert re.fullmatch(r"What is \d+ \* 2\?", plain.held_out[0].question)
    assert kept.samples.rows[0].steps == ("0 × 2 ÷ 1 − 0 = 0.",)
    assert made(root=str(tmp_path), symbols="plain").samples.rows[0].steps == ("0 * 2 / 1 - 0 = 0.",)
    assert made(root=str(tmp_path), tokenizer=t5, symbols="keep").samples.rows[0].steps == ("0 × 2 ÷ 1 − 0 = 0.",)


def test_what_was_read_and_left_out_is_told(made, tmp_path, caplog):
    rows = [row(n, split="train", rationale=... if n < 3 else f"It is {n + 1}. Sure. " + "Very sure. " * (60 if n == 9 else 0))
            for n in range(40)] + [row(n, split="test", rationale=... if n % 2 else "So.") for n in range(50, 60)]
    write_rows(tmp_path / "gsm8k.jsonl", [*rows, row(99, answer="x")])
    with caplog.at_level(logging.INFO):
        data = made(root=str(tmp_path), split="test", max_tokens=100, max_bad=0.05)
    told = [record.getMessage() for record in caplog.records]
    aside = next(line for line in told if line.startswith("1 of 51 rows cannot be used and are left out: gsm8k.jsonl:51: 'answer' is 'x'"))
    assert json.loads(Path(aside.rpartition(" ")[2]).read_text())["where"] == "gsm8k.jsonl:51"
    lengths = np.diff(data.samples.offsets)
    counts = "2.00 steps on average and 2 at most"
    assert f"train: {len(data.samples)} samples, {counts}, {lengths.sum()} tokens, {lengths.max()} in the longest" in told
    without = next(line for line in told if line.startswith("training rows left out"))
    found = re.fullmatch(r"training rows left out: (\d+) without a rationale, 1 above data.max_tokens", without)
    assert len(data.samples) + int(found[1]) + 1 == 36  # a tenth of 40 rows validates
    assert "test: 10 questions, 5 with a rationale" in told


def test_wrong_rationales_are_left_out_of_training_only_if_asked_to_and_never_of_evaluation(made, tmp_path):
    rows = [row(n, split="train" if n < 30 else "valid", teacher_correct=n % 3 != 0) for n in range(40)]
    write_rows(tmp_path / "gsm8k.jsonl", rows)
    assert len(made(root=str(tmp_path)).samples) == 30
    data = made(root=str(tmp_path), filter_incorrect=True)
    assert [each.id for each in data.samples.rows] == [f"q{n}" for n in range(30) if n % 3]
    assert len(data.held_out) == 10


def test_only_the_questions_asked_for_are_asked(made):
    data = made(eval_questions=3, split="test")
    assert [each.id for each in data.held_out] == [f"problem-test-{n:05}" for n in range(3)]
    assert [len(batch["index"]) for batch in data.val_dataloader()[0]] == [3]


def test_a_split_without_rows_and_training_without_rationales_are_refused(made, tmp_path):
    write_rows(tmp_path / "gsm8k.jsonl", [row(n, split="train") for n in range(30)])
    with pytest.raises(DataError, match=r"^data.split=test: there is no such row; give some, or set data.split to valid$"):
        made(root=str(tmp_path), split="test")
    write_rows(tmp_path / "svamp.jsonl", [row(n, rationale=...) for n in range(30)])
    with pytest.raises(DataError, match=r"^no training row has a rationale; give rationales, or let a model write them: data.teacher="):
        made(root=str(tmp_path), dataset="svamp")


@pytest.mark.parametrize(("wrong", "said"), [
    ({"batch_size": 0}, "batch_size: must be above 0, not 0"),
    ({"max_steps": 0}, "max_steps: must be above 0, not 0"),
    ({"seed": -1}, "seed: must not be negative, not -1"),
    ({"held_out_share": 0.5}, "held_out_share: must lie between 0 and 0.5, not 0.5"),
    ({"max_bad": 2.0}, "max_bad: must lie in 0..1, not 2.0"),
    ({"vocab_size": 257}, "vocab_size: must lie in 258..1048576"),
    ({"max_tokens": 7}, "max_tokens: must be at least 8, not 7"),
    ({"root": "a", "train": ["b"]}, "root: names all files of a folder"),
    ({"valid": ["b"]}, "train: must name the training files"),
    ({"hub": "a", "root": "b"}, "hub: choose it or local files"),
    ({"source": "files"}, "source: must go with root or train, not files alone"),
    ({"teacher_rewrites": True}, "teacher: must name a model where teacher_rewrites is true"),
    ({"teacher_temperature": -1.0}, "teacher_temperature: must not be negative"),
])
def test_values_out_of_range_are_refused_by_name(wrong, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        KpodDataConfig(**wrong)


def test_keys_that_the_chosen_source_does_not_read_are_named():
    idle = KpodDataConfig().without_effect()
    assert {"root", "hub", "dataset", "teacher", "filter_incorrect", "prefix_placement"} <= set(idle)
    assert not {"problems", "template", "tokenizer", "vocab_size", "split"} & set(idle)
    files = KpodDataConfig(root="x", layout="seq2seq", tokenizer="y", teacher="z").without_effect()
    assert {"problems", "held_out_problems", "problem_steps", "hub", "vocab_size"} <= set(files)
    assert not {"root", "dataset", "max_steps", "prefix_placement", "teacher_temperature"} & set(files)


def key_in_a_process(cache, queue):
    data = KpodData(KpodDataConfig(cache=cache, **SMALL))
    data.setup()
    queue.put((data.samples.key, data.tokenizer.get_vocab()))


def test_processes_that_start_together_agree(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    ranks = [context.Process(target=key_in_a_process, args=(str(tmp_path / "cache"), queue)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    found = [queue.get(timeout=60) for _ in ranks]
    for rank in ranks:
        rank.join(timeout=60)
    assert found[0] == found[1] == found[2]


@needs_shared_rationales
def test_svamp_trains_on_its_685_rationales_and_asks_questions_without_any(made):
    data = made(root=str(SHARED_RATIONALES), dataset="svamp", vocab_size=600, max_tokens=5000)
    assert len(data.samples) == 685
    assert data.samples.counts.max() == 20
    assert len(data.held_out) == 150
    assert len(data.val_dataloader()) == 1


@needs_shared_rationales
def test_commonsenseqa_answers_are_letters(made, tmp_path):
    lines = (SHARED_RATIONALES / "commonsenseqa.jsonl").read_text().splitlines()
    write_rows(tmp_path / "commonsenseqa.jsonl", lines[::20])
    data = made(root=str(tmp_path), dataset="commonsenseqa", eval_questions=20)
    assert data.answer_kind == "letter"
    assert {each.answer for each in data.held_out} <= set("ABCDE")
    assert data.held_out[0].question.count("\nA. ") == 1
