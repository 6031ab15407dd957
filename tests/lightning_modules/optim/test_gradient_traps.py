"""Gradients that break low-rank optimizers: zero, exactly low-rank, not finite, absent, sparse."""

import pytest
import torch
from small_training import SHAPES, drifting_gradients, everything, gradients_of_all, same_bits, small_fira, train

from lightning_modules.optim.adamw import AdamW, AdamWConfig
from lightning_modules.optim.fira import Fira, FiraConfig
from lightning_modules.optim.nonfinite import FiniteGradients

GAP = 5
PROJECTED = [name for name in SHAPES if name.startswith("blocks")]
VARIANTS = pytest.mark.parametrize("variant", ["official", "paper"])


def residual_norms(gradients, **config):
    """Norm of one matrix's limited residual after each step, with bias correction taken out so that steps compare."""
    weight = torch.nn.Parameter(torch.zeros(gradients[0].shape))
    optimizer = Fira([("attn", weight)], FiraConfig(rank=3, gap=GAP, targets=["attn"], **config))
    norms = []
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        assert weight.isfinite().all()
        norms.append(float(optimizer.state[weight]["residual_norm"]))
    return norms


@VARIANTS
@pytest.mark.parametrize("at", [0, 1, GAP - 1, GAP, GAP + 2])
def test_after_a_gradient_of_zeros_the_residual_is_as_large_as_without_it(at, variant):
    gradients = list(drifting_gradients((20, 8), 40, dtype=torch.float32))
    with_zeros = [*gradients[:at], torch.zeros(20, 8), *gradients[at:]]
    undisturbed, disturbed = (residual_norms(some, variant=variant)[-1] for some in (gradients, with_zeros))
    assert disturbed > 0.3 * undisturbed


def test_a_first_gradient_of_zeros_moves_nothing_and_leaves_no_basis():
    parameters, optimizer = small_fira()
    before = {name: p.detach().clone() for name, p in parameters.items()}
    train(parameters, optimizer, [{name: torch.zeros(shape) for name, shape in SHAPES.items()}])
    assert same_bits(before, {name: p.detach() for name, p in parameters.items()})
    train(parameters, optimizer, gradients_of_all(1))
    bases = [optimizer.state[parameters[name]]["basis"] for name in PROJECTED]
    assert all(torch.allclose(b.T @ b, torch.eye(3), atol=1e-6) for b in bases)


@VARIANTS
@pytest.mark.parametrize("shape", [(20, 8), (8, 20), (12, 12)])
def test_a_gradient_of_exactly_low_rank_does_not_throttle_the_residuals_that_follow(shape, variant):
    gradients = list(drifting_gradients(shape, 40, dtype=torch.float32))
    random = torch.Generator().manual_seed(1)
    low = 0.1 * torch.randn(shape[0], 2, generator=random) @ torch.randn(2, shape[1], generator=random)
    refreshed_by_it = [*gradients[:GAP], low, *gradients[GAP:]]
    undisturbed, disturbed = residual_norms(gradients, variant=variant), residual_norms(refreshed_by_it, variant=variant)
    assert disturbed[GAP + 4] > 0.3 * undisturbed[GAP + 4]


@VARIANTS
@pytest.mark.parametrize("scaling", ["column", "matrix"])
def test_a_row_that_leaves_the_basis_is_not_blown_up_by_its_old_momentum(scaling, variant):
    weight = torch.nn.Parameter(torch.zeros(20, 8))
    config = FiraConfig(lr=1.0, rank=3, gap=100, targets=["attn"], variant=variant, scaling=scaling, limiter_gamma=None)
    optimizer = Fira([("attn", weight)], config)
    for gradient in drifting_gradients((20, 8), 4, dtype=torch.float32):
        weight.grad = gradient.clone()
        before = weight.detach().clone()
        optimizer.step()
    usual = (weight.detach() - before).abs().max()
    basis = optimizer.state[weight]["basis"]
    outside = torch.linalg.qr(torch.cat([basis, torch.eye(8)[:, :1]], 1)).Q[:, 3]  # a direction that the basis does not hold
    weight.grad = gradient.clone()
    weight.grad[4] = outside
    weight.grad[5] = 0
    before = weight.detach().clone()
    optimizer.step()
    assert (weight.detach() - before).abs().max() < 30 * usual


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("step", [0, 2, GAP], ids=["first", "between", "refresh"])
@pytest.mark.parametrize("name", ["blocks.0.mlp.down", "embed", "norm"])
def test_a_gradient_that_is_not_finite_stops_the_run_before_it_reaches_anything(name, step, bad):
    parameters, optimizer = small_fira(nonfinite="raise")
    *good, last = gradients_of_all(step + 1)
    train(parameters, optimizer, good)
    before = everything(parameters, optimizer)
    last[name].view(-1)[3] = bad
    with pytest.raises(FloatingPointError, match=f"{name} is not finite"):
        train(parameters, optimizer, [last])
    assert same_bits(before, everything(parameters, optimizer))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("step", [0, 2, GAP], ids=["first", "between", "refresh"])
