"""The table of the comparison: means, paired differences and intervals as scipy has them."""

import re

import numpy as np
import pytest
from kpod_comparison import CONTENDERS, PLAIN, interval, table
from scipy.stats import ttest_1samp

from pipelines.config import compose


def test_the_interval_is_that_of_students_t():
    values = [1.0, 2.5, 3.0, 7.0]
    known = ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval(values) == pytest.approx((known.high - known.low) / 2)


def test_differences_are_paired_by_seed():
    plain = [{"accuracy": a, "loss": 1.0, "miss": 0.0, "learned_tokens": 2e6, "steps": 9} for a in (0.2, 0.4, 0.6)]
    better = [{**run, "accuracy": run["accuracy"] + gain} for run, gain in zip(plain, (0.01, 0.02, 0.03))]
    lines = table({PLAIN: plain, "KPOD": better}, {PLAIN: 0.001, "KPOD": 0.002}).splitlines()
    row = next(line for line in lines if line.startswith("| KPOD"))
    found = re.search(r"\| ([+-][\d.]+) ± ([\d.]+) \|", row)
    known = ttest_1samp([1, 2, 3], 0).confidence_interval(0.95)
    assert float(found[1]) == pytest.approx(2.0, abs=0.05)
    assert float(found[2]) == pytest.approx((known.high - known.low) / 2, abs=0.05)
    assert np.isfinite(float(found[2]))


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_composes_without_a_warning(name, recwarn):
    compose(["method=kpod", *CONTENDERS[name]])
    assert not [warning for warning in recwarn if "no effect" in str(warning.message)]
