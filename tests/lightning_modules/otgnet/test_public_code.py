"""What the authors' public code gets wrong: mended here, or chosen by a switch, which compat=official turns.

Other tests hold the rest: labels of held-out nodes leave no trace, frequencies stay fixed, times stay integers, the last event of a node
wins, triads are of one class, AF is that of its definition, checkpoints hold no pickled classes.
"""

import math
import warnings

import pytest
import torch

from lightning_modules.otgnet.influence import worth
from lightning_modules.otgnet.memory import Memory
from lightning_modules.otgnet.replay import link_loss
from lightning_modules.otgnet.review import Review
from lightning_modules.otgnet.view import look
from pipelines.build import build
from pipelines.config import compose

WORDS = ["experiment=otgnet_debug", "trainer.threads=1", "trainer.max_steps=8", "trainer.limit_val_batches=0", "data.batch_size=400"]


def trained(*words):
    """Train into the third task."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = build(compose([*WORDS, *words]), None)
        built.trainer.progress_bar_callback.disable()
        built.trainer.fit(built.module, datamodule=built.data)
    assert built.module.progress.task == 2
    return built.module


@pytest.fixture(scope="module")
def mended():
    return trained()


@pytest.fixture(scope="module")
def official():
    return trained("module.compat=official")


def steps_of(module):
    """Return the weights that any optimizer steps."""
    return {id(p) for optimizer in module.trainer.optimizers for group in optimizer.param_groups for p in group["params"]}


def test_heads_are_learnt_where_the_public_code_has_left_them_out_of_all_optimizers(mended, official):
    for module, learnt in ((mended, True), (official, False)):
        heads = module.model.heads
        assert {id(p) in steps_of(module) for p in heads.parameters()} == {learnt}


def test_a_node_is_scored_by_the_last_prediction_that_its_own_events_got(mended):
    """The public code keeps predictions under ids of other nodes."""
    exams, model, task = mended.exams, mended.model, 1
    found = exams.walk(model, task, "test", mended.progress.snapshots[task].copy(), task)
    events, around = exams.events(exams.data.events(task, "test")), exams.around(task, "test", task)
    memory, said = mended.progress.snapshots[task].copy(), {}
    model.eval()
    for start in range(0, len(events), 400):
        part = events.span(start, start + 400)
        view = look(part, around, memory, exams.reach.neighbours, exams.reach.votes, exams.reach.gate)
        with torch.no_grad():
            passed, logits = model(view, task + 1)
        memory.write(view.node, view.key, passed.rows)
        memory.predict(view.node, view.key, logits.argmax(-1))
        for number in range(len(part)):
            for node, place in ((int(part.src[number]), number), (int(part.dst[number]), len(part) + number)):
                said[node] = logits[place]
    model.train()
    assert found.node.tolist() == sorted(exams.data.scored(task, "test").tolist())
    assert torch.equal(found.logits, torch.stack([said[node] for node in found.node.tolist()]))


def test_the_bottleneck_learns_from_training_alone(mended):
    """The public code also queues what validation and tests have gated, with its labels."""
    before = mended.queue.added
    assert before > 0
    mended.tests()
    for task in range(2):
        mended.exams.walk(mended.model, task, "valid", mended.progress.snapshots[task].copy(), task)
    assert mended.queue.added == before


def test_memories_and_walks_leave_the_global_generator_alone(mended):
    """The public code seeds it anew whenever a memory is made."""
    state = torch.get_rng_state()
    Memory.fresh(10, 4, 0)
    mended.tests()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_replayed_event_sees_its_neighbours_of_then_unless_told_as_in_the_public_code_to_see_none(mended, official):
    seen = {}
    for name, module in (("mended", mended), ("official", official)):
        section = module.config.replay
        review = Review(module.progress.replay, module.exams, module.progress.snapshots, 2, section)
        seen[name] = review.look(torch.Generator().manual_seed(0)), review
    assert seen["mended"][0].mask.any()
    assert not seen["official"][0].mask.any()
    assert not seen["official"][0].gated.any()
    kept = [event for classes in official.progress.replay.tasks[:2] for one in classes.values() for event in one.events.tolist()]
    drawn = seen["official"][1].draw(torch.Generator().manual_seed(0)).event.tolist()
    assert sorted(set(drawn)) == sorted(set(kept))  # all that is kept, in every step


def test_a_task_begins_with_what_the_last_one_left_or_as_in_the_public_code_anew(mended, official):
    for module, carried in ((mended, True), (official, False)):
        begun = module.progress.beginning(2, module.fresh_memory, module.config.carry)
        assert torch.equal(begun.rows, module.progress.snapshots[1].rows) == carried
        assert torch.equal(begun.rows, module.fresh_memory().rows) != carried


def test_the_public_link_loss_is_divided_once_more_by_its_pairs():
    torch.manual_seed(0)
    rows, met, apart = torch.randn(5, 3), torch.tensor([[0, 1], [1, 2], [3, 4]]), torch.tensor([[0, 4], [2, 3]])
    near = (rows @ rows.T).tolist()
    one = sum(-math.log(1 / (1 + math.exp(-near[a][b]))) for a, b in met.tolist()) / 3
    other = sum(-math.log(1 - 1 / (1 + math.exp(-near[a][b]))) for a, b in apart.tolist()) / 2
    assert link_loss(rows, met, apart).item() == pytest.approx((one + other) / 2, rel=1e-5)
    assert link_loss(rows, met, apart, "official").item() == pytest.approx((one + other) / 3, rel=1e-5)
    assert link_loss(rows, met[:0], apart[:0], "official").item() == 0


def test_the_public_product_of_gradients_adds_up_the_mean_of_each_parameter():
    torch.manual_seed(1)
    x, label = torch.randn(7, 4), torch.randint(3, (7,))
    parameters = {"weight": torch.randn(3, 4), "bias": torch.randn(3)}
    found = worth(lambda p: x @ p["weight"].T + p["bias"], parameters, label, "gradient", by_mean=True)
    leaves = [value.clone().requires_grad_() for value in parameters.values()]
    losses = torch.nn.functional.cross_entropy(x @ leaves[0].T + leaves[1], label, reduction="none")
    total = torch.autograd.grad(losses.mean(), leaves, retain_graph=True)
    for sample in range(7):
        own = torch.autograd.grad(losses[sample], leaves, retain_graph=True)
        assert found[sample].item() == pytest.approx(sum(float((a * b).mean()) for a, b in zip(own, total)), rel=1e-4, abs=1e-6)


def test_the_public_choice_of_samples_has_the_opposite_sign(mended, official):
    assert mended.config.replay.helpful
    assert not official.config.replay.helpful
    assert (official.config.replay.importance, official.config.replay.product) == ("gradient", "mean")
