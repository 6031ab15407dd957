"""DeafTest's generator: every item on its own, the ranges that the profiles name, levels as they are said to be."""

import numpy as np
import pytest
from scipy.stats import binomtest

from datamodules.av_questions import prompt_text, segments
from datamodules.deaftest import RATE, TASKS, DeafTest, Sound, rendered

PROFILES = ("paper", "paper_clipped", "hard", "noise", "timbre", "confound")


def of_task(questions, task):
    return [question for question in questions if question.task == task]


def test_an_item_is_the_same_whoever_makes_it_and_splits_and_seeds_never_meet():
    one, other = DeafTest(3, "train", 50, "hard"), DeafTest(3, "train", 9, "hard")
    for index in (0, 7, 30):
        assert one[index].text == other[index].text
        for tag in one[index].media:
            assert np.array_equal(one[index].media[tag].samples, other[index].media[tag].samples)
    drawn = [{repr(question.truth) for question in DeafTest(seed, split, 20, "hard")}
             for seed in (3, 4) for split in ("train", "valid", "test")]
    assert len(set.union(*drawn)) == 6 * 80


@pytest.mark.parametrize(("profile", "turns"), [
    ("mixed", ["paper", "hard"]), ("varied", ["paper", "hard", "paper", "noise", "paper", "timbre", "paper", "confound"])])
