"""Between refreshes a step may not read anything back from the device. Meta tensors have no numbers, so reading one is an error."""

import pytest
import torch
from small_training import small_fira

CONFIGS = [{}, {"variant": "paper"}, {"scaling": "matrix"}, {"residual": False}, {"only_scaling": True}, {"limiter_gamma": None},
           {"weight_decay": 0.1}, {"state_dtype": "bfloat16"}]


def a_step(parameters, optimizer):
    for p in parameters.values():
        p.grad = torch.zeros_like(p)
    optimizer.step()


def between_refreshes(**config):
    """Make parameters on the meta device, and Fira as it is after its first step."""
    parameters, optimizer = small_fira(device="meta", gap=100, **config)
    optimizer.without_basis.clear()
    for p in parameters.values():
        optimizer.state[p]["step"] += 1
    return parameters, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_step_between_refreshes_reads_nothing_back(config, dtype):
    parameters, optimizer = between_refreshes(**config)
    for p in parameters.values():
        p.data = p.data.to(dtype)
    a_step(parameters, optimizer)
    assert {int(optimizer.state[p]["step"]) for p in parameters.values()} == {2}


def test_this_test_would_notice_a_step_that_reads():
    for parameters, optimizer in (small_fira(device="meta"), between_refreshes(nonfinite="skip")):  # a refresh reads, and so does skip
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            a_step(parameters, optimizer)
