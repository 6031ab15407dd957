"""An omni model's lessons: what it is to say, what of it learns, and that nothing else changes."""

import pytest
import torch

from datamodules.deaftest import DeafTest
from lightning_modules.av_odyssey.kinds import kind_of
from lightning_modules.av_odyssey.lessons import blocks_to_shard, layers_for_lora, lesson, made_ready, reply_loss, save_merged
from lightning_modules.av_odyssey.omni import OmniAdapter, OmniSection
from lightning_modules.language.lora import LoraSection

QUESTIONS = list(DeafTest(0, "train", 1, "paper"))
LORA = OmniSection(new_tokens=3, lora=LoraSection(rank=2, dropout=0.0))


def learner(section):
    omni = OmniAdapter.load("qwen2_5_omni", None, section)
    omni.model = made_ready(omni).train()
    return omni


@pytest.fixture(scope="module")
def omni():
    return OmniAdapter.load("qwen2_5_omni", None, LORA)


def test_a_lesson_is_the_prompt_of_an_examination_and_then_the_content_the_letter_and_the_end_of_the_turn(omni):
    batch = lesson(omni, QUESTIONS)
    prompts = [omni.given([omni.shown(question)])["input_ids"][0] for question in QUESTIONS]
    for question, words, mask, labels, prompt in zip(QUESTIONS, batch["input_ids"], batch["attention_mask"], batch["labels"], prompts):
        learned = labels[labels != -100]
        text = omni.processor.tokenizer.decode(learned)
        option = question.options["AB".index(question.answer)]
        content = next(word for word in ("first", "second", option) if word in option)
        assert text == f"{content} {question.answer}<|im_end|>"
        assert torch.equal(words[mask.bool()], torch.cat([prompt, learned]))
        assert torch.equal(words[-len(learned):], learned)


def test_the_loss_is_that_of_the_replys_tokens_alone_and_each_question_counts_alike(omni):
    batch = lesson(omni, QUESTIONS)
    given = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        found = reply_loss(omni.model, batch)
        chances = omni.model(**given).logits.double().log_softmax(-1)
        single = [reply_loss(omni.model, lesson(omni, [question])) for question in QUESTIONS]
    means = []
    for chance, words, labels in zip(chances, batch["input_ids"], batch["labels"]):
        places = [place for place in range(len(labels)) if labels[place] != -100]
        means.append(-sum(chance[place - 1, words[place]] for place in places) / len(places))
    assert len({len(labels[labels != -100]) for labels in batch["labels"]}) > 1
    assert found.item() == pytest.approx(float(sum(means) / len(means)), abs=1e-5)
    assert found.item() == pytest.approx(float(sum(single) / len(single)), abs=1e-5)


def test_features_end_with_the_longest_sound_and_nothing_else_is_lost(omni):
    shown = [omni.shown(question) for question in QUESTIONS]
    given = omni.given(shown)
    whole = omni.processor(text=[one.text for one in shown], audio=[sound for one in shown for sound in one.sounds], return_tensors="pt",
                           padding=True)
    frames = given["input_features"].shape[-1]
    assert frames < whole["input_features"].shape[-1]
    assert whole["feature_attention_mask"][:, frames:].sum() == 0
    with torch.no_grad():
        own = given["attention_mask"].bool()  # what fills up short prompts differs, and is not attended to
        assert torch.equal(own, whole["attention_mask"].bool())
        assert torch.equal(omni.model(**given).logits[own], omni.model(**whole).logits[own])


def test_adapters_lie_in_the_language_model_alone_and_unknown_layers_are_refused(omni):
    model = OmniAdapter.load("qwen2_5_omni", None, LORA).model
    attention = {f"model.language_model.layers.{layer}.self_attn.{part}_proj" for layer in (0, 1) for part in "qkvo"}
    assert set(layers_for_lora(model, [])) == attention
    assert layers_for_lora(model, ["mlp.up_proj"]) == [f"model.language_model.layers.{layer}.mlp.up_proj" for layer in (0, 1)]
    with pytest.raises(ValueError, match=r"module.omni.lora.targets: no linear layer of the language model is called fc1; choose from"):
        layers_for_lora(model, ["fc1"])
    assert len(blocks_to_shard(omni)) == 1 + 1 + 2  # of ear, eye and language


def test_a_model_saved_with_its_adapters_in_it_replies_as_it_did(tmp_path):
    omni = learner(LORA)
    for name, value in omni.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.3, generator=torch.Generator().manual_seed(1))
    omni.model.eval()
    learnt = omni.replies(QUESTIONS[:2])
    save_merged(omni, tmp_path)
    loaded = OmniAdapter.load("qwen2_5_omni", str(tmp_path), LORA).replies(QUESTIONS[:2])
    assert [one.text for one in loaded] == [one.text for one in learnt]
    logits = torch.tensor([one.letter_logits for one in learnt])
    assert torch.allclose(torch.tensor([one.letter_logits for one in loaded]), logits, atol=1e-4)
    untaught = OmniAdapter.load("qwen2_5_omni", None, LORA).replies(QUESTIONS[:2])
    assert not torch.allclose(torch.tensor([one.letter_logits for one in untaught]), logits, atol=0.1)


def test_gradient_checkpointing_changes_no_gradient():
    found = []
    for section in (LORA, OmniSection(new_tokens=3, lora=LORA.lora, gradient_checkpointing=True)):
        torch.manual_seed(2)
        omni = learner(section)
        reply_loss(omni.model, lesson(omni, QUESTIONS[1:2])).backward()
        found.append([p.grad for p in omni.model.parameters() if p.requires_grad])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*found, strict=True))
    assert sum(one.abs().sum() for one in found[0]) > 0


def test_the_tiny_model_is_the_same_in_each_type():
    before = torch.get_default_dtype()
    kind = kind_of("qwen2_5_omni")
    model, _, name = kind.tiny(dtype=torch.bfloat16)
    whole, _, known = kind.tiny()
    assert name == known
    assert torch.get_default_dtype() == before
    assert torch.equal(model.lm_head.weight, whole.lm_head.weight.bfloat16())
    assert OmniSection(train="projector").without_effect() == {"lora": "train=projector has no adapters"}
    with pytest.raises(ValueError, match=r"^lora.rank: must be 1 or above where train=lora, not 0"):
        OmniSection(lora=LoraSection(rank=0))
