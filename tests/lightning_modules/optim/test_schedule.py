"""Learning rates over a run, step by step, beside their closed forms."""

import math

import pytest
import torch

from lightning_modules.optim.adamw import AdamW, AdamWConfig
from lightning_modules.optim.schedule import ScheduleConfig, make_schedule

PEAK, STEPS = 0.2, 50


def rates(**config):
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = AdamW([("w", weight)], AdamWConfig(lr=PEAK))
    schedule, seen = make_schedule(optimizer, ScheduleConfig(**config), STEPS), []
    for _ in range(STEPS + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        weight.grad = torch.ones(2, 2)
        optimizer.step()
        schedule.step()
    return seen


def shape(name, done, floor):
    return {"constant": 1.0, "linear": 1 - (1 - floor) * done, "cosine": floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2}[name]


@pytest.mark.parametrize("floor", [0.0, 0.1])
@pytest.mark.parametrize(("warmup", "steps"), [(0.1, 5), (0.0, 0), (10.0, 10)])
@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_the_rate_rises_linearly_from_zero_and_then_follows_its_shape(name, warmup, steps, floor):
    expected = [PEAK * step / steps for step in range(steps)]
    expected += [PEAK * shape(name, step / (STEPS - steps), floor) for step in range(STEPS - steps + 1)]
    assert rates(name=name, warmup=warmup, min_lr_ratio=floor) == pytest.approx(expected, abs=1e-9)


def test_a_warmup_longer_than_the_run_just_rises():
    assert rates(warmup=100.0)[:STEPS] == pytest.approx([PEAK * step / 100 for step in range(STEPS)])


@pytest.mark.parametrize("wrong", [{"warmup": -0.1}, {"min_lr_ratio": 1.0}, {"min_lr_ratio": -0.1}], ids=str)
def test_a_schedule_that_makes_no_sense_is_refused_by_its_name(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: "):
        ScheduleConfig(**wrong)
