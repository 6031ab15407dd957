import json
import multiprocessing
import time
from pathlib import Path

import pytest
import torch
from small_rationales import row, tokenizer_of, write_rows
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from datamodules import teacher as teacher_module
from datamodules.kpod import KpodData, KpodDataConfig
from datamodules.rows import DataError
from datamodules.samples import Wording
from datamodules.teacher import Teacher

QUESTIONS = [f"What is {number} and {number % 7}?" + " Say it." * (number % 3) for number in range(21)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A decoder with random weights, in a folder with a tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("teacher"), tokenizer_of("gpt2")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=200, initializer_range=1.0,
                        bos_token_id=None, eos_token_id=tokenizer.eos_token_id)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def teacher_of(model, **options):
    return Teacher(str(model), **{"batch_size": 4, "max_new_tokens": 12, **options})


def test_each_question_gets_what_the_model_alone_would_say_to_its_prompt(model, tmp_path):
    written = teacher_of(model).write(QUESTIONS, tmp_path)
    assert list(written) == QUESTIONS
    network, tokenizer = GPT2LMHeadModel.from_pretrained(model).eval(), tokenizer_of("gpt2")
    for question in QUESTIONS[:6]:
        ids = torch.tensor([tokenizer(Wording().prompt(question))["input_ids"]])
        for _ in range(12):  # one token after the other, without a cache or padding
            ids = torch.cat([ids, network(ids).logits[:, -1:].argmax(-1)], 1)
            if ids[0, -1] == tokenizer.eos_token_id:
                break
        alone = tokenizer.decode(ids[0, len(tokenizer(Wording().prompt(question))["input_ids"]) :], skip_special_tokens=True)
        assert written[question] == alone.partition("\nQ:")[0].strip()


def lines_of(folder):
    (file,) = folder.glob("*.jsonl")
    return file, file.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("kept", [0, 1, 6, 8, 20])
