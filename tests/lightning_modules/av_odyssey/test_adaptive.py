"""Just-noticeable differences of listeners whose thresholds are known."""

import numpy as np
import pytest

from datamodules.deaftest_gaps import RANGES, with_gap
from lightning_modules.av_odyssey.adapter import Reply
from lightning_modules.av_odyssey.adaptive import COLUMNS, Remembered, rows_of, thresholds


class Listener:
    """Knows what a question is made of, and hears a gap with probability 1/2 + 1/2 logistic(4 log(gap / middle))."""

    cannot, identity = {}, "listener"

    def __init__(self, middles, seed=0):
        self.middles, self.rng, self.asked = middles, np.random.default_rng(seed), []

    def replies(self, questions):
        return [Reply(self.letter(question)) for question in questions]

    def letter(self, question):
        one, other = (question.truth[tag] for tag in ("audio1", "audio2"))
        gap = {"loudness": abs(one["level"] - other["level"]), "pitch": 12 * abs(np.log2(one["f0"] / other["f0"])),
               "duration": max(one["seconds"], other["seconds"]) / min(one["seconds"], other["seconds"]) - 1}[question.task]
        self.asked.append((question.task, question.id))
        right = self.rng.random() < 0.5 + 0.5 / (1 + (self.middles[question.task] / gap) ** 4)
        return question.answer if right else "BA"["AB".index(question.answer)]


def test_a_listeners_thresholds_are_found_in_each_task():
    middles = {"loudness": 1.0, "pitch": 0.4, "duration": 0.08}
    listener = Listener(middles)
    found = thresholds(Remembered(listener), 1, "test", "strict", 16)
    share = 2 * 2 ** (-1 / 3) - 1  # heard at 79.4 % right answers
    for task, one in found.items():
        assert one.bound == "measured"
        assert one.value == pytest.approx(middles[task] * (share / (1 - share)) ** 0.25, rel=0.25), task
    assert len(set(listener.asked)) == len(listener.asked)  # no question is put twice
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in rows_of(found)]
    assert sum(row["asked"] for row in rows) == len(listener.asked)
    assert {row["task"]: row["unit"] for row in rows} == {"loudness": "dB", "pitch": "semitones", "duration": "share of the shorter"}


class Saying:
    cannot, identity = {}, "saying"

    def __init__(self, text):
        self.text = text

    def replies(self, questions):
        return [Reply(self.text) for _ in questions]


@pytest.mark.parametrize("text", ["A", "I cannot tell", ""])
def test_who_guesses_or_says_nothing_hears_no_gap_that_was_asked(text):
    found = thresholds(Remembered(Saying(text)), 1, "test", "strict", 4)
    assert {task: (one.bound, one.value) for task, one in found.items()} == {task: ("at_least", high) for task, (_, high) in RANGES.items()}


def test_staircases_that_were_cut_off_go_on_without_asking_anything_again(tmp_path):
    middles = {"loudness": 1.0, "pitch": 0.4, "duration": 0.08}

    class Steady(Listener):
        """Hears what is above its middle, and dies where it is told to."""

        def __init__(self, dies_after=10**6):
            super().__init__(middles)
            self.dies_after = dies_after

        def letter(self, question):
            if len(self.asked) == self.dies_after:
                raise KeyboardInterrupt
            super().letter(question)
            one, other = (question.truth[tag] for tag in ("audio1", "audio2"))
            apart = abs(one["level"] - other["level"]) + 12 * abs(np.log2(one["f0"] / other["f0"])) + abs(one["seconds"] - other["seconds"])
            return question.answer if apart > 0.3 else "A"

    whole, first, second = Steady(), Steady(dies_after=100), Steady()
    wanted = thresholds(Remembered(whole), 1, "test", "strict", 4)
    said = Remembered(first, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        thresholds(said, 1, "test", "strict", 4)
    said.close()
    assert thresholds(Remembered(second, tmp_path), 1, "test", "strict", 4) == wanted
    assert 96 <= len(first.asked) <= 100
    assert sorted({*first.asked, *second.asked}) == sorted(whole.asked)
    assert len(second.asked) <= len(whole.asked) - 96


def test_staircases_count_questions_that_failed_and_ask_them_again(tmp_path):
    class Failing(Listener):
        def letter(self, question):
            if question.id.endswith("_3"):
                raise RuntimeError("out of memory")
            return super().letter(question)

    middles = {"loudness": 1.0, "pitch": 0.4, "duration": 0.08}
    first, second = Remembered(Failing(middles), tmp_path), Listener(middles)
    thresholds(first, 1, "test", "strict", 4)
    first.close()
    assert first.failed == 3  # one in each task
    again = Remembered(second, tmp_path)
    again.replies([with_gap(1, "test", "pitch", place, 6.0) for place in range(4)])
    assert (again.failed, [name for _, name in second.asked]) == (0, ["adaptive_29_3"])

