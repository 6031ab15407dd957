"""Training token weights under Lightning: its figures, its outcome on disk, its resumption, and what it says when it fails."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from weighing import data_in, embedding_for, module_for, trainer_for
from weighting_worker import train

from datamodules.rows import DataError
from lightning_modules.kpod.weighting import module as weighting
from lightning_modules.kpod.weighting.artefact import read_facts, read_weights
from lightning_modules.kpod.weighting.module import WeightingConfig, is_generator, refuse_collapse, weighting_phase
from pipelines.checkpoints import Checkpoints
from pipelines.schema import CheckpointSection
from tests.exactness import assert_same

STEPS = 12  # 3 epochs of 4 batches


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_in(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def fitted(data, tmp_path_factory):
    """A finished training: its module, trainer and folder."""
    folder = tmp_path_factory.mktemp("fitted")
    module, trainer = module_for(data, folder), trainer_for()
    trainer.fit(module, datamodule=data)
    return module, trainer, folder


class Stop(Callback):
    """End a training as a killed process does, before a batch."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise InterruptedError


def test_every_rationale_token_has_a_weight_and_every_other_token_has_one(data, fitted):
    module, _, folder = fitted
    weights, samples = read_weights(folder, data.samples), data.samples
    assert weights.dtype == np.float32
    assert weights.shape == samples.ids.shape
    assert (weights[samples.steps < 0] == 1).all()
    assert ((weights >= 0) & (weights <= 1)).all()
    module.eval()
    for index in (0, 17, 39):
        with torch.no_grad():
            alone = data.rows.__getitems__([index])
            expected = module.network.weights(alone)[alone["steps"] >= 0]
        found = weights[samples.span(index)][samples.steps[samples.span(index)] >= 0]
        assert found == pytest.approx(expected.numpy(), abs=1e-3), "float16, whatever a sample was weighed together with"


def test_the_outcome_says_what_it_is(data, fitted):
    _, trainer, folder = fitted
    assert sorted(path.name for path in folder.iterdir()) == ["meta.json", "weights.npz"], "and nothing half written"
    assert np.load(folder / "weights.npz")["weights"].dtype == np.float16
    facts = read_facts(folder)
    rationale = data.samples.steps >= 0
    assert facts["mean_weight"] == pytest.approx(read_weights(folder, data.samples)[rationale].mean(), abs=1e-3)
    assert facts["steps"] == STEPS
    assert facts["config"]["alpha"] == 0.5
    assert set(facts["by_kind"]) == {"digits", "operators", "words"}
    assert trainer.callback_metrics.keys() >= {"train/loss", "train/mask_ratio", "val/answer_loss", "val/answer_loss_masked",
                                               "val/answer_loss_question", "val/mask_ratio", "val/weight", "val/weight_digits",
                                               "val/weight_operators", "val/weight_words"}


def test_validation_figures_are_means_over_held_out_samples_and_tokens(data, fitted):
    module, trainer, _ = fitted
    module.eval()
    losses, weights = [], []
    with torch.no_grad():
        for index in data.held_out.tolist():
            batch = data.rows.__getitems__([index])
            hidden = batch["steps"] >= 0
            embedded = module.network.logits(batch)[1]
            losses.append(module.network.predictor(module.network.embedding, *closed(module, embedded[~hidden]), batch["labels"]).item())
            weights += module.network.weights(batch)[hidden].tolist()
    assert trainer.callback_metrics["val/answer_loss_question"].item() == pytest.approx(np.mean(losses), rel=1e-4)
    assert trainer.callback_metrics["val/weight"].item() == pytest.approx(np.mean(weights), rel=1e-4)


def closed(module, tokens):
    """What the predictor reads of a question alone: its tokens and the end, nothing masked and nothing padded."""
    embedded = torch.cat([tokens, module.network.predictor.end[None]])[None]
    return embedded, torch.ones(embedded.shape[:2], dtype=torch.bool)


def test_weights_of_other_samples_and_unfinished_ones_are_refused(data, fitted, tmp_path):
    with pytest.raises(DataError, match="of other samples"):
        read_weights(fitted[2], data_in(tmp_path, count=39).samples)
    with pytest.raises(DataError, match="no finished token weights; train them first"):
        read_weights(tmp_path, data.samples)