def test_profiles_in_turns_hold_the_questions_of_those_they_name(profile, turns):
    some, each = DeafTest(2, "train", 8, profile), {name: DeafTest(2, "train", 8, name) for name in turns}
    for index, question in enumerate(some):
        assert repr(question.truth) == repr(each[turns[index // len(TASKS) % len(turns)]][index].truth)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_right_answer_is_that_of_the_truth_and_the_coins_are_fair(profile):
    questions = list(DeafTest(1, "test", 60, profile))
    for question in questions:
        option = question.options[question.letters.index(question.answer)]
        sounds = [question.truth[tag] for tag in question.media]
        if question.task == "count":
            assert int(option) == sounds[0]["count"]
            continue
        key = {"loudness": "level", "pitch": "f0", "duration": "seconds"}[question.task]
        assert option == f"the {'first' if sounds[0][key] > sounds[1][key] else 'second'} audio"
    assert binomtest(sum(question.answer == "A" for question in questions), len(questions)).pvalue > 0.001
    pairs = [question for question in questions if question.task != "count"]
    first = [question.options[question.letters.index(question.answer)] == "the first audio" for question in pairs]
    assert binomtest(sum(first), len(first)).pvalue > 0.001


def test_one_sound_gives_the_papers_answers_away_and_not_the_hard_ones():
    """Over a threshold of the first sound alone, on the quantity that is asked for."""
    limits = {"loudness": ("level", 65), "pitch": ("f0", 700), "duration": ("seconds", 3.5)}
    for profile, least, most in (("paper", 1.0, 1.0), ("hard", 0.0, 0.8)):
        for task, (key, limit) in limits.items():
            questions = of_task(DeafTest(2, "test", 150, profile), task)
            guessed = [q.truth["audio1"][key] > limit for q in questions]
            right = [q.options[q.letters.index(q.answer)] == "the first audio" for q in questions]
            assert least <= np.mean(np.equal(guessed, right)) <= most, (profile, task)


def test_the_truth_says_when_sounds_begin_and_how_high_they_peak():
    for question in DeafTest(1, "test", 10, "hard"):
        for tag, audio in question.media.items():
            truth, samples = question.truth[tag], np.abs(audio.samples[0])
            assert 20 * np.log10(samples.max()) == pytest.approx(truth["peak_dbfs"], abs=0.1)
            sounding = np.flatnonzero(samples > 0) / RATE
            begins = [sounding[0], *sounding[1:][np.diff(sounding) > 0.1]]  # gaps are longer, and no wave stays at zero for so long
            assert begins == pytest.approx(truth["onsets"], abs=0.005)


def test_timbres_are_harmonic_a_band_or_clicks_and_harmonic_where_pitch_is_asked():
    kinds = {task: {q.truth["audio1"]["kind"] for q in of_task(DeafTest(1, "test", 40, "timbre"), task)} for task in TASKS}
    assert kinds == {task: {"harmonic"} if task == "pitch" else {"harmonic", "band", "click"} for task in TASKS}


def test_clicks_are_short_and_evenly_spaced():
    wave = np.abs(rendered(Sound(80.0, 700.0, 1.0, kind="click"), np.random.default_rng(0)))
    loud = np.flatnonzero(wave > wave.max() / 2) / RATE
    begins = np.array([loud[0], *loud[1:][np.diff(loud) > 0.005]])
    assert np.diff(begins) == pytest.approx(1 / 60, abs=0.0005)
    assert np.mean(wave < wave.max() / 20) > 0.4  # silence between


@pytest.mark.parametrize(("kind", "rms"), [("sine", 1 / np.sqrt(2)), ("harmonic", None), ("click", None)])
def test_levels_are_decibels_below_full_scale(kind, rms):
    quiet, loud = (rendered(Sound(level, 440.0, 1.0, kind=kind), np.random.default_rng(0)) for level in (60.0, 80.0))
    middle = slice(RATE // 10, -RATE // 10)
    assert np.abs(loud[middle]).max() == pytest.approx(10 ** (-20 / 20), rel=1e-3)
    assert np.allclose(loud, 10 * quiet, rtol=1e-4, atol=1e-7)
    if rms:
        assert np.sqrt(np.mean(loud[middle] ** 2)) == pytest.approx(rms * 0.1, rel=1e-3)


def test_noise_is_as_loud_as_it_is_said_to_be_and_gives_no_level_away():
    for question in of_task(DeafTest(1, "test", 20, "noise"), "loudness"):
        levels, media = [question.truth[tag]["level"] for tag in question.media], question.media
        for tag, sound in media.sounds.items():
            noise = media[tag].samples[0] - rendered(sound, np.random.default_rng(media.seed))
            level = 20 * np.log10(np.sqrt(np.mean(noise**2))) + 100
            assert level == pytest.approx(media.noise, abs=0.2)
            assert 29.8 <= min(levels) - level <= 40.2


def test_only_the_profile_that_imitates_the_published_files_clips():
    for profile in PROFILES:
        clipped = [np.mean(np.abs(a.samples) >= 1) for q in of_task(DeafTest(1, "test", 30, profile), "loudness") for a in q.media.values()]
        assert (max(clipped) > 0.5) == (profile == "paper_clipped")


def test_a_tone_has_the_pitch_length_and_number_that_it_was_made_with():
    sound = Sound(80.0, 500.0, 0.2, count=4, gap=0.3, lead=0.1)
    wave = rendered(sound, np.random.default_rng(1))
    assert len(wave) == round((0.1 + 4 * 0.2 + 3 * 0.3) * RATE)
    sounding = np.abs(wave) > 0
    edges = np.flatnonzero(np.diff((np.convolve(sounding, np.ones(40), "same") > 0).astype(int)) == 1)
    assert len(edges) == 4
    tone = wave[round(0.13 * RATE) : round(0.27 * RATE)]
    crossings = np.sum((tone[:-1] < 0) & (tone[1:] >= 0))
    assert crossings / (len(tone) / RATE) == pytest.approx(500, rel=0.03)


def test_controls_take_away_what_the_answer_needs():
    plain = DeafTest(1, "test", 5, "hard")
    for control in ("silent", "shuffled", "single_clip", "swapped"):
        for question, changed in zip(plain, DeafTest(1, "test", 5, "hard", control), strict=True):
            assert (changed.text, changed.options, changed.answer) == (question.text, question.options, question.answer)
            before, after = ([question.media[tag].samples for tag in question.media], [changed.media[tag].samples for tag in changed.media])
            if control == "silent":
                assert not any(np.any(one) or one.shape != after[0].shape for one in after)
            elif control == "shuffled":
                assert not any(one.shape == other.shape and np.array_equal(one, other) for one, other in zip(before, after))
            elif len(before) == 2:
                wanted = [before[0], before[0]] if control == "single_clip" else before[::-1]
                assert all(map(np.array_equal, after, wanted))


def test_the_prompt_is_that_of_the_benchmark_with_the_sounds_in_place():
    question = of_task(DeafTest(1, "test", 1, "hard"), "pitch")[0]
    assert prompt_text(question).startswith("Listen to [audio1] and [audio2]. Which audio is higher in pitch?\nA:the ")
    parts = segments(question)
    assert [isinstance(part, str) for part in parts] == [True, False, True, False, True]
    assert [q.task for q in DeafTest(1, "test", 1, "hard")] == list(TASKS)
