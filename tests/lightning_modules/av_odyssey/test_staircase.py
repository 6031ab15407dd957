"""Staircases against listeners whose thresholds are known in closed form."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from lightning_modules.av_odyssey.staircase import Stairs, Track, noticeable


def listener(middle: float, slope: float, seed: int = 0) -> Callable[[Sequence[float]], list[bool]]:
    """Hear a gap with probability 1/2 + 1/2 logistic(slope log(gap / middle)): right in 3 of 4 questions at `middle`."""
    rng = np.random.default_rng(seed)
    return lambda gaps: [bool(rng.random() < 0.5 + 0.5 / (1 + (middle / gap) ** slope)) for gap in gaps]


def gap_at(share: float, middle: float, slope: float) -> float:
    """Invert the listener's curve."""
    heard = 2 * share - 1
    return middle * (heard / (1 - heard)) ** (1 / slope)


@pytest.mark.parametrize("down", [2, 3])
def test_staircases_come_to_rest_at_levitts_share_of_right_answers(down: int) -> None:
    stairs = Stairs(0.01, 16, down, fine=2**0.125, reversals=60, trials=2000)
    found = noticeable(listener(1.0, 4.0), stairs, tracks=40)
    assert found.bound == "measured"
    assert math.isclose(found.value, gap_at(2 ** (-1 / down), 1.0, 4.0), rel_tol=0.06)


def test_a_finer_ear_has_the_smaller_threshold_by_as_much_as_it_is_finer() -> None:
    stairs = Stairs(0.01, 16, reversals=40, trials=1000)
    coarse, fine = (noticeable(listener(middle, 4.0, 1), stairs, tracks=40).value for middle in (2.0, 0.5))
    assert math.isclose(coarse / fine, 4, rel_tol=0.12)


def test_the_interval_holds_the_threshold_in_five_of_six_listenings_at_least() -> None:
    stairs, true = Stairs(0.05, 16, reversals=40, trials=1000, fine=2**0.125), gap_at(2 ** (-1 / 3), 1.0, 4.0)
    found = [noticeable(listener(1.0, 4.0, seed), stairs, tracks=4) for seed in range(60)]
    assert sum(one.low <= true <= one.high for one in found) >= 50


def test_who_guesses_has_no_threshold_within_the_gaps_asked() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found = noticeable(lambda gaps, rng=rng: list(rng.random(len(gaps)) < 0.5), Stairs(0.1, 8), tracks=8)
        assert str(found) == "at least 8"


def test_who_hears_all_has_a_threshold_of_at_most_the_smallest_gap() -> None:
    stairs = Stairs(0.1, 8)
    found = noticeable(lambda gaps: [True] * len(gaps), stairs, tracks=2)
    assert sum(count for _, _, count in found.curve) == 2 * (3 * 7 + 12)  # 8 to 0.125 in seven stairs, then twelve at 0.1
    assert found.bound == "at_most"
    assert found.value == 0.1


def test_a_staircase_narrows_after_three_right_answers_and_widens_after_one_wrong() -> None:
    track = Track(Stairs(0.1, 8), 8)
    gaps = []
    for right in [True] * 6 + [False] + [True] * 3 + [False]:
        gaps.append(track.gap)
        track.answered(right)
    assert gaps == [8, 8, 8, 4, 4, 4, 2, 4, 4, 4, 4 / 2**0.25]
    assert track.turns == [2, 4, 4 / 2**0.25]


def test_the_curve_counts_every_answer_once() -> None:
    asked: list[tuple[float, bool]] = []
    hear = listener(1.0, 4.0)

    def ask(gaps: Sequence[float]) -> list[bool]:
        rights = hear(gaps)
        asked.extend(zip(gaps, rights, strict=True))
        return rights

    found = noticeable(ask, Stairs(0.1, 8), tracks=3)
    assert sum(count for _, _, count in found.curve) == len(asked)
    assert sum(right for _, right, _ in found.curve) == sum(right for _, right in asked)
    assert [gap for gap, _, _ in found.curve] == sorted({round(gap, 9) for gap, _ in asked})


@pytest.mark.parametrize(("stairs", "named"), [
    ({"low": 0.0}, "low: must be"), ({"fine": 1.0}, "fine: must be"), ({"down": 0}, "down: must be")])
def test_stairs_that_lead_nowhere_are_refused(stairs: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Stairs(**({"low": 0.1, "high": 8.0} | stairs))


def test_who_hears_the_smallest_gap_too_seldom_has_no_threshold_below_it() -> None:
    """Right at all gaps but the smallest, where 3 of 4 answers are: below the 79.4 % of a threshold."""
    numbers = iter(range(10**6))
    stairs = Stairs(0.1, 8, reversals=8)
    found = noticeable(lambda gaps: [gap > 0.1 * 1.001 or next(numbers) % 4 > 0 for gap in gaps], stairs, tracks=8)
    lowest, right, count = found.curve[0]
    assert lowest == 0.1
    assert right / count < stairs.target
    assert found.bound == "measured"
