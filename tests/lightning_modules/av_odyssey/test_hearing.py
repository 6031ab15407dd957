"""The oracle answers whatever can be answered; the small model's ear keeps levels, and hears the same in any company."""

import math

import numpy as np
import pytest
import torch

from datamodules.av_odyssey import Clips, every_clip
from datamodules.av_questions import Audio
from datamodules.deaftest import RATE, TASKS, DeafTest
from datamodules.deaftest_seen import SeenDeafTest
from lightning_modules.av_odyssey.ear import Reader, stacked
from lightning_modules.av_odyssey.hearing import BANDS, HOP, SCALE, Encoder, facts_of, frames_of, mel_filters, reading_loss
from lightning_modules.av_odyssey.oracle import Oracle
from lightning_modules.av_odyssey.parsing import official
from lightning_modules.av_odyssey.small import SmallModel
from lightning_modules.av_odyssey.talk import heard
from lightning_modules.av_odyssey.words import PAD, SOUND, VOCABULARY, padded, prompt_of, reply_of, text_of


def score(questions):
    return np.mean([reply.text == question.answer for question, reply in zip(questions, Oracle().replies(questions), strict=True)])


@pytest.mark.parametrize("profile", ["paper", "paper_clipped", "hard", "noise", "timbre", "confound"])
def test_the_oracle_is_always_right_where_there_is_an_answer(profile):
    assert score(list(DeafTest(5, "test", 25, profile))) == 1


@pytest.mark.parametrize("profile", ["paper", "hard"])
def test_the_oracle_sees_too(profile):
    assert score(list(SeenDeafTest(5, "test", 20, profile))) == 1


def test_the_oracle_is_at_chance_without_sound_and_turned_round_by_exchanged_sounds():
    pairs = [question for question in DeafTest(5, "test", 40, "hard", "swapped") if question.task != "count"]
    assert score(pairs) == 0
    silent = [question for question in DeafTest(5, "test", 60, "hard", "silent") if question.task != "count"]
    assert 0.35 < score(silent) < 0.65
    for control in ("shuffled", "single_clip"):
        pairs_of = [question for question in DeafTest(5, "test", 60, "hard", control) if question.task != "count"]
        assert 0.35 < score(pairs_of) < 0.65, control  # four standard errors of a half, of 180 questions
    with pytest.raises(ValueError, match=r"the oracle knows count, loudness, pitch, duration, seen_count, .*, not music"):
        Oracle().replies([pairs[0].__class__(**{**vars(pairs[0]), "task": "music"})])


