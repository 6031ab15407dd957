"""Each kind of omni model, tiny and with random weights: its prompts, what it hears and sees, its batches, its lessons, its folders.

Two kinds see with packages that the others do without, and that would change how transformers works for all. They are tested in a process
of their own, which finds those packages beside the environment.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from datamodules.av_questions import Audio, Picture, Question, Video, prompt_text
from datamodules.av_synthetic import SyntheticQuestions
from datamodules.deaftest import DeafTest
from lightning_modules.av_odyssey.kinds import OMNI, kind_of
from lightning_modules.av_odyssey.kinds.kind import tiny_tokenizer
from lightning_modules.av_odyssey.kinds.prompts import batch_of
from lightning_modules.av_odyssey.lessons import blocks_to_shard, lesson, made_ready, reply_loss, save_merged
from lightning_modules.av_odyssey.module import AvOdysseyModuleConfig
from lightning_modules.av_odyssey.omni import OmniAdapter, OmniSection, special_tokens
from lightning_modules.language.lora import LoraSection

QUESTIONS = list(SyntheticQuestions(seed=4, each=2))
MIXES = [QUESTIONS[place] for place in (0, 12, 15, 18, 26)]
HEARD = list(DeafTest(0, "train", 1, "paper"))
PROMPTS = [MIXES[0], MIXES[1], MIXES[4], HEARD[1]]  # a picture and four sounds, a film and a sound, four pictures and a sound, two sounds
SHORT = OmniSection(new_tokens=3, frames=2, lora=LoraSection(rank=2, dropout=0.0))
SEEING = ("gemma3n", "phi4_multimodal")
HERE = [name for name in OMNI if not any(find_spec(package) is None for package in kind_of(name).needs)]
BATCHED = set(OMNI) - {"qwen3_omni"}  # which hears less than a second differently beside a longer sound
ELSEWHERE = Path(sys.prefix) / "seeing"


@pytest.fixture(scope="module", params=HERE)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def omni(name):
    return OmniAdapter.load(name, None, SHORT)


def logits_of(omni, question):
    return torch.tensor(omni.replies([question])[0].letter_logits)


def seeing(*words):
    """Run Python with torchvision and timm."""
    root = Path(__file__).parents[3]
    beside = os.pathsep.join(map(str, [root / "tests" / "seeing", ELSEWHERE, root]))
    return subprocess.run([sys.executable, *words], cwd=root, env={**os.environ, "PYTHONPATH": beside}, capture_output=True, text=True,
                          timeout=280)


@pytest.mark.skipif(set(SEEING) <= set(HERE), reason="they are tested in this process")
@pytest.mark.skipif(not ELSEWHERE.is_dir(), reason="torchvision and timm are not in seeing/ of the environment, where make test puts them")
def test_kinds_that_see_with_packages_of_their_own():
    done = seeing("-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", " or ".join(SEEING), __file__)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 18
    assert "skipped" not in done.stdout


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Folders of three models, each with transformers' own processor and what that makes of PROMPTS."""
    if not ELSEWHERE.is_dir():
        pytest.skip("torchvision is not in seeing/ of the environment, where make test puts it")
    folder = tmp_path_factory.mktemp("official")
    done = seeing(str(Path(__file__).with_name("official_worker.py")), str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", ["qwen2_5_omni", "qwen3_omni", "gemma4"])
def test_a_folder_with_its_own_processor_loads_and_prompts_become_the_tensors_that_one_makes(name, official):
    omni = OmniAdapter.load(name, str(official / name), SHORT)
    for question, wanted in zip(PROMPTS, torch.load(official / name / "given.pt"), strict=True):
        given = omni.given([omni.shown(question)])
        assert given.keys() == wanted.keys()
        for key, value in given.items():  # the window's silence is left out behind the longest sound, and nothing else
            assert torch.equal(value, wanted[key][..., : value.shape[-1]]), key
            if "features" not in key and "feature_attention_mask" not in key:
                assert value.shape == wanted[key].shape


@pytest.mark.parametrize("question", MIXES, ids=lambda question: question.mix)
def test_media_stand_where_their_tags_stand(omni, question):
    shown = omni.shown(question)
    marks = {omni._placeholder(omni.kind.sound): "S", omni._placeholder(omni.kind.picture): "P"}
    wanted = []
    for tag in re.findall(r"\[(\w+?\d)\]", prompt_text(question)):
        medium = question.media[tag]
        wanted += ["S"] if isinstance(medium, Audio) else ["P"] * (min(len(medium.frames), 2) if isinstance(medium, Video) else 1)
    pattern = re.compile("|".join(map(re.escape, marks)))
    assert [marks[mark] for mark in pattern.findall(shown.text)] == wanted
    bare = re.sub(f"({pattern.pattern})+", "[]", shown.text)  # a film is several pictures
    assert bare == omni.kind.opening + re.sub(r"\[\w+?\d\]", "[]", prompt_text(question)) + omni.kind.closing


def test_the_prompt_reaches_the_model_word_for_word_and_its_media_between_the_words(omni):
    question = MIXES[4]
    words = omni.given([omni.shown(question)])["input_ids"][0].tolist()
    tokenizer = omni.processor.tokenizer
    special = {tokenizer.convert_tokens_to_ids(token) for token in omni.special}
    text = tokenizer.decode([word for word in words if word not in special])
    wanted = re.sub(r"\[\w+?\d\]", "", prompt_text(question))
    frame = f"{omni.kind.opening}{omni.kind.closing}"
    said = [part for part in re.split("|".join(map(re.escape, omni.special)), frame) if part]
    for part in said:
        text = text.replace(part, "", 1)
    assert re.sub(r"\s+", "", text) == re.sub(r"\s+", "", wanted)  # some processors put blank lines around media


def test_letters_logits_are_those_of_the_models_forward_pass_and_hear_and_see_what_is_shown(omni):
    question = MIXES[4]  # four pictures and a sound
    logits = logits_of(omni, question)
    with torch.no_grad():
        forward = omni.model(**omni.given([omni.shown(question)])).logits[0, -1]
    tokenizer = omni.processor.tokenizer
    assert torch.allclose(logits, forward[[tokenizer.convert_tokens_to_ids(letter) for letter in "ABCD"]], atol=1e-4)
    media = dict(question.media)
    for other in ({"img1": media["img2"], "img2": media["img1"]}, {"audio1": Audio(0.1 * media["audio1"].samples, 16_000)}):
        assert (logits_of(omni, replace(question, media=media | other)) - logits).abs().max() > 1e-4


def test_which_of_two_sounds_comes_first_is_heard(omni):
    question = HEARD[1]
    media = question.media
    turned = replace(question, media={"audio1": media["audio2"], "audio2": media["audio1"]})
    assert (logits_of(omni, question) - logits_of(omni, turned)).abs().max() > 1e-4


def test_models_whose_batches_differ_are_asked_one_by_one_and_all_front_ends_keep_loudness(name, omni):
    adapter = OmniAdapter(omni.kind, omni.model, omni.processor, omni.weights, replace(SHORT, together=3))
    batch, loudness = adapter.checks()
    assert batch.holds == (name in BATCHED), batch
    assert adapter.together == (3 if batch.holds else 1)
    assert loudness.holds
    long = [question for question in DeafTest(0, "valid", 3) if all(sound.seconds > 1 for sound in question.media.values())]
    adapter.together = len(long)
    for one, question in zip(adapter.replies(long), long, strict=True):
        other = omni.replies([question])[0]
        assert one.text == other.text
        assert torch.allclose(torch.tensor(one.letter_logits), torch.tensor(other.letter_logits), atol=1e-4)


def test_a_saved_model_loads_from_its_folder_and_replies_the_same(name, omni, tmp_path):
    omni.model.save_pretrained(tmp_path)
    omni.processor.save_pretrained(tmp_path)
    loaded = OmniAdapter.load(name, str(tmp_path), SHORT)
    asked = [MIXES[3], HEARD[1]]
    for one, other in zip(loaded.replies(asked), omni.replies(asked), strict=True):
        assert one.text == other.text
        assert torch.allclose(torch.tensor(one.letter_logits), torch.tensor(other.letter_logits), atol=1e-5)
    assert all(torch.equal(value, omni.model.state_dict()[key]) for key, value in loaded.model.state_dict().items())
    assert loaded.identity == OmniAdapter.load(name, str(tmp_path), SHORT).identity != omni.identity


def test_a_folder_of_nothing_of_another_kind_or_without_a_weight_is_refused(name, omni, tmp_path):
    refused = rf"module.pretrained: {re.escape(str(tmp_path))}: holds no {{}} with its processor"
    with pytest.raises(ValueError, match=refused.format(re.escape(omni.kind.title))):
        OmniAdapter.load(name, str(tmp_path), SHORT)
    omni.model.save_pretrained(tmp_path)
    omni.processor.save_pretrained(tmp_path)
    for other in HERE:
        if other != name:
            with pytest.raises(ValueError, match=refused.format(re.escape(kind_of(other).title)) + r" \(its config.json has model_type"):
                OmniAdapter.load(other, str(tmp_path), SHORT)
    held = load_file(tmp_path / "model.safetensors")
    lost = next(key for key in held if "audio" in key)
    save_file({key: value for key, value in held.items() if key != lost}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=refused.format(re.escape(omni.kind.title)) + rf" \(no weights for .*{lost.rpartition('.')[2]}"):
        OmniAdapter.load(name, str(tmp_path), SHORT)


def test_a_gemma_4_without_an_ear_is_refused(tmp_path):
    omni = OmniAdapter.load("gemma4", None, SHORT)
    omni.model.config.audio_config = None
    type(omni.model)(omni.model.config).save_pretrained(tmp_path)
    omni.processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds no Gemma 4 with its processor \(this size has no ear; E2B and E4B have one\)"):
        OmniAdapter.load("gemma4", str(tmp_path), SHORT)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_what_is_heard_and_seen_is_made_in_full_precision_whatever_the_trainers(precision, omni):
    shown = [omni.shown(question) for question in PROMPTS]
    wanted, tone = omni.given(shown), omni._features(HEARD[1].media["audio1"])
    plugin = HalfPrecision(precision) if precision == "bf16-true" else MixedPrecision(precision, "cpu")
    with plugin.forward_context():
        given = omni.given(shown)
        assert np.array_equal(omni._features(HEARD[1].media["audio1"]), tone)
    assert all(torch.equal(value, wanted[key]) for key, value in given.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_qwen3_omni_is_asked_one_by_one_whether_or_not_its_batches_are_found_to_differ(dtype):
    omni = OmniAdapter.load("qwen3_omni", None, replace(SHORT, together=4), dtype)
    omni.checks()
    assert omni.together == 1


def test_a_questions_own_words_place_no_media_and_end_no_turn(omni):
    sound, picture = omni._placeholder(omni.kind.sound), omni._placeholder(omni.kind.picture)
    question = Question("1", "t", 1, "x", f"Is {picture}{omni.kind.end} [img1]{omni.kind.opening}?", ("a", sound), "A",
                        {"img1": Picture(np.full((30, 30, 3), 7, np.uint8))})
    plain = Question("1", "t", 1, "x", "Is [img1]?", ("a", "b"), "A", question.media)
    counts = [omni.shown(one).text.count(token) for one in (question, plain) for token in omni.special]
    assert counts[: len(omni.special)] == counts[len(omni.special):]
    assert len(omni.replies([question])) == 1


def learner(name, section):
    omni = OmniAdapter.load(name, None, section)
    omni.model = made_ready(omni).train()
    return omni


@pytest.mark.parametrize("train", ["lora", "projector"])
def test_what_is_chosen_learns_and_all_else_stays_bit_for_bit(name, train):
    if not kind_of(name).learns:
        with pytest.raises(ValueError, match=r"module.adapter: Phi-4-multimodal has adapters of its own"):
            learner(name, SHORT)
        return
    omni = learner(name, replace(SHORT, train=train))
    before = {key: value.clone() for key, value in omni.model.state_dict().items()}
    batch = lesson(omni, HEARD[1:3])
    labels = batch["labels"][0][batch["labels"][0] != -100]
    option = HEARD[1].options["AB".index(HEARD[1].answer)]
    content = next(word for word in ("first", "second") if word in option)
    assert omni.processor.tokenizer.decode(labels) == f"{content} {HEARD[1].answer}{omni.kind.end}"
    optimizer = torch.optim.AdamW([p for p in omni.model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(6):
        loss = reply_loss(omni.model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    changed = {key for key, value in omni.model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if ("lora_" if train == "lora" else f"{omni.kind.projector}.") in key}
    assert changed
    assert all("language_model" in key for key in changed) == (train == "lora")


def test_the_loss_of_a_batch_is_the_mean_of_its_questions(name, omni):
    asked = HEARD[1:4]
    with torch.no_grad():
        whole = reply_loss(omni.model, lesson(omni, asked)).item()
        single = [reply_loss(omni.model, lesson(omni, [question])).item() for question in asked]
    assert whole == pytest.approx(sum(single) / 3, abs=1e-4 if name in BATCHED else 0.2)


@pytest.mark.parametrize("name", [name for name in HERE if kind_of(name).learns])
def test_a_model_saved_with_its_adapters_in_it_replies_as_it_did(name, tmp_path):
    omni = learner(name, SHORT)
    for key, value in omni.model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(value, std=0.3, generator=torch.Generator().manual_seed(1))
    omni.model.eval()
    learnt = logits_of(omni, HEARD[1])
    assert len(blocks_to_shard(omni)) >= 3
    save_merged(omni, tmp_path)
    assert torch.allclose(logits_of(OmniAdapter.load(name, str(tmp_path), SHORT), HEARD[1]), learnt, atol=1e-3)
    assert not torch.allclose(logits_of(OmniAdapter.load(name, None, SHORT), HEARD[1]), learnt, atol=0.1)


@pytest.mark.parametrize("name", ["qwen2_5_omni", "qwen3_omni"])
def test_the_thinker_of_a_whole_released_model_is_found_beside_its_talker(name, tmp_path):
    """Released folders hold both, the thinker's weights and settings under a name of their own."""
    omni = OmniAdapter.load(name, None, SHORT)
    omni.model.save_pretrained(tmp_path)
    omni.processor.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({f"thinker.{key}": value for key, value in weights.items()} | {"talker.proj.weight": torch.zeros(2, 2)},
              tmp_path / "model.safetensors", metadata={"format": "pt"})
    own = json.loads((tmp_path / "config.json").read_text())
    whole = {"model_type": "qwen2_5_omni" if name == "qwen2_5_omni" else "qwen3_omni_moe", "thinker_config": own}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    assert OmniAdapter.load(name, str(tmp_path), SHORT).replies(HEARD[:1]) == omni.replies(HEARD[:1])


@pytest.mark.skipif("phi4_multimodal" not in HERE, reason="Phi-4 sees with torchvision; it is tested in another process")
def test_phi4_multimodal_hears_through_its_adapter_for_speech_and_sees_through_the_one_for_sight(tmp_path):
    made = {}
    for seed, (adapter, beside) in enumerate((("vision", "vision-lora"), ("speech", "speech-lora"))):
        omni = OmniAdapter.load("phi4_multimodal", None, SHORT)
        if not made:
            omni.model.save_pretrained(tmp_path)
            omni.processor.save_pretrained(tmp_path)
        model = get_peft_model(omni.model, LoraConfig(r=2, target_modules=["qkv_proj", "o_proj"], init_lora_weights=False))
        for key, value in model.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(value, std=0.3, generator=torch.Generator().manual_seed(seed))
        model.save_pretrained(tmp_path / beside)
        omni.model = model.merge_and_unload()
        made[adapter] = omni
    loaded = OmniAdapter.load("phi4_multimodal", str(tmp_path), SHORT)
    for question, adapter in ((MIXES[3], "vision"), (HEARD[1], "speech"), (MIXES[3], "vision")):
        other = made["speech" if adapter == "vision" else "vision"]
        assert torch.allclose(logits_of(loaded, question), logits_of(made[adapter], question), atol=1e-3)
        assert not torch.allclose(logits_of(loaded, question), logits_of(other, question), atol=0.1)


def test_the_configuration_names_the_kinds_that_there_are():
    field = next(field for field in fields(AvOdysseyModuleConfig) if field.name == "adapter")
    assert set(get_args(field.type)) == {"small", "oracle", "replay", *OMNI}


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    import lightning_modules.av_odyssey.kinds.kind as kind

    monkeypatch.setattr(kind, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match=r"module.adapter: Gemma 3n sees with timm and torchvision; pip install -c constraints.txt -e"):
        OmniAdapter.load("gemma3n", None, SHORT)


@pytest.mark.parametrize(("name", "seconds"), [("gemma4", 30), ("qwen3_omni", None)])
def test_a_sound_beyond_the_window_is_noted(name, seconds):
    omni = OmniAdapter.load(name, None, SHORT)
    long = Audio(np.full((1, 31 * 16_000), 0.01, np.float32), 16_000)
    question = Question("1", "pitch", 29, "x", "Hear [audio1]", ("a", "b"), "A", {"audio1": long})
    assert omni.replies([question])[0].note == (f"heard only the first {seconds} s of audio1" if seconds else "")


def test_prompts_of_several_questions_are_padded_words_on_the_left_and_media_behind():
    one = {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.ones(1, 2), "features": torch.ones(1, 2, 3)}
    two = {"input_ids": torch.tensor([[7]]), "attention_mask": torch.ones(1, 1), "features": torch.ones(2, 2, 1)}
    bare = {"input_ids": torch.tensor([[8]]), "attention_mask": torch.ones(1, 1)}
    found = batch_of([one, two, bare], pad=9)
    assert found["input_ids"].tolist() == [[5, 6], [9, 7], [9, 8]]
    assert found["attention_mask"].tolist() == [[1, 1], [0, 1], [0, 1]]
    assert found["features"][:, 0].tolist() == [[1, 1, 1], [1, 0, 0], [1, 0, 0]]


def test_special_tokens_are_those_that_a_tokenizer_marks_and_the_longest_comes_first():
    tokenizer = tiny_tokenizer(["<pad>", "<turn>", "<pad><turn>"], {"audio_token": "<turn>"}, "<turn>")
    assert special_tokens(tokenizer) == ["<pad><turn>", "<turn>", "<pad>"]
