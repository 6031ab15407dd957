"""The same weights as the packages that people use today: the authors' Fira, and GaLore."""

import pytest
import torch
from fira import FiraAdamW
from small_training import drifting_gradients
from torch.nn import Parameter

from lightning_modules.optim.fira import Fira, FiraConfig

SHAPES = {"blocks.0.attn.q": (24, 24), "blocks.0.mlp.up": (40, 16), "blocks.0.mlp.down": (16, 40), "embed": (30, 16)}
STEPS, GAP, RANK, LR = 200, 20, 6, 0.01


def two_models(dtype=torch.float32):
    """Two equal sets of named parameters, projected ones first."""
    torch.manual_seed(0)
    ours = {name: Parameter(torch.randn(shape, dtype=dtype) * 0.05) for name, shape in SHAPES.items()}
    return ours, {name: Parameter(p.detach().clone()) for name, p in ours.items()}


def run_both(ours, theirs, our_optimizer, their_optimizer, dtype=torch.float32):
    streams = {name: drifting_gradients(shape, STEPS, seed, dtype) for seed, (name, shape) in enumerate(SHAPES.items())}
    for gradients in zip(*streams.values(), strict=True):
        for name, gradient in zip(streams, gradients, strict=True):
            ours[name].grad, theirs[name].grad = gradient.clone(), gradient.clone()
        our_optimizer.step()
        their_optimizer.step()


def relative_errors(ours, theirs):
    return {name: float((ours[name] - theirs[name]).detach().norm() / theirs[name].detach().norm()) for name in ours}


def their_groups(theirs, **projection):
    rest = [p for name, p in theirs.items() if name.startswith("embed")]
    projected = [p for name, p in theirs.items() if not name.startswith("embed")]
    return [{"params": rest}, {"params": projected, "rank": RANK, "update_proj_gap": GAP, "proj_type": "std", **projection}]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [0.0625, 0.25, 1.0])
def test_200_steps_with_10_refreshes_end_where_the_authors_package_ends(alpha, weight_decay):
    ours, theirs = two_models()
    config = FiraConfig(lr=LR, rank=RANK, gap=GAP, alpha=alpha, weight_decay=weight_decay)
    package = FiraAdamW(their_groups(theirs, alpha=alpha), lr=LR, weight_decay=weight_decay, no_deprecation_warning=True)
    run_both(ours, theirs, Fira(ours.items(), config), package)
    assert max(relative_errors(ours, theirs).values()) < 3e-6


def test_the_paper_variant_is_another_optimizer_than_the_authors_package():
    ours, theirs = two_models()
    package = FiraAdamW(their_groups(theirs, alpha=0.25), lr=LR, no_deprecation_warning=True)
    run_both(ours, theirs, Fira(ours.items(), FiraConfig(lr=LR, rank=RANK, gap=GAP, variant="paper")), package)
    errors = relative_errors(ours, theirs)
    assert errors.pop("embed") < 3e-6  # outside the projection there is nothing to disagree on
    assert min(errors.values()) > 0.1


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_without_its_residual_it_is_the_galore_package(weight_decay):
    galore = pytest.importorskip("galore_torch", reason="galore-torch comes with `make bench`")
    ours, theirs = two_models()
    config = FiraConfig(lr=LR, rank=RANK, gap=GAP, alpha=0.25, residual=False, weight_decay=weight_decay)
    package = galore.GaLoreAdamW(their_groups(theirs, scale=0.25), lr=LR, weight_decay=weight_decay, no_deprecation_warning=True)
    run_both(ours, theirs, Fira(ours.items(), config), package)
    assert max(relative_errors(ours, theirs).values()) < 3e-6
