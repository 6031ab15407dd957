"""Saving and loading Fira's state: plain tensors, exact continuation, types and settings of the new run."""

import copy
import io
import warnings

import pytest
import torch
from small_training import SHAPES, everything, gradients_of_all, same_bits, small_fira, train
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from lightning_modules.optim.adamw import AdamW, AdamWConfig
from lightning_modules.optim.fira import Fira, FiraConfig

GAP, STEPS = 5, 13
PROJECTED = [name for name in SHAPES if name.startswith("blocks")]


def through_a_file(state):
    """Write and read a state as a checkpoint does that trusts nobody."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(parameters, optimizer, dtype=torch.float32, **config):
    """Build the run anew and give it the weights and the state of another."""
    fresh, other = small_fira(dtype, **config)
    for name, p in fresh.items():
        p.data.copy_(parameters[name].data)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    return fresh, other


@pytest.mark.parametrize("config", [
    {"basis": "svd"}, {"basis": "gram"}, {"basis": "randomized", "seed": 7}, {"basis": "subspace", "seed": 7}, {"variant": "paper"},
    {"refresh_stagger": True}, {"residual": False}, {"only_scaling": True}, {"state_dtype": "bfloat16"}, {"canonical_sign": True},
], ids=str)
@pytest.mark.parametrize("saved_at", [0, 1, GAP - 1, GAP, GAP + 2])
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(saved_at, config):
    gradients = gradients_of_all(STEPS)
    parameters, optimizer = small_fira(gap=GAP, **config)
    train(parameters, optimizer, gradients[:saved_at])
    continued, other = resumed(parameters, optimizer, gap=GAP, **config)
    train(parameters, optimizer, gradients[saved_at:])
    train(continued, other, gradients[saved_at:])
    assert same_bits(everything(parameters, optimizer), everything(continued, other))


def test_a_run_resumed_after_a_first_gradient_of_zeros_still_looks_for_its_basis():
    gradients = gradients_of_all(4)
    parameters, optimizer = small_fira()
    train(parameters, optimizer, [{name: torch.zeros(shape) for name, shape in SHAPES.items()}])
    continued, other = resumed(parameters, optimizer)
    train(parameters, optimizer, gradients)
    train(continued, other, gradients)
    assert same_bits(everything(parameters, optimizer), everything(continued, other))
    assert all(other.state[continued[name]]["basis"].any() for name in PROJECTED)


def test_adamw_resumes_with_the_same_bits():
    gradients = gradients_of_all(6)
    runs = []
    for interrupted in (False, True):
        parameters, _ = small_fira()
        optimizer = AdamW(parameters.items(), AdamWConfig(weight_decay=0.1))
        train(parameters, optimizer, gradients[:3])
        if interrupted:
            saved, optimizer = through_a_file(optimizer.state_dict()), AdamW(parameters.items(), AdamWConfig(weight_decay=0.1))
            optimizer.load_state_dict(saved)
        train(parameters, optimizer, gradients[3:])
        runs.append(everything(parameters, optimizer))
    assert same_bits(*runs)


def test_what_was_saved_does_not_change_with_further_steps():
    parameters, optimizer = small_fira()
    train(parameters, optimizer, gradients_of_all(2))
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved["state"])
    train(parameters, optimizer, gradients_of_all(6))
    assert all(same_bits(before[number], saved["state"][number]) for number in before)


def test_what_was_loaded_does_not_change_with_further_steps():
    parameters, optimizer = small_fira()
    train(parameters, optimizer, gradients_of_all(2))
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved["state"])
    optimizer.load_state_dict(saved)
    train(parameters, optimizer, gradients_of_all(6))
    assert all(same_bits(before[number], saved["state"][number]) for number in before)


@pytest.mark.parametrize(("kept", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_state_keeps_its_type_whatever_the_weights_are(weights, kept, dtype):
    parameters, optimizer = small_fira(weights, state_dtype=kept)
    train(parameters, optimizer, gradients_of_all(2))
    continued, other = resumed(parameters, optimizer, weights, state_dtype=kept)
    train(continued, other, gradients_of_all(1))
    for name, p in continued.items():
        keys = ("exp_avg", "exp_avg_sq", "basis") if name in PROJECTED else ("exp_avg", "exp_avg_sq")
        assert {other.state[p][key].dtype for key in keys} == {dtype}
        assert p.dtype == weights


def test_float64_weights_keep_float64_state():
    parameters, optimizer = small_fira(torch.float64)
    assert {value.dtype for p in parameters.values() for key, value in optimizer.state[p].items() if key != "step"} == {torch.float64}


def test_state_in_bfloat16_trains_nearly_as_state_in_float32():
    gradients, ends = gradients_of_all(STEPS), []
    for kept in ("float32", "bfloat16"):
        parameters, optimizer = small_fira(state_dtype=kept)
        start = {name: p.detach().clone() for name, p in parameters.items()}
        train(parameters, optimizer, gradients)
        ends.append(torch.cat([(parameters[name].detach() - start[name]).flatten() for name in start]))
    assert 0 < (ends[0] - ends[1]).norm() / ends[0].norm() < 0.05


def test_bfloat16_weights_take_the_rounded_steps_of_float32_weights():
    gradients = [{name: g.bfloat16().float() for name, g in step.items()} for step in gradients_of_all(1)]
    narrow, wide = small_fira(torch.bfloat16), small_fira()
    for name, p in wide[0].items():
        p.data.copy_(narrow[0][name].data)
    for parameters, optimizer in (narrow, wide):
        train(parameters, optimizer, gradients)
    assert all(torch.allclose(narrow[0][name].float(), wide[0][name], rtol=2**-8, atol=1e-6) for name in SHAPES)


def test_a_changed_rank_warns_and_starts_the_projected_matrices_anew():
    parameters, optimizer = small_fira(rank=3)
    train(parameters, optimizer, gradients_of_all(3))
    with pytest.warns(UserWarning, match=r"optim\.rank.*3 matrices start anew"):
        continued, other = resumed(parameters, optimizer, rank=2)
    assert all(int(other.state[continued[name]]["step"]) == (0 if name in PROJECTED else 3) for name in SHAPES)
    train(continued, other, gradients_of_all(1))
    assert all(other.state[continued[name]]["basis"].any() for name in PROJECTED)
    assert all(p.isfinite().all() for p in continued.values())


def test_a_changed_gap_is_taken_silently_and_refreshes_at_its_own_multiples():
    parameters, optimizer = small_fira(gap=100)
    train(parameters, optimizer, gradients_of_all(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        continued, other = resumed(parameters, optimizer, gap=4)
    bases = []
    for gradients in gradients_of_all(3):
        train(continued, other, [gradients])
        bases.append(other.state[continued[PROJECTED[0]]]["basis"].clone())
    old = optimizer.state[parameters[PROJECTED[0]]]["basis"]
    assert torch.equal(bases[0], old)  # the 4th step
    assert not torch.equal(bases[1], old)  # the 5th: 4 steps were made before it
    assert torch.equal(bases[2], bases[1])


def test_state_of_another_optimizer_or_model_is_refused_in_one_line():
    parameters, optimizer = small_fira()
    adamw = AdamW(parameters.items(), AdamWConfig())
    with pytest.raises(ValueError, match="parameters by group"):
        optimizer.load_state_dict(adamw.state_dict())
    fewer = {name: p for name, p in parameters.items() if name != "embed"}
    with pytest.raises(ValueError, match="parameters by group"):
        optimizer.load_state_dict(Fira(fewer.items(), FiraConfig()).state_dict())
    official = optimizer.state_dict()
    del official["state"][0]["basis"]
    with pytest.raises(ValueError, match="no basis"):
        optimizer.load_state_dict(official)


def test_the_trial_step_with_which_checkpoints_are_loaded_does_no_harm():
    """torch.distributed.checkpoint steps a fresh optimizer with zero gradients and lr=0 to see its state, then loads into that."""
    gradients = gradients_of_all(STEPS)
    parameters, optimizer = small_fira()
    train(parameters, optimizer, gradients[:7])
    fresh, other = small_fira()
    for name, p in fresh.items():
        p.data.copy_(parameters[name].data)
    for group in other.param_groups:
        group["lr"] = 0.0
    train(fresh, other, [{name: torch.zeros(shape) for name, shape in SHAPES.items()}])
    assert all(torch.equal(fresh[name], parameters[name]) for name in SHAPES)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert {group["lr"] for group in other.param_groups} == {0.01}
    train(parameters, optimizer, gradients[7:])
    train(fresh, other, gradients[7:])
    assert same_bits(everything(parameters, optimizer), everything(fresh, other))


def test_torchs_distributed_checkpoint_carries_the_state_by_name():
    def model_and_optimizer():
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"attn": torch.nn.Linear(8, 12), "head": torch.nn.Linear(12, 4)})
        return model, Fira(model.named_parameters(), FiraConfig(rank=3, gap=2, targets=["attn"]))

    def step(model, optimizer, seed):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(seed))
        model["head"](model["attn"](x)).square().mean().backward()
        optimizer.step()

    model, optimizer = model_and_optimizer()
    for seed in range(3):
        step(model, optimizer, seed)
    state = get_optimizer_state_dict(model, optimizer)
    assert set(state["state"]["attn.weight"]) == {"step", "exp_avg", "exp_avg_sq", "basis", "residual_norm"}
    fresh, other = model_and_optimizer()
    fresh.load_state_dict(model.state_dict())
    set_optimizer_state_dict(fresh, other, state)
    step(model, optimizer, 3)
    step(fresh, other, 3)
    assert same_bits(dict(model.named_parameters()), dict(fresh.named_parameters()))


def test_saved_state_holds_plain_tensors_and_numbers_only():
    parameters, optimizer = small_fira()
    train(parameters, optimizer, gradients_of_all(1))
    state = optimizer.state_dict()
    assert all(type(value) is torch.Tensor for entry in state["state"].values() for value in entry.values())
    assert [len(group["params"]) for group in state["param_groups"]] == [len(PROJECTED), len(SHAPES) - len(PROJECTED)]