@pytest.mark.parametrize("killed_at", [6, 9])
def test_a_killed_training_goes_on_bit_for_bit_from_the_middle_of_an_epoch(data, fitted, tmp_path, killed_at):
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointSection(every_n_steps=5))
    with pytest.raises(InterruptedError):
        trainer_for(3, checkpoints, Stop(killed_at)).fit(module_for(data, tmp_path), datamodule=data)
    assert not (tmp_path / "meta.json").exists()
    resumed = module_for(data, tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointSection(every_n_steps=100))
    trainer_for(3, checkpoints).fit(resumed, datamodule=data, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert_same(resumed.state_dict(), fitted[0].state_dict())
    assert (tmp_path / "meta.json").read_text() == (fitted[2] / "meta.json").read_text()
    assert np.array_equal(read_weights(tmp_path, data.samples), read_weights(fitted[2], data.samples))


def test_a_training_killed_before_its_outcome_was_written_writes_it_when_it_is_resumed(data, fitted, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointSection())
    trainer_for(3, checkpoints).fit(module_for(data, None), datamodule=data)
    trainer = trainer_for(3, Checkpoints(tmp_path / "checkpoints", CheckpointSection()))
    trainer.fit(module_for(data, tmp_path), datamodule=data, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert np.array_equal(read_weights(tmp_path, data.samples), read_weights(fitted[2], data.samples))


def test_the_students_embedding_stays_and_is_in_no_checkpoint(data, fitted):
    module = fitted[0]
    assert torch.equal(module.network.embedding, embedding_for(data))
    assert "network.embedding" not in module.state_dict()


def test_each_part_has_its_own_learning_rate(data, fitted):
    groups = fitted[1].optimizers[0].param_groups
    assert [group["lr"] for group in groups] == [1e-3, 3e-3]
    assert all(is_generator(name) for name in groups[0]["param_names"])
    assert not any(is_generator(name) for name in groups[1]["param_names"])


def test_a_frozen_predictor_learns_during_the_random_masks_only(data):
    states = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            states.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})

    trainer_for(3, Watch()).fit(module_for(data, None, freeze_predictor=True), datamodule=data)
    moved = [{name for name in after if not torch.equal(before[name], after[name])} for before, after in pairwise(states)]
    assert all(names and not any(map(is_generator, names)) for names in moved[: STEPS // 2 - 1])
    assert all(names and all(map(is_generator, names)) for names in moved[STEPS // 2 :])


@pytest.mark.parametrize("options", [
    {"hard": True}, {"mode": "sum"}, {"mask_at": "context"}, {"masked_token": "zero"}, {"prefix_kind": "every_step_end"},
    {"prefix_kind": "some_lengths", "prefixes": 2}, {"prefixes": 0}, {"warmup": 0.0, "ramp": 0.0}])
def test_every_variant_trains(data, options):
    module, trainer = module_for(data, None, epochs=1, **options), trainer_for(1)
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == STEPS // 3
    assert np.isfinite(module.outcome).all()


def test_a_collapse_is_refused_with_what_to_try_and_leaves_no_outcome(data, tmp_path):
    options = {"alpha": 500.0, "generator_lr": 0.5, "warmup": 0.0, "ramp": 0.0}
    message = (r"^module\.weighting\.alpha: the weighting has collapsed, its mean token weight 0\.0\d+ is below 0\.02: nearly every token "
               r"is masked; lower alpha \(now 500\.0\), .* raise module\.weighting\.warmup \(now 0\.0\) or epochs \(now 3\)")
    with pytest.raises(ValueError, match=message):
        trainer_for().fit(module_for(data, tmp_path, allow_collapse=False, **options), datamodule=data)
    assert not list(tmp_path.iterdir())
    with pytest.warns(UserWarning, match="has collapsed"):
        trainer_for().fit(module_for(data, tmp_path, **options), datamodule=data)
    assert json.loads((tmp_path / "meta.json").read_text())["mean_weight"] < 0.02


def test_masks_that_hide_nothing_are_a_collapse_too():
    with pytest.raises(ValueError, match=r"0\.990 is above 0\.98: hardly any token is masked; raise alpha \(now 0\.1\)"):
        refuse_collapse(0.99, WeightingConfig(alpha=0.1))
    for mean in (0.02, 0.5, 0.98):
        refuse_collapse(mean, WeightingConfig())


def test_pictures_are_drawn_when_the_weights_are_known(data, fitted, tmp_path):
    html, png = fitted[0].pictures(tmp_path)
    assert html.read_text().count("<section>") == min(6, len(data.held_out))
    assert png.read_bytes().startswith(b"\x89PNG")


def test_the_phase_of_a_method_is_this_training(data, tmp_path):
    class Parent:
        samples, tokenizer, seed = data.samples, data.tokenizer, 5

    phase = weighting_phase(WeightingConfig(epochs=1, batch_size=4), embedding_for(data), Parent(), tmp_path)
    assert (phase.folder, phase.epochs, phase.done) == (tmp_path, 1, False)
    assert (phase.data.batch_size, phase.data.seed) == (4, 5)
    trainer_for(phase.epochs).fit(phase.module, datamodule=phase.data)
    assert phase.done


@pytest.mark.parametrize(("wrong", "message"), [
    ({"epochs": 0}, "epochs: must be 1 or above, not 0"), ({"lr": 0.0}, "lr: must be above 0, not 0.0"),
    ({"alpha": -1.0}, "alpha: must be 0 or above, not -1.0"), ({"held_out": 1.0}, "held_out: must lie in 0..1"),
    ({"warmup": 0.6, "ramp": 0.5}, "ramp: must end before the training does")])
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        WeightingConfig(**wrong)


def test_defaults_depend_on_whether_the_predictor_has_learned_anything():
    fresh, trained = WeightingConfig(), WeightingConfig(predictor="google/flan-t5-large")
    assert (fresh.rate, fresh.random_share, fresh.beginnings) == (3e-3, 0.5, 1)
    assert (trained.rate, trained.random_share, trained.beginnings) == (5e-5, 0.1, 3)


def test_heads_must_divide_the_predictors_width(data):
    with pytest.raises(ValueError, match=r"module\.weighting\.heads: must divide the predictor's width 64, not 5"):
        trainer_for().fit(module_for(data, None, heads=5), datamodule=data)


def test_two_processes_come_to_the_weights_of_one(tmp_path, monkeypatch):
    worker = Path(__file__).with_name("weighting_worker.py")
    (tmp_path / "two").mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(worker), str(tmp_path / "two")]
    subprocess.run(command, env=environment, check=True, timeout=200, capture_output=True)
    monkeypatch.setattr(weighting, "relaxed_mask", None)  # put back afterwards what the next line replaces
    train(tmp_path, 8)
    one, two = (np.load(folder / "out" / "weights.npz")["weights"].astype(float) for folder in (tmp_path, tmp_path / "two"))
    assert np.abs(one - two).max() < 2e-3, "two steps of float16"
    facts = [read_facts(folder / "out") for folder in (tmp_path, tmp_path / "two")]
    assert facts[0]["validation"] == pytest.approx(facts[1]["validation"], rel=1e-3)
    assert facts[0]["steps"] == facts[1]["steps"] == 4
