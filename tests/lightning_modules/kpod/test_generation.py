"""Generated texts: those of one question at a time, whatever the batches, the padding and the number of processes."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from students import END, NEW, QUESTIONS, generator_of, likeliest, lively, prompt_batches, tokens

from lightning_modules.kpod.generation import GenerationSection, gather_texts
from lightning_modules.language.lora import LoraSection, add_lora

WORKER = Path(__file__).with_name("generation_worker.py")
KINDS = ("llama", "gpt2", "t5")


@cache
def reference(kind):
    """The likeliest text of each question, by its index."""
    model = lively(kind)
    texts = {index: likeliest(kind, model, question) for index, question in enumerate(QUESTIONS)}
    lengths = [len(text.split()) for text in texts.values()]
    assert NEW in lengths
    assert len(set(lengths)) > 2  # the batches end at different places
    return texts


def texts_of(kind, generate, **batches):
    return dict(pair for batch in prompt_batches(kind, **batches) for pair in generate(batch))


def run_on_two(*checks):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*launcher, str(WORKER), *checks], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_batches_change_no_text(kind, batch_size):
    assert texts_of(kind, generator_of(kind, lively(kind)), batch_size=batch_size) == reference(kind)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_padding_with_the_end_of_text_changes_no_text_and_masks_none_that_is_meant(kind):
    assert any(END[kind] in question for question in QUESTIONS)
    assert texts_of(kind, generator_of(kind, lively(kind), pad=END[kind]), batch_size=3, pad=END[kind]) == reference(kind)


def test_a_batch_stops_when_all_its_texts_have_ended():
    kind = "llama"
    model, (short, length) = lively(kind), min(((i, len(t.split())) for i, t in reference(kind).items()), key=lambda pair: pair[1])
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    ids = torch.tensor([QUESTIONS[short]] * 2)
    generator_of(kind, model)({"input_ids": ids, "attention_mask": torch.ones_like(ids), "index": torch.tensor([0, 1])})
    assert len(passes) == length + 1 < NEW


def test_no_more_is_generated_than_the_model_has_positions():
    ids = tokens(1, 40)
    texts = generator_of("gpt2", lively("gpt2"))({"input_ids": ids, "attention_mask": torch.ones_like(ids), "index": torch.tensor([0])})
    assert len(texts[0][1].split()) <= 48 - 40


def test_what_a_pretrained_model_recommends_has_no_effect_and_is_kept():
    model = lively("llama")
    model.generation_config.update(do_sample=True, repetition_penalty=9.0, num_beams=2, no_repeat_ngram_size=1)
    assert texts_of("llama", generator_of("llama", model)) == reference("llama")
    assert model.generation_config.repetition_penalty == 9.0


def test_an_adapter_generates_with_its_factors():
    model = add_lora(lively("llama"), LoraSection(rank=4, dropout=0.0)).eval()
    assert texts_of("llama", generator_of("llama", model)) == reference("llama")  # the factors start without effect
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    adapted = texts_of("llama", generator_of("llama", model))
    assert adapted == texts_of("llama", generator_of("llama", model.merge_and_unload())) != reference("llama")


def test_samples_depend_on_the_seed_and_leave_trainings_random_numbers_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model = lively("llama")
    torch.set_rng_state(before)
    hot = {"temperature": 1.0, "top_p": 0.9}
    one, again = (texts_of("llama", generator_of("llama", model, **hot)) for _ in range(2))
    assert one == again != reference("llama")
    generate = generator_of("llama", model, **hot)
    generate.seed = 1
    assert texts_of("llama", generate) != one
    assert torch.equal(torch.get_rng_state(), before)
    assert texts_of("llama", generator_of("llama", model, temperature=1e-4)) == reference("llama")


def test_processes_that_end_at_different_times_generate_what_one_does_with_whole_and_with_spread_weights():
    for report in run_on_two("llama whole", *(f"{kind} fsdp" for kind in KINDS)):
        kind, how = report["check"].split()
        assert {int(index): text for index, text in report["texts"].items()} == reference(kind)
        assert report["rows"] == [4, 3]
        if how == "fsdp":  # all gather equally often; alone they would not have
            assert len(set(report["forwards"])) == 1
        else:
            assert len(set(report["forwards"])) == 2


@pytest.mark.slow
def test_zero_3_generates_what_one_process_does():
    for report in run_on_two("llama zero3", "t5 zero3"):
        assert {int(index): text for index, text in report["texts"].items()} == reference(report["check"].split()[0])


def test_texts_are_gathered_once_each_and_in_order():
    assert list(gather_texts([(2, "c"), (0, "a"), (2, "c"), (1, "b")]).items()) == [(0, "a"), (1, "b"), (2, "c")]


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_settings_out_of_range_are_refused_by_name(wrong):
    (key, value), = wrong.items()
    with pytest.raises(ValueError, match=rf"^{key}: must .*, not {value}$"):
        GenerationSection(**wrong)
