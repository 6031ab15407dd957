"""Fira's numbers beside an independent float64 reference."""

import pytest
import torch
from fira_reference import ReferenceAdam, ReferenceFira, Settings
from small_training import drifting_gradients

from lightning_modules.optim.fira import Fira, FiraConfig

TALL, WIDE, SQUARE = (24, 10), (10, 24), (12, 12)
SHAPES_AND_RANKS = [(TALL, 4), (WIDE, 4), (SQUARE, 5), (TALL, 1), (WIDE, 1), ((9, 26), 50), ((26, 9), 50), ((1, 8), 3), ((8, 1), 3)]
NAME = "layers.0.attn.weight"


def our_trajectory(shape, gradients, lr=0.02, **config):
    """Weights after each of our steps from zero, in float64."""
    weight = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = Fira([(NAME, weight)], FiraConfig(lr=lr, targets=["attn"], **config))
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        yield weight.detach().clone()


def reference_trajectory(shape, gradients, lr=0.02, **settings):
    weight, reference = torch.zeros(shape, dtype=torch.float64), ReferenceFira(Settings(**settings))
    for gradient in gradients:
        weight = reference.step(weight, gradient, lr)
        yield weight


def worst_disagreement(ours, theirs):
    """Largest distance of two trajectories from a common start, relative to the way walked."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("scaling", ["column", "matrix"])
@pytest.mark.parametrize("variant", ["official", "paper"])
@pytest.mark.parametrize(("shape", "rank"), SHAPES_AND_RANKS)
def test_fira_equals_the_reference_in_float64_over_refreshes(shape, rank, variant, scaling):
    gradients = list(drifting_gradients(shape, 25))
    both = {"rank": rank, "gap": 8, "variant": variant, "scaling": scaling, "weight_decay": 0.1}
    ours = our_trajectory(shape, gradients, canonical_sign=True, **both)
    assert worst_disagreement(ours, reference_trajectory(shape, gradients, **both)) < 1e-11


@pytest.mark.parametrize("gamma", [None, 1.0, 1.05, 3.0])
@pytest.mark.parametrize("alpha", [0.0625, 0.95, 1.0, 2.0])
@pytest.mark.parametrize("variant", ["official", "paper"])
def test_every_alpha_and_gamma_equals_the_reference(variant, alpha, gamma):
    gradients = list(drifting_gradients(TALL, 25, seed=1))
    both = {"rank": 4, "gap": 8, "variant": variant, "alpha": alpha}
    ours = our_trajectory(TALL, gradients, canonical_sign=True, limiter_gamma=gamma, **both)
    assert worst_disagreement(ours, reference_trajectory(TALL, gradients, gamma=gamma, **both)) < 1e-11


@pytest.mark.parametrize("scaling", ["column", "matrix"])
@pytest.mark.parametrize("shape", [TALL, WIDE, SQUARE])
@pytest.mark.parametrize("mode", [{"residual": False}, {"only_scaling": True}])
def test_galore_and_only_scaling_equal_the_reference(shape, mode, scaling):
    gradients = list(drifting_gradients(shape, 25, seed=2))
    both = {"rank": 4, "gap": 8, "scaling": scaling, **mode}
    ours = our_trajectory(shape, gradients, canonical_sign=True, **both)
    assert worst_disagreement(ours, reference_trajectory(shape, gradients, **both)) < 1e-11


def test_parameters_outside_the_targets_follow_plain_adam_with_the_same_rate():
    both = {"rank": 2, "gap": 8, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    projected, plain = (torch.nn.Parameter(torch.ones(6, 5, dtype=torch.float64)) for _ in range(2))
    config = FiraConfig(lr=0.02, rank=2, gap=8, beta1=0.8, beta2=0.95, eps=1e-3, weight_decay=0.1, targets=["attn"])
    optimizer = Fira([(NAME, projected), ("embed.weight", plain)], config)
    expected, reference = plain.detach().clone(), ReferenceAdam(Settings(**both))
    for gradient in drifting_gradients((6, 5), 20, seed=3):
        projected.grad, plain.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        expected = reference.step(expected, gradient, 0.02)
    assert torch.allclose(plain, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_the_official_update_is_the_papers_plus_the_scaled_gradient_they_disagree_on(shape):
    alpha, lr, both = 0.25, 1.0, {"rank": 4, "gap": 5, "limiter_gamma": None}
    gradients = list(drifting_gradients(shape, 12, seed=4))
    official = list(our_trajectory(shape, gradients, lr, variant="official", alpha=alpha, **both))
    paper = list(our_trajectory(shape, gradients, lr, variant="paper", alpha=alpha, **both))
    oracle, before = ReferenceFira(Settings(rank=4, gap=5)), (torch.zeros(shape), torch.zeros(shape))
    for gradient, after in zip(gradients, zip(official, paper, strict=True), strict=True):
        oracle.step(torch.zeros(shape), gradient, lr)  # for phi and c_t; phi does not depend on the signs of the basis before a refresh
        phi = oracle.phi.T if shape == TALL else oracle.phi
        difference = (before[0] - after[0]) - (before[1] - after[1])
        if oracle.adam.count <= 5:
            assert torch.allclose(difference, (1 - alpha) * oracle.adam.correction * phi * gradient, rtol=1e-9, atol=1e-12)
        before = after


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_no_limiter_is_the_same_as_one_that_never_binds(variant):
    gradients = list(drifting_gradients(WIDE, 20, seed=5))
    both = {"rank": 4, "gap": 6, "variant": variant}
    without, never = (list(our_trajectory(WIDE, gradients, limiter_gamma=gamma, **both)) for gamma in (None, 1e30))
    assert worst_disagreement(without, never) < 1e-12
    binding = list(our_trajectory(WIDE, gradients, limiter_gamma=1.01, **both))
    assert worst_disagreement(without, binding) > 1e-3  # these gradients do need the limiter
