"""The first number that is not finite is named by step, and on request by layer."""

import re

import pytest
import torch
from torch import nn

from lightning_modules.optim.nonfinite import FiniteGradients
from pipelines.build import build
from pipelines.config import ConfigWarning, compose
from pipelines.nonfinite import NonFinite, cause, finite, said_of
from tests.pipelines.tiny import Line, Numbers, trainer


class Spoilt(nn.Module):
    """Pass its input on, but for what a test puts in its place in the n-th call, or into the gradient."""

    def __init__(self, call, forward=None, backward=None):
        super().__init__()
        self.calls, self.call, self.value, self.gradient = 0, call, forward, backward

    def forward(self, x):
        self.calls += 1
        if self.calls != self.call:
            return x
        if self.gradient is not None:
            x = x * 1
            x.register_hook(lambda g: torch.full_like(g, self.gradient))
            return x * 1
        return x * self.value


class Layers(Line):
    """Three layers, the middle one spoilt, whose optimizer judges gradients as ours do."""

    def __init__(self, spoilt, late=False):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3, 4), spoilt, nn.Linear(4, 1))
        self.late = late

    def training_step(self, batch, batch_idx):
        return self.network(batch / 100).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-4)
        judge, names = FiniteGradients("raise", deferred=self.late), [name for name, _ in self.named_parameters() if "network" in name]
        plain = optimizer.step

        def step(closure=None):
            closure()
            bad = torch.tensor([not p.grad.isfinite().all() for p in self.network.parameters()])
            judge.skip(names, bad, urgent=False)
            return plain()

        optimizer.step = step
        return optimizer


def failed(module, watch, **more):
    with pytest.raises(FloatingPointError) as caught:
        trainer(max_steps=9, limit_val_batches=0, callbacks=[watch], **more).fit(module, datamodule=Numbers(20))
    return "; ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_every_run_names_the_parameter_the_step_and_the_loss(late, bad):
    module = Layers(Spoilt(4, forward=float(bad)), late)
    for parameter in module.parameters():
        nn.init.ones_(parameter)  # inf - inf would be nan
    said = failed(module, NonFinite())
    assert said.startswith("the gradient of network.0.weight and 3 more is not finite; lower optim.lr")
    assert f"this was step 4, whose loss was {bad}; trainer.detect_anomaly=true names the layer where it begins" in said


def test_a_loss_that_was_finite_is_told_from_one_that_was_not():
    said = failed(Layers(Spoilt(2, backward=float("inf"))), NonFinite())
    assert re.search(r"the gradient of network\.0\.weight and 1 more .*; this was step 2, whose loss was finite \(\d", said)


def test_a_step_of_several_batches_is_counted_once_and_each_of_them_is_asked():
    said = failed(Layers(Spoilt(5, forward=float("nan"))), NonFinite(), accumulate_grad_batches=2)
    assert "this was step 3, whose loss was nan" in said


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_layer_where_it_begins_is_named_before_any_other_sees_it(bad):
    module = Layers(Spoilt(3, forward=bad))
    said = failed(module, NonFinite(layers=True))
    assert said == "step 3: the output of network.1 (Spoilt) is not finite; its input and weights are"


def test_a_gradient_is_traced_back_to_where_it_was_still_finite():
    said = failed(Layers(Spoilt(3, backward=float("nan"))), NonFinite(layers=True))
    assert said == ("step 3: the gradient that arrives at the output of network.0 is not finite; it was, on its way back, "
                    "at the output of network.1")


def test_a_weight_or_an_input_that_is_not_finite_is_said_to_be_the_cause():
    layer = nn.Linear(2, 2)
    assert cause(layer, (torch.ones(2),)) == "its input and weights are"
    assert cause(layer, ({"x": [torch.tensor([1.0, float("nan")])]},)) == "its input is not either"
    nn.init.constant_(layer.bias, float("inf"))
    assert cause(layer, (torch.ones(2),)) == "its bias is not either"


def test_a_loss_scale_may_look_for_its_limit():
    module = Layers(Spoilt(3, backward=float("inf")))
    said = failed(module, NonFinite(layers=True, scaled=True))
    assert said.startswith("the gradient of network.0.weight")  # by the optimizer, not by the watch


def test_validation_is_not_watched_and_nothing_is_left_in_the_layers():
    module = Layers(Spoilt(None))
    watch = NonFinite(layers=True)
    trainer(max_steps=2, limit_val_batches=0, callbacks=[watch]).fit(module, datamodule=Numbers(4))
    assert not any(layer._forward_hooks for layer in module.modules())
    failed(Layers(Spoilt(3, forward=float("nan"))), watch)
    assert said_of([1.0, float("inf"), float("nan")]) == ", whose loss was inf"
    assert said_of([]) == ""


def test_the_debug_trainer_names_the_layer_in_one_line(here, debug, tmp_path, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaMLP

    plain, calls = LlamaMLP.forward, []

    def spoilt(self, x):
        calls.append(self)
        return plain(self, x) * (float("nan") if len(calls) == 6 else 1)

    monkeypatch.setattr(LlamaMLP, "forward", spoilt)
    done = here(*debug, "trainer.detect_anomaly=true", "trainer.limit_val_batches=0", "checkpoint.every_n_steps=1", "logger=csv")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    layers = len({id(layer) for layer in calls})
    step, layer = (6 - 1) // layers + 1, (6 - 1) % layers
    place = rf"step {step}: the output of \S*layers\.{layer}\.mlp \(LlamaMLP\)"
    assert re.search(f"{place} is not finite; its input and weights are", done.stderr)


@pytest.mark.parametrize(("more", "watched"), [([], True), (["trainer.devices=2", "strategy=ddp"], False)])
def test_the_debug_trainer_watches_one_process(more, watched, cache):
    trainer = build(compose(["experiment=fira_debug", f"data.cache={cache}", *more]), None).trainer
    assert [callback.layers for callback in trainer.callbacks if isinstance(callback, NonFinite)] == [watched]


def test_asking_several_processes_to_be_watched_is_warned_of():
    words = ["experiment=fira_debug", "trainer.devices=2", "strategy=ddp"]
    with pytest.warns(ConfigWarning, match=r"trainer\.detect_anomaly: no effect, because it watches one process"):
        compose([*words, "trainer.detect_anomaly=true"])


def test_minus_infinity_masks_and_every_other_infinity_is_a_fault():
    some = {"finite": [1.0, 2.0], "masked": [1.0, -torch.inf], "grown": [1.0, torch.inf], "none": [1.0, torch.nan]}
    assert {name for name, values in some.items() if finite(torch.tensor(values))} == {"finite"}
    assert {name for name, values in some.items() if finite(torch.tensor(values), masked=True)} == {"finite", "masked"}