def test_a_skipped_step_leaves_no_trace(step, bad):
    gradients = gradients_of_all(12)
    expected, optimizer = small_fira(nonfinite="skip")
    train(expected, optimizer, gradients)
    expected = everything(expected, optimizer)
    spoilt = {name: gradient.clone() for name, gradient in gradients[0].items()}
    spoilt["blocks.0.mlp.up"][1, 1] = bad
    parameters, optimizer = small_fira(nonfinite="skip")
    train(parameters, optimizer, gradients[:step])
    before = everything(parameters, optimizer)
    train(parameters, optimizer, [spoilt])
    assert same_bits(before, everything(parameters, optimizer))
    train(parameters, optimizer, gradients[step:])
    assert same_bits(expected, everything(parameters, optimizer))


def test_where_waiting_is_dear_the_verdict_comes_with_the_next_step_or_the_checkpoint():
    *good, last = gradients_of_all(3)
    last["norm"][0] = float("nan")
    for ask in (lambda p, o: train(p, o, good), lambda p, o: o.state_dict()):
        parameters, optimizer = small_fira()
        optimizer.finite = FiniteGradients("raise", deferred=True)  # as on a GPU
        train(parameters, optimizer, [*good, last])
        with pytest.raises(FloatingPointError, match="norm is not finite"):
            ask(parameters, optimizer)


def test_a_refresh_that_waits_anyway_judges_at_once():
    gradients = gradients_of_all(GAP + 1)
    gradients[-1]["norm"][0] = float("nan")
    parameters, optimizer = small_fira()
    optimizer.finite = FiniteGradients("raise", deferred=True)
    train(parameters, optimizer, gradients[:-1])
    before = everything(parameters, optimizer)
    with pytest.raises(FloatingPointError, match="norm is not finite"):
        train(parameters, optimizer, gradients[-1:])
    assert same_bits(before, everything(parameters, optimizer))


@pytest.mark.parametrize("absent", ["blocks.0.attn.q", "embed"])
def test_a_parameter_without_a_gradient_stays_and_so_does_its_step(absent):
    parameters, optimizer = small_fira()
    gradients = gradients_of_all(4)
    train(parameters, optimizer, gradients[:2])
    before = everything(parameters, optimizer)
    for step in gradients[2:]:
        del step[absent]
    train(parameters, optimizer, gradients[2:])
    after = everything(parameters, optimizer)
    own = {key for key in before if key.split(".step")[0] == absent or key.startswith(absent + ".")}
    assert same_bits({key: before[key] for key in own}, {key: after[key] for key in own})
    steps = {name: int(optimizer.state[p]["step"]) for name, p in parameters.items()}
    assert steps.pop(absent) == 2
    assert set(steps.values()) == {4}


def test_a_step_without_any_gradient_does_nothing():
    parameters, optimizer = small_fira()
    before = everything(parameters, optimizer)
    optimizer.step()
    assert same_bits(before, everything(parameters, optimizer))


def test_a_sparse_gradient_is_refused_by_name():
    embedding = torch.nn.Embedding(10, 4, sparse=True)
    optimizer = AdamW(embedding.named_parameters(), AdamWConfig())
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="gradient of weight is sparse"):
        optimizer.step()


def test_a_closure_is_run_with_gradients_and_its_loss_returned():
    weight = torch.nn.Parameter(torch.ones(6, 4))
    optimizer = Fira([("attn", weight)], FiraConfig(rank=2, targets=["attn"]))

    def closure():
        loss = (weight**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        losses = [float(optimizer.step(closure)) for _ in range(3)]
    assert losses[0] == 24.0
    assert losses[2] < losses[1] < losses[0]


def test_a_scheduler_of_torch_sets_the_rate_of_both_groups():
    parameters, optimizer = small_fira(lr=0.5)
    unscheduled, other = small_fira(lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.25)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    train(parameters, optimizer, gradients_of_all(1))
    train(unscheduled, other, gradients_of_all(1))
    assert schedule.get_last_lr() == [0.125, 0.125]
    for name, start in before.items():
        assert torch.allclose(parameters[name] - start, 0.25 * (unscheduled[name] - start), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [lambda p: Fira(p.items(), FiraConfig(lr=0.1, rank=3)), lambda p: AdamW(p.items(), AdamWConfig(lr=0.1))])
def test_a_step_uses_its_gradients_up(make, dtype):
    parameters, _ = small_fira(dtype)
    optimizer = make(parameters)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    train(parameters, optimizer, gradients_of_all(1))
    assert all(p.grad is None for p in parameters.values())
    assert all(not torch.equal(p, before[name]) and p.dtype == dtype for name, p in parameters.items())
