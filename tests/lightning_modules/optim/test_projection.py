"""Bases of low-rank gradients: quality, seeds, signs, and when they are refreshed."""

import itertools
import statistics
import sysconfig
from pathlib import Path

import pytest
import torch
from small_training import SHAPES, drifting_gradients, everything, gradients_of_all, same_bits, small_fira, train

from lightning_modules.language.llama import new_llama
from lightning_modules.optim import fira
from lightning_modules.optim.projection import find_basis, squared_row_norms, tall_view, with_canonical_signs

KINDS = ["svd", "gram", "randomized", "subspace"]
PROJECTED = [name for name in SHAPES if name.startswith("blocks")]


def consecutive_gradients(shape, dtype=torch.float32):
    return list(drifting_gradients(shape, 6, seed=3, dtype=dtype))


def energy(gradient, basis):
    return float((tall_view(gradient).double() @ basis.double()).square().sum())


@pytest.fixture(scope="module")
def language_model_gradients():
    """Gradients of a small byte-level LLaMA's matrices at two steps of its training, 20 apart."""
    text = torch.tensor(list(Path(sysconfig.get_path("stdlib"), "argparse.py").read_bytes()))
    torch.manual_seed(0)
    model = new_llama("debug", vocab_size=256, max_positions=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    gradients = []
    for step in range(41):
        ids = torch.stack([text[start : start + 64] for start in torch.randint(len(text) - 64, (8,))])
        model(input_ids=ids, labels=ids).loss.backward()
        if step in (20, 40):
            gradients.append([p.grad.clone() for name, p in model.named_parameters() if "attn" in name or "mlp" in name])
        optimizer.step()
        optimizer.zero_grad()
    return list(zip(*gradients, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_every_basis_captures_the_energy_of_the_full_svd(language_model_gradients, kind):
    rank, shares, stale = 16, [], []
    for before, gradient in language_model_gradients:
        previous = find_basis(before, rank, "svd", None, 0)
        best = float(torch.linalg.svdvals(gradient.double())[:rank].square().sum())
        shares.append(energy(gradient, find_basis(gradient, rank, kind, previous, seed=5)) / best)
        stale.append(energy(gradient, previous) / best)
    assert len(shares) == 14
    assert min(shares) > (0.995 if kind == "subspace" else 0.99999)
    assert 0.999 < statistics.mean(shares) < 1 + 1e-6
    assert statistics.mean(stale) < 0.99  # so there was something to find


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_basis_is_orthonormal(dtype, kind):
    *_, before, gradient = consecutive_gradients((96, 64), dtype)
    basis = find_basis(gradient, 16, kind, find_basis(before, 16, "svd", None, 0), seed=5)
    assert basis.dtype == dtype
    assert (basis.T @ basis - torch.eye(16, dtype=dtype)).abs().max() < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_above_the_short_side_gives_the_whole_space(kind):
    gradient = consecutive_gradients((30, 8))[-1]
    basis = find_basis(gradient, 50, kind, None, seed=5)
    assert basis.shape == (8, 8)
    assert torch.allclose(basis @ basis.T, torch.eye(8), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e6])
def test_the_size_of_the_gradient_does_not_change_its_basis(scale, kind):
    *_, before, gradient = consecutive_gradients((96, 64))
    previous = find_basis(before, 16, "svd", None, 0)
    plain, scaled = (find_basis(g, 16, kind, previous, seed=5) for g in (gradient, gradient * scale))
    assert energy(gradient, scaled) == pytest.approx(energy(gradient, plain), rel=1e-5)
    assert (scaled.T @ scaled - torch.eye(16)).abs().max() < 1e-5


def test_gram_and_svd_find_the_same_space():
    gradient = consecutive_gradients((40, 24), torch.float64)[-1]
    one, other = (find_basis(gradient, 6, kind, None, 0) for kind in ("svd", "gram"))
    assert torch.allclose(one @ one.T, other @ other.T, atol=1e-9)


def test_a_warm_started_basis_keeps_its_directions_and_signs():
    gradient = consecutive_gradients((40, 24), torch.float64)[-1]
    signs = 2.0 * torch.randint(2, (6,), generator=torch.Generator().manual_seed(0)) - 1
    exact = find_basis(gradient, 6, "svd", None, 0) * signs
    assert torch.allclose(find_basis(gradient, 6, "subspace", exact, 0), exact, atol=1e-9)


def test_the_same_seed_draws_the_same_sketch_and_another_seed_another():
    gradient = consecutive_gradients((96, 64))[-1]
    first, again, other = (find_basis(gradient, 16, "randomized", None, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("basis", ["randomized", "subspace"])
def test_runs_with_one_seed_have_the_same_bits_and_runs_with_two_have_not(basis):
    ends = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(ends))  # the sketches must not depend on the global generator
        parameters, optimizer = small_fira(basis=basis, seed=seed, rank=2)
        train(parameters, optimizer, gradients_of_all(7))
        ends.append(everything(parameters, optimizer))
    assert same_bits(ends[0], ends[1])
    assert not same_bits(ends[0], ends[2])


def test_each_parameter_and_each_step_draws_its_own_sketch(monkeypatch):
    seeds = []

    def remembered(*arguments):
        seeds.append(arguments[-1])
        return find_basis(*arguments)

    monkeypatch.setattr(fira, "find_basis", remembered)
    parameters, optimizer = small_fira(basis="randomized", gap=2)
    train(parameters, optimizer, gradients_of_all(4))
    assert len(seeds) == len(set(seeds)) == 2 * len(PROJECTED)


def flip_some_signs(monkeypatch, seed):
    """Let the decomposition return some vectors with the other sign, as another library would."""
    random = torch.Generator().manual_seed(seed)

    def flipped(*arguments):
        basis = find_basis(*arguments)
        return basis * (2 * torch.randint(2, basis.shape[1:], generator=random) - 1)

    monkeypatch.setattr(fira, "find_basis", flipped)


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_canonical_signs_make_a_run_independent_of_the_librarys_signs(monkeypatch, variant):
    ends = {}
    for canonical in (True, False):
        for seed in (None, 1):
            with monkeypatch.context() as patch:
                if seed is not None:
                    flip_some_signs(patch, seed)
                parameters, optimizer = small_fira(canonical_sign=canonical, variant=variant)
                train(parameters, optimizer, gradients_of_all(12))
                ends[canonical, seed] = everything(parameters, optimizer)
    assert same_bits(ends[True, None], ends[True, 1])
    assert not torch.allclose(ends[False, None][PROJECTED[0]], ends[False, 1][PROJECTED[0]], rtol=1e-3)


def test_canonical_signs_make_the_largest_entry_of_each_column_positive():
    basis = with_canonical_signs(torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(0))).Q)
    assert (basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all()


def refreshes_by_step(steps, **config):
    """Which matrices get a new basis at each step, told from the bases themselves."""
    parameters, optimizer = small_fira(**config)
    old = {name: optimizer.state[parameters[name]]["basis"].clone() for name in PROJECTED}
    refreshed = []
    for gradients in gradients_of_all(steps):
        train(parameters, optimizer, [gradients])
        new = {name: optimizer.state[parameters[name]]["basis"].clone() for name in PROJECTED}
        refreshed.append({name for name in PROJECTED if not torch.equal(old[name], new[name])})
        old = new
    return refreshed


def test_bases_are_refreshed_at_the_first_step_and_every_gap_from_there():
    refreshed = refreshes_by_step(13, gap=6)
    assert [step for step, names in enumerate(refreshed) if names] == [0, 6, 12]
    assert all(names == set(PROJECTED) for names in refreshed if names)


def test_a_gap_of_one_refreshes_at_every_step():
    assert refreshes_by_step(4, gap=1) == [set(PROJECTED)] * 4


@pytest.mark.parametrize("gap", [3, 6, 8])
def test_staggered_refreshes_are_spread_over_the_gap_one_matrix_at_a_time(gap):
    refreshed = refreshes_by_step(3 * gap + 1, gap=gap, refresh_stagger=True)
    assert refreshed[0] == set(PROJECTED)
    later = refreshed[1:]
    assert max(len(names) for names in later) == 1
    for name in PROJECTED:
        steps = [step for step, names in enumerate(later) if name in names]
        assert len(steps) == 3
        assert {b - a for a, b in itertools.pairwise(steps)} == {gap}


@pytest.mark.parametrize("shape", [(300, 7), (7, 300), (64, 64), (1, 5), (5, 1)])
def test_squared_row_norms_are_those_of_float64(shape):
    tall = tall_view(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    for view in (tall, tall.contiguous(), tall.mT.contiguous().mT):
        assert torch.allclose(squared_row_norms(view).double(), view.double().square().sum(1), rtol=1e-5)