def test_frames_rise_by_what_the_level_rises_whatever_the_sound():
    """20 dB are a factor of 100 in power: log 100 in every band that is above the floor."""
    tone = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32)[None]
    quiet, loud = (frames_of([Audio(level * tone, RATE)], mel_filters()).values[0] for level in (0.01, 0.1))
    rise = (loud - quiet)[:, 5:-5]
    strong = quiet[:, 5:-5] > quiet.max() - 10 / SCALE
    assert strong.any()
    assert torch.allclose(rise[strong], torch.tensor(math.log(100) / SCALE), atol=1e-3)
    assert quiet.shape == (BANDS, RATE // HOP + 1)


def test_a_sound_of_another_rate_is_refused():
    with pytest.raises(ValueError, match="hears 16000 Hz, not 8000"):
        frames_of([Audio(np.zeros((1, 800), np.float32), 8000)], mel_filters())


def test_a_batch_for_the_ear_is_made_of_the_frames_of_its_sounds_which_are_read_once():
    made = []

    def read(sound, truth):
        made.append(truth["seconds"])
        return Reader()(sound, truth)

    questions = DeafTest(1, "train", 6, "mixed")
    clips = Clips(questions, every_clip(2, 6), read, stacked)
    named = [(index, tag) for index, question in enumerate(questions) for tag in question.media if question.task == "count" or index < 8]
    assert clips.places == named
    values, lengths, facts = clips.__getitems__([3, 0, 9])
    sounds = [questions[index].media[tag] for index, tag in (named[3], named[0], named[9])]
    expected = frames_of(sounds, mel_filters())
    assert torch.equal(values, expected.values)
    assert torch.equal(lengths, expected.lengths)
    truths = [questions[index].truth[tag] for index, tag in (named[3], named[0], named[9])]
    assert torch.equal(facts.nan_to_num(-1), torch.tensor([facts_of(truth) for truth in truths], dtype=torch.float32).nan_to_num(-1))
    clips.__getitems__([0, 3])
    assert len(made) == 3


def test_a_clip_has_the_same_vector_alone_and_beside_longer_ones():
    torch.manual_seed(0)
    encoder, filters = Encoder(16).train(), mel_filters()
    questions = list(DeafTest(1, "train", 4, "mixed"))
    sounds = [sound for question in questions for sound in question.media.values()]
    encoder(frames_of(sounds, filters))  # so that the norms have seen something
    encoder.eval()
    together = encoder(frames_of(sounds, filters))
    for place, sound in enumerate(sounds):
        assert torch.allclose(encoder(frames_of([sound], filters))[0], together[place], atol=1e-5)
    rows = heard(encoder, questions, filters, torch.device("cpu"))
    assert torch.allclose(rows[1, 1], together[2], atol=1e-5)
    assert not rows[0, 1].any()  # the first task has one sound


def test_what_is_unknown_of_a_sound_costs_nothing():
    truth = DeafTest(1, "test", 1, "timbre")[1].truth["audio1"]
    facts = torch.tensor([facts_of({**truth, "kind": "band", "clipped": True, "count": 3})])
    assert facts.isnan().tolist() == [[True, True, True, False]]
    read = torch.tensor([[9.0, 9.0, 9.0, 1.5]])
    assert reading_loss(read, facts).item() == 0
    assert reading_loss(read + 0.5, facts).item() == pytest.approx(0.5 * 0.5**2)


def test_every_question_can_be_written_and_its_reply_is_read_as_its_answer():
    for question in DeafTest(7, "test", 40, "mixed"):
        prompt = prompt_of(question)
        assert prompt.count(SOUND) == len(question.media)
        for content in (True, False):
            said = text_of(reply_of(question, content))
            assert official(said, question.options) == question.answer
            assert len(said.split()) == 1 + content
    with pytest.raises(ValueError, match="knows only the words of DeafTest, not music"):
        prompt_of(question.__class__(**{**vars(question), "text": "Which music is [audio1]?"}))


def test_a_reply_does_not_depend_on_the_questions_beside_it():
    torch.manual_seed(0)
    model = SmallModel(8, 32, 2, 2).eval()
    questions = [DeafTest(1, "test", 3, "hard")[index] for index in (0, 1, 6, 8)]
    clips = torch.randn(4, 2, 16)
    prompts = [prompt_of(question) for question in questions]
    together = model.answer(padded(prompts, left=True), clips)
    alone = [model.answer(padded([prompt], left=True), clips[place : place + 1])[0] for place, prompt in enumerate(prompts)]
    assert [text_of(words) for words in together] == [text_of(words) for words in alone]
    assert len(VOCABULARY) == len(set(VOCABULARY))
    assert VOCABULARY[PAD] == "<pad>"


def test_only_the_reply_is_learnt_and_sounds_reach_it():
    torch.manual_seed(0)
    model = SmallModel(8, 32, 1, 2)
    words = torch.tensor([[5, SOUND, 6, SOUND, 2, 7, 8, 3]])
    labels = torch.tensor([[-100, -100, -100, -100, -100, 7, 8, 3]])
    clips = torch.randn(1, 2, 16, requires_grad=True)
    logits = model.language(inputs_embeds=model.embedded(words, clips)).logits[0].log_softmax(-1)
    wanted = -(logits[4, 7] + logits[5, 8] + logits[6, 3]) / 3
    loss = model.loss(words, labels, clips)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    loss.backward()
    assert (clips.grad.abs().sum(-1) > 0).all()
    assert TASKS[0] == "count"
