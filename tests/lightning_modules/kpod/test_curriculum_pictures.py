"""Pictures show the numbers that they were given."""

import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure

from lightning_modules.kpod.pictures import draw_accuracy, draw_schedule
from lightning_modules.kpod.schedule import Schedule

SCHEDULE = Schedule(table=np.array([[3, 1, 2], [2, 0, 2], [0, 0, 1]], np.int16), budget=np.array([3.0, 6.0, 10.0]),
                    difficulty=np.array([2.0, 5.5, 9.0]), chosen=np.array([[1, 1], [1, 1], [1, 1]]), step=1)


@pytest.fixture
def drawn(monkeypatch):
    """Keep each figure that is saved."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: (figures.append(figure), save(figure, path)))
    return figures


def test_the_picture_of_a_schedule_shows_budget_difficulty_steps_and_finished_questions(tmp_path, drawn):
    draw_schedule(SCHEDULE, tmp_path / "schedule.png")
    curves = [line.get_ydata() for axes in drawn[0].axes for line in axes.lines]
    expected = [[0.3, 0.6, 1.0], [0.2, 0.55, 0.9], [2.0, 4 / 3, 1 / 3], [0.0, 1 / 3, 2 / 3]]
    for curve, values in zip(curves, expected, strict=True):
        assert np.allclose(curve, values)
    assert image.imread(tmp_path / "schedule.png").std() > 0.01


def test_the_picture_of_accuracy_has_a_point_a_stage_and_marks_the_last_one_with_steps_given(tmp_path, drawn):
    draw_accuracy([(2, 0.25), (1, 0.1), (3, 0.2)], tmp_path / "accuracy.png", stages=2)
    curve, mark = drawn[0].axes[0].lines
    assert curve.get_xydata().tolist() == [[1, 0.1], [2, 0.25], [3, 0.2]]
    assert set(mark.get_xdata()) == {2}
    assert "25.0%" in drawn[0].axes[0].get_legend().get_texts()[0].get_text()
    assert (tmp_path / "accuracy.png").stat().st_size > 1000


def test_without_accuracies_nothing_is_drawn(tmp_path):
    draw_accuracy([], tmp_path / "accuracy.png")
    assert not (tmp_path / "accuracy.png").exists()
