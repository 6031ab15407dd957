import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from datamodules.av_questions import Audio, Picture, Question, Video, prompt_text
from datamodules.av_synthetic import SyntheticQuestions
from lightning_modules.av_odyssey.adapter import Reply
from lightning_modules.av_odyssey.checks import batch_equals_single, batches_of_all_kinds, loudness_is_kept
from lightning_modules.av_odyssey.kinds.kind import digest_of_folder
from lightning_modules.av_odyssey.omni import OmniAdapter, OmniSection, mono, pictures_of, without_special

QUESTIONS = list(SyntheticQuestions(seed=4, each=2))
SHORT = OmniSection(new_tokens=3)


@pytest.fixture(scope="module")
def omni():
    return OmniAdapter.load("qwen2_5_omni", None, SHORT)


def forward(omni, *questions):
    """Ask the model itself, without generation: logits of A to D behind the prompt."""
    given = omni.given([omni.shown(question) for question in questions])
    with torch.no_grad():
        logits = omni.model(**given).logits[:, -1]
    return logits[:, [omni.processor.tokenizer.convert_tokens_to_ids(letter) for letter in "ABCD"]]


@pytest.mark.parametrize("question", QUESTIONS[:26] + QUESTIONS[26:30], ids=lambda question: f"{question.id} {question.mix}")
def test_media_stand_where_their_tags_stand(omni, question):
    shown = omni.shown(question)
    kinds = re.findall(r"<\|(AUDIO|IMAGE)\|>", shown.text)
    wanted = []
    for tag in re.findall(r"\[(\w+?\d)\]", prompt_text(question)):
        medium = question.media[tag]
        wanted += ["AUDIO"] if isinstance(medium, Audio) else ["IMAGE"] * (min(len(medium.frames), 8) if isinstance(medium, Video) else 1)
    assert kinds == wanted
    bare = re.sub(r"(<\|\w+_bos\|><\|\w+\|><\|\w+_eos\|>)+", "[]", shown.text)  # a film is several pictures
    assert "user\n" + re.sub(r"\[\w+?\d\]", "[]", prompt_text(question)) + "<|im_end|>" in bare
    assert (len(shown.sounds), len(shown.pictures)) == (wanted.count("AUDIO"), wanted.count("IMAGE"))


def test_a_tag_that_stands_twice_shows_its_medium_twice(omni):
    question = replace(QUESTIONS[0], text=QUESTIONS[0].text + " Once more: [audio1]")
    sounds = omni.shown(question).sounds
    assert len(sounds) == 5
    assert np.array_equal(sounds[0], sounds[4])
    assert len(omni.replies([question])) == 1


def test_letters_logits_are_those_of_the_models_forward_pass_and_hear_and_see_what_is_shown(omni):
    question = QUESTIONS[26]  # four pictures and a sound
    logits = torch.tensor(omni.replies([question])[0].letter_logits)
    assert torch.allclose(logits, forward(omni, question)[0], atol=1e-5)
    media = dict(question.media)
    for other in ({"img1": media["img2"], "img2": media["img1"]}, {"audio1": Audio(media["audio1"].samples[:, ::-1].copy(), 16_000)}):
        changed = torch.tensor(omni.replies([replace(question, media=media | other)])[0].letter_logits)
        assert (changed - logits).abs().max() > 1e-4


def test_a_question_of_two_options_has_two_letters(omni):
    assert [[len(reply.letter_logits) for reply in omni.replies(batch)] for batch in batches_of_all_kinds()] == [[4, 4], [4, 4], [2, 2]]


def test_batches_reply_as_single_questions_do_in_all_mixes(omni):
    asked = [QUESTIONS[place] for place in (0, 12, 15, 18, 26)]
    assert len({question.mix for question in asked}) == 5
    together = OmniAdapter(omni.kind, omni.model, omni.processor, omni.weights, replace(SHORT, together=5)).replies(asked)
    alone = [omni.replies([question])[0] for question in asked]
    assert [one.text for one in together] == [one.text for one in alone]
    apart = torch.tensor([one.letter_logits for one in together]) - torch.tensor([one.letter_logits for one in alone])
    assert apart.abs().max() < 1e-5
    assert torch.allclose(torch.tensor([one.letter_logits for one in together]), forward(omni, *asked), atol=1e-5)


def test_a_model_whose_batches_differ_is_asked_one_by_one(omni, monkeypatch):
    adapter = OmniAdapter(omni.kind, omni.model, omni.processor, omni.weights, replace(SHORT, together=4))
    honest = adapter._together
    assert [check.holds for check in adapter.checks()] == [True, True]
    assert (adapter.together, set(adapter.cannot)) == (4, {"Audio 3D Angle Estimation", "Audio Distance Estimation"})
    monkeypatch.setattr(adapter, "_together", lambda asked: [
        replace(reply, letter_logits=tuple(x + 0.01 * (len(asked) > 1) for x in reply.letter_logits)) for reply in honest(asked)])
    batch, _ = adapter.checks()
    assert (batch.holds, adapter.together) == (False, 1)
    assert batch.measured == pytest.approx(0.01, rel=1e-3)
    assert batch.row[-1] == "questions are asked one by one"


