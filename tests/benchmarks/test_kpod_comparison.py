"""The table of the comparison: means, paired differences and intervals as scipy has them."""

import itertools
import re

import numpy as np
import pytest
from kpod_comparison import CONTENDERS, EPOCHS, PLAIN, equal_steps, interval, table
from scipy.stats import ttest_1samp

from datamodules.curriculum import Curriculum, CurriculumOrder
from datamodules.kpod import KpodData, KpodDataConfig
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


def test_the_curriculum_trains_until_its_batches_have_shown_as_many_tokens_as_whole_rationales(tmp_path):
    data = KpodData(KpodDataConfig(problems=80, held_out_problems=8, batch_size=8, vocab_size=300, cache=str(tmp_path), seed=1))
    data.setup()
    table = np.minimum(np.arange(3, 0, -1)[:, None], data.samples.counts)  # three, two, one steps given
    curricula = [Curriculum(data.samples), Curriculum(data.samples, table=table)]
    whole, taught = ([draw.total for draw, *_ in batches] for batches in (_batches(c) for c in curricula))
    steps = equal_steps(curricula[1], batches=10)
    assert steps > EPOCHS * 10
    assert sum(taught[:steps]) == pytest.approx(sum(whole[: EPOCHS * 10]), rel=0.01)


def _batches(curriculum):
    return itertools.islice(CurriculumOrder(curriculum, 8, seed=3).walk(0, 0), 40 * EPOCHS)
