"""EWC, LwF and iCaRL's nearest mean: against derivatives, sums and a classifier that others wrote; and in a run."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestCentroid
from torch import nn

from lightning_modules.otgnet.continual import Retained, RetainSection, class_means, divergence, learning, squared_gradients, strayed
from lightning_modules.otgnet.model import OpenModel
from lightning_modules.otgnet.network import NetworkSection
from lightning_modules.otgnet.view import look
from pipelines.build import build
from pipelines.config import compose

WORDS = ["experiment=otgnet_debug", "trainer.threads=1", "trainer.limit_val_batches=0", "data.batch_size=400",
         "module.retain.fisher_events=30"]


def trained(*words, steps=7):
    """Train through two tasks, which take seven steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = build(compose([*WORDS, f"trainer.max_steps={steps}", *words]), None)
        built.trainer.progress_bar_callback.disable()
        built.trainer.fit(built.module, datamodule=built.data)
    return built.module


def test_squared_gradients_are_those_of_one_sample_after_another():
    torch.manual_seed(0)
    layers, x, label = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(6, 4), torch.randint(3, (6,))
    parameters = dict(layers.named_parameters()) | {"idle": torch.ones(2, requires_grad=True)}
    found = squared_gradients(F.cross_entropy(layers(x), label, reduction="none"), parameters)
    for number, name in enumerate(["0.weight", "0.bias", "2.weight", "2.bias"]):
        losses = [F.cross_entropy(layers(x[i:i + 1]), label[i:i + 1]) for i in range(6)]
        each = [torch.autograd.grad(loss, list(layers.parameters()))[number] for loss in losses]
        assert torch.allclose(found[name], torch.stack(each).square().sum(0), atol=1e-6)
    assert found["idle"].tolist() == [0, 0]


def test_the_pull_of_several_tasks_has_the_gradient_of_all_their_penalties_together():
    torch.manual_seed(0)
    tasks = [(torch.rand(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)) for _ in range(3)]
    tasks[0][0][0] = tasks[1][0][0] = tasks[2][0][0] = 0.0  # a weight that nothing needed
    now, retained = torch.randn(5, dtype=torch.float64, requires_grad=True), Retained()
    assert retained.pull({"w": now}) == 0
    for importance, weights in tasks:
        retained.add({"w": importance}, {"w": weights})
    wanted = sum(0.5 * (importance * (now - weights).square()).sum() for importance, weights in tasks)
    mine, theirs = (torch.autograd.grad(value, now)[0] for value in (retained.pull({"w": now}), wanted))
    assert torch.allclose(mine, theirs)
    assert mine[0] == 0


def test_straying_is_the_divergence_of_softened_answers_and_has_the_size_of_the_hard_one():
    torch.manual_seed(0)
    logits, before = torch.randn(4, 3), torch.randn(4, 3)
    p, q = torch.softmax(before / 2, -1), torch.softmax(logits / 2, -1)
    assert torch.allclose(strayed(logits, before, 2.0), 4 * (p * (p / q).log()).sum(-1), atol=1e-6)
    assert torch.allclose(strayed(before + 7, before, 2.0), torch.zeros(4), atol=1e-6)


def test_the_nearest_mean_is_that_of_sklearn_on_features_of_length_one():
    torch.manual_seed(0)
    config = NetworkSection(hidden=8, classifier=6, votes=0)
    model = OpenModel(3, [[0, 1], [2], [3]], 4, config, False, 1.0)
    kept, label, asked = torch.randn(40, 6), torch.randint(3, (40,)), torch.randn(200, 6)
    label[:5] = -1
    means = class_means(kept, label, 4)
    model.means.copy_(means)
    logits = model.logits(asked, torch.zeros(200, 4), 3)
    reference = NearestCentroid().fit(F.normalize(kept[5:]), label[5:])
    reference.centroids_ = F.normalize(torch.tensor(reference.centroids_)).numpy()
    assert logits.argmax(-1).tolist() == reference.predict(F.normalize(asked)).tolist()
    assert (logits[:, 3] == float("-inf")).all()  # which has not opened
    assert (model.logits(asked, torch.zeros(200, 4), 1)[:, 2:] == float("-inf")).all()


def test_weights_that_are_pulled_hard_stay_and_a_teacher_holds_the_answers():
    alone = ["module.replay.kind=none", "optim.lr=0.03"]
    free, held, taught = (trained(*alone, *more) for more in ([], ["module.retain.ewc=1e6"], ["module.retain.distil=100"]))
    importance, anchor = held.progress.retained.importance, held.progress.retained.anchor
    assert set(importance) == set(learning(held.model))
    needed = {name: value > value.quantile(0.9) for name, value in importance.items() if value.numel() > 50 and (value > 0).any()}
    assert needed

    def moved(module):
        now = module.model.state_dict()
        return sum(float((now[name] - anchor[name])[which].abs().sum()) for name, which in needed.items())

    assert moved(held) < 0.5 * moved(free)
    assert len(taught.teachers) == 1
    assert taught.state_dict().keys() == free.state_dict().keys()

    def strays(module):
        exams, model = module.exams, module.model.eval()
        view = look(exams.events(module.data.events(1, "train")[:300]), exams.around(1, "train", 1), module.progress.snapshots[0],
                    exams.reach.neighbours, exams.reach.votes, exams.reach.gate)
        return float(divergence(taught.teachers[0], model, view, model.encoder(view, model.code).hidden, 1, 2.0).detach().mean())

    assert strays(taught) < 0.5 * strays(free)


def test_after_a_task_tests_go_by_the_mean_of_what_is_kept_and_training_by_the_heads():
    module = trained("module.retain.nearest_mean=true", "module.replay.kind=herding")
    assert module.progress.task == 1
    assert module.progress.finished
    means = module.model.means
    assert means.any(1).tolist() == module.model.heads.opened(2).tolist()
    assert torch.allclose(means[means.any(1)].norm(dim=1), torch.ones(int(means.any(1).sum())))
    assert not trained("module.retain.nearest_mean=true", "module.replay.kind=herding", steps=8).model.means.any()


@pytest.mark.parametrize(("settings", "line"), [
    ({"ewc": -1.0}, "ewc: must be 0 or above, not -1.0"), ({"fisher_events": 0}, "fisher_events: must be at least 1, not 0"),
    ({"temperature": 0.0}, "temperature: must be above 0, not 0.0"), ({"distil": -1.0}, "distil: must be 0 or above, not -1.0")])
def test_settings_out_of_range_are_named(settings, line):
    with pytest.raises(ValueError, match=line):
        RetainSection(**settings)
