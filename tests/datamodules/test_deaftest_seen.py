"""Whoever measures the sounds and the pictures, by other means than they were made, finds the right letter."""

from collections import Counter

import numpy as np
import pytest
from scipy.ndimage import label
from scipy.signal import hilbert

from datamodules.av_questions import Audio, segments
from datamodules.deaftest_seen import TASKS, SeenDeafTest


def measured(task, medium):
    """Count bright regions or loud stretches; seconds and Hz from pixels, from the envelope, and from zero crossings."""
    if isinstance(medium, Audio):
        sound = medium.samples[0].astype(float)
        loud = np.abs(hilbert(sound))
        loud = np.convolve(loud, np.ones(160) / 160, "same") > 0.3 * loud.max()
        if task == "seen_count":
            return label(loud)[1]
        if task == "seen_duration":
            return loud.sum() / medium.rate
        middle = sound[2000:-2000]
        return np.count_nonzero(np.diff(np.signbit(middle))) / 2 / (len(middle) / medium.rate)
    white = medium.pixels[..., 0] > 200
    if task == "seen_count":
        return label(white)[1]
    if task == "seen_duration":
        return white[80].sum() / 25
    return 100 * 2 ** ((159 - np.nonzero(white.any(axis=1))[0].mean()) / 32)


@pytest.mark.parametrize("profile", ["paper", "hard"])
def test_the_medium_that_fits_is_the_one_of_the_right_option(profile):
    for question in SeenDeafTest(3, "test", 6, profile):
        values = {tag: float(np.log(measured(question.task, medium))) for tag, medium in question.media.items()}
        one = next(tag for tag in values if f"{tag[:-1]}4" not in values)
        many = [f"{'img' if one == 'audio1' else 'audio'}{place}" for place in (1, 2, 3, 4)]
        nearest = int(np.argmin([abs(values[tag] - values[one]) for tag in many]))
        option = question.options["ABCD".index(question.answer)]
        assert option.split()[1] == ["first", "second", "third", "fourth"][nearest], question.id
        for tag, value in values.items():
            assert np.exp(value) == pytest.approx(question.truth[tag], rel=0.05), (question.id, tag)


def test_questions_have_the_benchmarks_shape():
    questions = list(SeenDeafTest(1, "valid", 4))
    assert Counter(question.mix for question in questions) == {"4 img + 1 audio": 6, "1 img + 4 audio": 6}
    assert Counter(question.task for question in questions) == dict.fromkeys(TASKS, 4)
    for question in questions:
        assert len(question.options) == 4
        shown = [part for part in segments(question) if not isinstance(part, str)]
        assert len(shown) == 6  # the one that fits is named twice


def test_hard_values_lie_closer_together():
    for place, task in enumerate(TASKS):
        gaps = []
        for profile in ("hard", "paper"):
            values = [sorted(value for tag, value in question.truth.items() if tag[:-1] == ("img" if "img4" in question.truth else "audio"))
                      for question in SeenDeafTest(1, "test", 40, profile)[place::3]]
            gaps.append(np.mean([np.diff(np.log(four)).mean() for four in values]))
        assert gaps[0] < 0.9 * gaps[1], task


def test_letters_are_spread_and_splits_never_meet():
    letters = Counter(question.answer for question in SeenDeafTest(1, "test", 200))
    assert all(abs(letters[letter] - 150) < 45 for letter in "ABCD")  # four standard deviations
    digests = [{repr(q.media.digests) for q in SeenDeafTest(1, split, 30)} for split in ("train", "valid", "test")]
    assert len(set.union(*digests)) == 270
    again = SeenDeafTest(1, "test", 99)[40]
    assert again.media.digests == SeenDeafTest(1, "test", 30)[40].media.digests


def test_costs_and_names_are_known_without_making_a_medium():
    question = SeenDeafTest(1, "test", 2)[3]
    sizes = {tag: 25 * medium.seconds if isinstance(medium, Audio) else 160 * 160 / 784 for tag, medium in question.media.items()}
    assert question.media.tokens == pytest.approx(sizes, rel=1e-3)
