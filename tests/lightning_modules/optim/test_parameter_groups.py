"""What is projected, what is not, and what that saves."""

import pytest
import torch
from small_training import gradients_of_all, small_fira, train
from torch.nn import Parameter

from lightning_modules.language.llama import new_llama
from lightning_modules.optim.adamw import AdamW, AdamWConfig
from lightning_modules.optim.fira import Fira, FiraConfig
from lightning_modules.optim.groups import describe

LINEAR_LAYERS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module")
def llama():
    return new_llama("debug", vocab_size=97, max_positions=16)


def test_by_default_exactly_the_linear_layers_of_attention_and_mlp_are_projected(llama):
    rows = describe(Fira(llama.named_parameters(), FiraConfig(rank=8)))
    assert {row.name for row in rows} == {name for name, _ in llama.named_parameters()}
    for row in rows:
        assert row.projected == (row.name.split(".")[-2] in LINEAR_LAYERS), row.name
    assert sum(row.projected for row in rows) == 2 * len(LINEAR_LAYERS)


def test_vectors_are_never_projected_even_if_a_target_names_them():
    shapes = {"attn.weight": (6, 4), "attn.bias": (6,), "attn.kernel": (2, 3, 4)}
    named = {name: Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    rows = describe(Fira(named.items(), FiraConfig(rank=2, targets=["attn"])))
    assert {row.name for row in rows if row.projected} == {"attn.weight"}


def test_a_target_that_matches_no_matrix_is_an_error_that_names_it_and_the_candidates(llama):
    with pytest.raises(ValueError) as error:
        Fira(llama.named_parameters(), FiraConfig(targets=["attn", "mpl"]))
    message = str(error.value)
    assert "\n" not in message
    assert "'mpl'" in message
    assert "model.layers.*.mlp.up_proj.weight" in message


def test_a_target_that_matches_vectors_only_is_an_error_too(llama):
    with pytest.raises(ValueError, match="'layernorm' matches no matrix"):
        Fira(llama.named_parameters(), FiraConfig(targets=["layernorm"]))


def test_targets_are_regular_expressions(llama):
    rows = describe(Fira(llama.named_parameters(), FiraConfig(rank=8, targets=[r"layers\.1\..*(q|k)_proj"])))
    assert {row.name for row in rows if row.projected} == {f"model.layers.1.self_attn.{x}_proj.weight" for x in "qk"}


def test_the_reported_bytes_are_those_of_the_state_and_of_two_moments_in_float32():
    parameters, optimizer = small_fira(rank=3)
    train(parameters, optimizer, gradients_of_all(1))
    for row in describe(optimizer):
        p = parameters[row.name]
        assert row.adamw_bytes == 8 * p.numel()
        hi, lo = (max(p.shape), min(p.shape))
        numbers = 2 * 3 * hi + 3 * lo if row.projected else 2 * p.numel()
        assert 0 <= row.state_bytes - 4 * numbers <= 16  # beside a few scalars
        assert row.rank == (3 if row.projected else None)


def test_state_in_bfloat16_takes_half_the_memory():
    full, half = (sum(row.state_bytes for row in describe(small_fira(state_dtype=kept)[1])) for kept in ("float32", "bfloat16"))
    assert half == pytest.approx(full / 2, rel=0.03)


def test_adamw_projects_nothing_and_reports_its_own_memory(llama):
    rows = describe(AdamW(llama.named_parameters(), AdamWConfig()))
    assert not any(row.projected for row in rows)
    assert all(0 <= row.state_bytes - row.adamw_bytes <= 8 for row in rows)


def test_only_parameters_with_two_or_more_dimensions_decay():
    named = {"attn.weight": Parameter(torch.ones(6, 4)), "embed": Parameter(torch.ones(6, 4)), "norm": Parameter(torch.ones(6))}
    for optimizer in (Fira(named.items(), FiraConfig(lr=0.1, rank=2, weight_decay=0.5, targets=["attn"])),
                      AdamW(named.items(), AdamWConfig(lr=0.1, weight_decay=0.5))):
        for p in named.values():
            p.data.fill_(1.0)
            p.grad = torch.zeros_like(p)
        optimizer.step()
        assert {name: round(float(p.detach().mean()), 6) for name, p in named.items()} == {"attn.weight": 0.95, "embed": 0.95, "norm": 1.0}


def test_adamw_makes_the_steps_of_torchs_adamw():
    parameters, _ = small_fira()
    theirs = {name: Parameter(p.detach().clone()) for name, p in parameters.items()}
    groups = [{"params": [p for p in theirs.values() if p.ndim >= 2], "weight_decay": 0.1},
              {"params": [p for p in theirs.values() if p.ndim < 2], "weight_decay": 0.0}]
    train(parameters, AdamW(parameters.items(), AdamWConfig(lr=0.01, weight_decay=0.1)), gradients_of_all(20))
    train(theirs, torch.optim.AdamW(groups, lr=0.01, foreach=False), gradients_of_all(20))
    assert all(torch.allclose(p, theirs[name], rtol=1e-5, atol=1e-6) for name, p in parameters.items())


@pytest.mark.parametrize("wrong", [
    {"rank": 0}, {"gap": 0}, {"alpha": 0.0}, {"limiter_gamma": 0.99}, {"only_scaling": True, "residual": False}, {"targets": []},
    {"lr": 0.0}, {"beta1": 1.0}, {"beta2": -0.1}, {"eps": 0.0}, {"weight_decay": -1.0}, {"lr": float("nan")},
], ids=str)
def test_a_setting_that_makes_no_sense_is_refused_by_its_name(wrong):
    with pytest.raises(ValueError, match="|".join(f"^{name}: " for name in wrong)):
        FiraConfig(**wrong)
