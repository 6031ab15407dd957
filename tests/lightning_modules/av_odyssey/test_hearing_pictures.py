"""Pictures of what a model hears show the figures that they were given."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from datamodules.av_questions import Audio, Picture, Question
from lightning_modules.av_odyssey.pictures import FLOOR, draw_failures, failure_figure, noticeable_figure, spectrogram
from lightning_modules.av_odyssey.staircase import Noticeable
from lightning_modules.intervals import wilson


def tone(frequency: float, amplitude: float, seconds: float = 1.0, rate: int = 16_000) -> Audio:
    return Audio((amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate))[None].astype(np.float32), rate)


@pytest.mark.parametrize(("frequency", "amplitude", "decibels"), [(1000.0, 1.0, 0.0), (2000.0, 0.1, -20.0), (4000.0, 0.01, -40.0)])
def test_a_spectrogram_shows_a_sine_at_its_frequency_and_level(frequency, amplitude, decibels):
    power = spectrogram(tone(frequency, amplitude))
    assert (power.argmax(0) == frequency / (16_000 / 512)).all()
    assert power.max(0) == pytest.approx(decibels, abs=0.05)


def test_silence_and_a_sound_shorter_than_a_window_have_a_spectrogram():
    assert (spectrogram(Audio(np.zeros((2, 100), np.float32), 16_000)) == FLOOR).all()
    assert spectrogram(tone(1000, 1, 0.01)).shape == (257, 1)


def test_the_curve_of_gaps_has_a_point_a_gap_and_a_line_at_the_threshold():
    found = Noticeable(1.5, 1.2, 1.8, "measured", ((1.0, 6, 10), (2.0, 9, 10)))
    axes = noticeable_figure({"loudness, dB": found}, 0.794).axes[0]
    points, (bars,) = axes.containers[0][0], axes.containers[0][2]
    assert points.get_xydata() == pytest.approx(np.array([[1, 60], [2, 90]]))
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [pytest.approx([100 * x for x in wilson(n, 10)]) for n in (6, 9)]
    assert axes.get_legend_handles_labels()[1][0] == "1.5 (1.2 to 1.8)"
    assert axes.xaxis.get_major_formatter()(0.25) == "0.25"


def test_a_failure_shows_each_sound_and_what_was_said():
    media = {"audio1": tone(500, 0.5), "audio2": tone(900, 0.5)}
    question = Question("29_1", "pitch", 29, "DeafTest hard", "[audio1] or [audio2]?", ("first", "second"), "B", media)
    failure_figure(question, "$\\x^$ \x19").savefig(BytesIO())  # which is no formula
    figure = failure_figure(question, "A\n")
    assert [axes.get_title() for axes in figure.axes] == ["audio1", "audio2"]
    assert figure.get_suptitle() == "29_1 pitch: right is B, said was 'A'"


def test_the_first_failures_with_sounds_are_drawn(tmp_path: Path):
    heard = Question("29_1", "pitch", 29, "DeafTest hard", "[audio1]?", ("first", "second"), "B", {"audio1": tone(500, 0.5)})
    silent = Question("1_1", "dots", 1, "Vision", "[img1]?", ("one", "two"), "A", {"img1": Picture(np.zeros((8, 8, 3), np.uint8))})
    drawn = draw_failures([(silent, "B"), *[(heard, "A")] * 3], tmp_path, most=2)
    assert sorted(tmp_path.iterdir()) == drawn == [tmp_path / "failure-1.png", tmp_path / "failure-2.png"]
    assert draw_failures([(silent, "B")], tmp_path) == []
