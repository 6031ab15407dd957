from collections import Counter

import numpy as np
import pytest

from datamodules.deaftest_gaps import RANGES, with_gap


def amounts(task, question):
    """Measure both sounds by other means than they were made: level in dB, semitones over 1 Hz, or log seconds."""
    found = []
    for tag in ("audio1", "audio2"):
        sound, rate = question.media[tag].samples[0].astype(float), question.media[tag].rate
        middle = sound[400:-400]
        if task == "loudness":
            found.append(20 * np.log10(np.sqrt(np.mean(middle**2))))
        elif task == "pitch":
            spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 2**20))
            found.append(12 * np.log2(spectrum.argmax() * rate / 2**20))
        else:
            found.append(np.log(len(sound) / rate))
    return found


@pytest.mark.parametrize("task", RANGES)
@pytest.mark.parametrize("place", [0, 1])
def test_sounds_lie_as_far_apart_as_was_asked_and_the_right_option_names_the_one_with_more(task, place):
    gap = RANGES[task][place]
    for number in range(6):
        question = with_gap(1, "test", task, number, gap)
        first, second = amounts(task, question)
        apart = np.exp(abs(first - second)) - 1 if task == "duration" else abs(first - second)
        assert apart == pytest.approx(gap, rel=0.05, abs=5e-4 if task == "duration" else 5e-3)
        more = "second" if second > first else "first"
        assert question.options["ABCD".index(question.answer)] == f"the {more} audio"


def test_items_are_new_each_time_their_own_in_each_split_and_the_same_again():
    made = [repr(with_gap(seed, split, "pitch", number, 1.0).media.digests) for seed in (1, 2) for split in ("valid", "test")
            for number in range(5)]
    assert len(set(made)) == 20
    assert repr(with_gap(1, "valid", "pitch", 3, 1.0).media.digests) == made[3]


def test_letters_and_orders_are_even():
    found = Counter((question.answer, question.options[0]) for question in (with_gap(1, "test", "loudness", n, 2.0) for n in range(400)))
    assert len(found) == 4
    assert all(abs(count - 100) < 40 for count in found.values())  # four standard deviations
