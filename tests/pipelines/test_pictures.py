"""The picture of a run is drawn from metrics.csv."""

import struct

import numpy as np
import pytest

from pipelines.pictures import curve, draw_loss, smoothed
from pipelines.tracking import MetricsFile


@pytest.fixture
def metrics(tmp_path):
    """Write the metrics of five steps, two of them validated."""
    file = MetricsFile(tmp_path)
    for step in range(5):
        file.log_metrics({"train/loss": 5.0 - step, **({"val/loss": 4.5} if step in (1, 3) else {})}, step)
        file.save()
    return tmp_path / "metrics.csv"


def test_a_curve_has_a_point_where_the_metric_was_logged_at_the_number_of_steps_done(metrics):
    assert curve(metrics, "train/loss") == ([1, 2, 3, 4, 5], [5.0, 4.0, 3.0, 2.0, 1.0])
    assert curve(metrics, "val/loss") == ([2, 4], [4.5, 4.5])
    assert curve(metrics, "no/such") == ([], [])
    assert curve(metrics.with_name("missing.csv"), "train/loss") == ([], [])


@pytest.mark.parametrize(("count", "points"), [(0, 50), (1, 50), (99, 50), (100, 50), (237, 10), (1000, 50)])
def test_smoothing_is_the_mean_over_the_neighbours(count, points):
    values = np.random.default_rng(0).normal(size=count).tolist()
    reach = count // (2 * points)
    expected = [np.mean(values[max(i - reach, 0) : i + reach + 1]) for i in range(count)]
    assert smoothed(values, points).tolist() == pytest.approx(expected)


def test_the_picture_is_a_png_of_the_promised_size(metrics, tmp_path):
    draw_loss(metrics, tmp_path / "loss.png")
    head = (tmp_path / "loss.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24]) == (768, 480)


def test_without_any_loss_nothing_is_drawn(tmp_path):
    draw_loss(tmp_path / "metrics.csv", tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()