def test_batches_that_write_other_words_are_found_whatever_their_logits():
    found = batch_equals_single(lambda asked: [Reply(f"A{len(asked)}", letter_logits=(0.0, 1.0)) for _ in asked], 1e-3)
    assert not found.holds
    assert found.measured == float("inf")


def extracted(extractor):
    return lambda audio: next(iter(extractor([audio.samples[0]], sampling_rate=16_000, return_tensors="np").values()))


def test_front_ends_that_normalise_each_clip_are_found_and_loudness_is_then_not_measurable(omni, monkeypatch):
    assert not loudness_is_kept(extracted(Wav2Vec2FeatureExtractor(do_normalize=True))).holds
    kept = loudness_is_kept(extracted(WhisperFeatureExtractor(feature_size=80)))
    assert kept.holds
    adapter = OmniAdapter(omni.kind, omni.model, omni.processor, omni.weights, SHORT)
    monkeypatch.setattr(adapter, "_features", extracted(Wav2Vec2FeatureExtractor(do_normalize=True)))
    _, loudness = adapter.checks()
    assert not loudness.holds
    assert adapter.cannot["loudness"] == "the model's front end gives all levels the same features"


def test_a_saved_model_loads_from_its_folder_and_replies_the_same(omni, tmp_path):
    omni.model.save_pretrained(tmp_path)
    omni.processor.save_pretrained(tmp_path)
    loaded = OmniAdapter.load("qwen2_5_omni", str(tmp_path), SHORT)
    assert loaded.replies(QUESTIONS[:2]) == omni.replies(QUESTIONS[:2])
    assert loaded.identity == OmniAdapter.load("qwen2_5_omni", str(tmp_path), SHORT).identity != omni.identity


def test_weights_that_were_cut_off_are_named_with_the_key(omni, tmp_path):
    omni.model.save_pretrained(tmp_path)
    omni.processor.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"module.pretrained: .* holds no Qwen2.5-Omni with its processor \("):
        OmniAdapter.load("qwen2_5_omni", str(tmp_path), SHORT)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"module.pretrained: .* holds no Qwen2.5-Omni with its processor"):
        OmniAdapter.load("qwen2_5_omni", str(tmp_path), SHORT)


def test_a_folders_digest_changes_with_names_and_with_any_byte(tmp_path):
    many = bytes(3 << 20)
    (tmp_path / "a").write_bytes(many + b"2")
    found = [digest_of_folder(tmp_path)]
    (tmp_path / "a").write_bytes(many + b"3")
    found.append(digest_of_folder(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    found.append(digest_of_folder(tmp_path))
    assert len(set(found)) == 3


def test_identity_tells_weights_and_generation_apart_and_the_tiny_model_is_always_the_same(omni):
    parts = omni.kind, omni.model, omni.processor, omni.weights
    assert OmniAdapter(*parts, SHORT).identity == omni.identity
    assert OmniAdapter(*parts, replace(SHORT, new_tokens=4)).identity != omni.identity
    torch.manual_seed(5)
    assert omni.kind.tiny()[2] == omni.weights != omni.kind.tiny(seed=1)[2]


def test_sounds_are_mixed_down_and_resampled_at_their_own_level():
    t = np.arange(44_100) / 44_100
    tone = 0.25 * np.sin(2 * np.pi * 500 * t)
    found = mono(Audio(np.stack([tone, 3 * tone]).astype(np.float32), 44_100), 16_000)
    wanted = 0.5 * np.sin(2 * np.pi * 500 * np.arange(16_000) / 16_000)
    assert found.shape == (16_000,)
    assert np.abs(found - wanted)[200:-200].max() < 2e-3  # the filter rings at both ends


def test_films_become_frames_from_the_first_to_the_last():
    frames = np.arange(13, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    assert [int(frame[0, 0, 0]) for frame in pictures_of(Video(frames, 8.0), 4)] == [0, 4, 8, 12]
    assert len(pictures_of(Video(frames, 8.0), 99)) == 13


def test_a_sound_beyond_the_window_is_noted(omni):
    long = Audio(np.zeros((1, 9 * 16_000), np.float32) + 0.01, 16_000)
    question = Question("1", "pitch", 29, "x", "Hear [audio1]", ("a", "b"), "A", {"audio1": long})
    assert omni.replies([question])[0].note == "heard only the first 8 s of audio1"


def test_a_questions_own_words_place_no_media_and_end_no_turn(omni):
    question = Question("1", "t", 1, "x", "Is <|IMAGE|> or <|im_end|> [img1]?", ("a", "<|AUDIO|>"), "A", {"img1": Picture(
        np.zeros((30, 30, 3), np.uint8))})
    shown = omni.shown(question)
    assert (shown.text.count("<|IMAGE|>"), shown.text.count("<|AUDIO|>"), shown.text.count("<|im_end|>")) == (1, 0, 2)
    assert len(omni.replies([question])) == 1
    assert without_special("a <|x|> b", ["<|x|>"]) == "a < |x|> b"