def test_a_run_that_was_killed_after_any_row_goes_on_and_ends_with_the_same_rationales(model, tmp_path, kept, temperature, monkeypatch):
    whole = teacher_of(model, temperature=temperature).write(QUESTIONS, tmp_path)
    file, lines = lines_of(tmp_path)
    file.write_bytes(b"".join(lines[:kept]) + lines[kept][: len(lines[kept]) // 2])  # the kill came in the middle of a row
    asked, answers = [], Teacher._answers
    monkeypatch.setattr(Teacher, "_answers", lambda self, model, batch: asked.append(batch) or answers(self, model, batch))
    assert teacher_of(model, temperature=temperature).write(QUESTIONS, tmp_path) == whole
    assert file.read_bytes() == b"".join(lines)
    assert len(asked) == -(-21 // 4) - kept // 4  # batches that were written are not asked again


def test_what_is_written_is_not_asked_again_and_no_model_is_loaded_for_it(model, tmp_path, monkeypatch):
    whole = teacher_of(model).write(QUESTIONS, tmp_path)
    monkeypatch.setattr(teacher_module, "_Model", lambda name: pytest.fail("loaded"))
    assert teacher_of(model).write(QUESTIONS[3:9], tmp_path) == {question: whole[question] for question in QUESTIONS[3:9]}
    assert teacher_of(model).write([], tmp_path) == {}


def test_sampling_follows_its_seed_and_leaves_the_random_numbers_of_the_run_alone(model, tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = teacher_of(model, temperature=2.0, seed=1).write(QUESTIONS, tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert teacher_of(model, temperature=2.0, seed=1).write(QUESTIONS, tmp_path / "b") == first
    assert teacher_of(model, temperature=2.0, seed=2).write(QUESTIONS, tmp_path / "b") != first


def test_each_teacher_and_each_way_of_writing_has_a_file_of_its_own(model, tmp_path):
    teachers = [teacher_of(model), teacher_of(model, temperature=1.0), teacher_of(model, max_new_tokens=5), teacher_of(model, seed=2)]
    for each in teachers:
        each.write(QUESTIONS[:2], tmp_path)
    assert len(list(tmp_path.glob("*.jsonl"))) == 4


class Slow:
    """In place of a model: says how often it was loaded; the first stops answering after two batches."""

    def __init__(self, name):
        record = Path(name).with_name("loaded")
        self.left = None if record.exists() else 2
        with record.open("a") as file:
            file.write("x")

    def answers(self, questions, max_new_tokens, temperature):
        if self.left == 0:
            time.sleep(600)
        self.left = self.left and self.left - 1
        return [f"So {question}" for question in questions]


def ask(folder, name):
    (folder / f"{name}.json").write_text(json.dumps(teacher_of(folder / "model").write(QUESTIONS, folder / "cache")))


def test_of_several_processes_one_writes_and_if_it_is_killed_another_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_module, "_Model", Slow)
    (tmp_path / "model").mkdir()
    ranks = {name: multiprocessing.get_context("fork").Process(target=ask, args=(tmp_path, name)) for name in "abc"}
    ranks["a"].start()
    end = time.monotonic() + 60
    while not (written := list(tmp_path.glob("cache/*.jsonl"))) or written[0].read_bytes().count(b"\n") < 5:
        assert time.monotonic() < end
        time.sleep(0.01)
    ranks["b"].start()
    ranks["c"].start()
    ranks["a"].kill()
    for rank in ranks.values():
        rank.join(timeout=60)
    assert [rank.exitcode for rank in ranks.values()][1:] == [0, 0]
    assert all(json.loads((tmp_path / f"{name}.json").read_text()) == {q: f"So {q}" for q in QUESTIONS} for name in "bc")
    assert (tmp_path / "loaded").read_text() == "xx"  # by the one that was killed, and by one of the others
    assert len(lines_of(tmp_path / "cache")[1]) == len(QUESTIONS)


def test_an_encoder_decoder_can_teach_too(tmp_path):
    tokenizer = tokenizer_of("t5")
    torch.manual_seed(0)
    T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0,
                                        eos_token_id=1, decoder_start_token_id=0)).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    written = teacher_of(tmp_path / "t5").write(QUESTIONS[:3], tmp_path)
    assert list(written) == QUESTIONS[:3]


def test_a_model_that_cannot_be_loaded_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"^data.teacher=\S+empty: cannot be loaded \(.*; give a model's folder, or its name on the Hub$"):
        teacher_of(tmp_path / "empty").write(QUESTIONS, tmp_path)


@pytest.mark.parametrize("rewrites", [False, True])
def test_training_rows_without_a_rationale_get_one_or_all_of_them_do(model, tmp_path, rewrites):
    rows = [row(n, split="train", **({"rationale": ...} if n % 3 == 0 else {})) for n in range(30)]
    rows += [row(n, split="valid") for n in (40, 41)]
    write_rows(tmp_path / "rows" / "gsm8k.jsonl", rows)
    data = KpodData(KpodDataConfig(root=str(tmp_path / "rows"), cache=str(tmp_path / "cache"), teacher=str(model),
                                   teacher_rewrites=rewrites, teacher_max_new_tokens=12))
    data.setup()
    taught = {each.id: each for each in data.samples.rows}
    written = teacher_of(model, batch_size=8, seed=1).write([f"What is {n} and 1?" for n in range(30)], tmp_path / "other")
    for n in range(30):
        by_teacher = rewrites or n % 3 == 0
        text = written[f"What is {n} and 1?"]
        if by_teacher and any(character.isalnum() for character in text):
            assert " ".join(taught[f"q{n}"].steps).split() == text.split()
            assert taught[f"q{n}"].source == str(model)
        elif not by_teacher:
            assert taught[f"q{n}"].steps == (f"{n} + 1 = {n + 1}.",)
    assert [each.steps for each in data.held_out] == [("40 + 1 = 41.",), ("41 + 1 = 42.",)]
