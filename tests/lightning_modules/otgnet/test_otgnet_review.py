"""Going over earlier tasks: which memory replayed events read, what a node was worth, and what votes alone reach."""

import warnings
from collections import Counter, defaultdict

import pytest
import torch

from lightning_modules.otgnet.report import figures, vote, with_last
from lightning_modules.otgnet.review import Review, first_meetings, worth_of
from lightning_modules.otgnet.view import look
from pipelines.build import build
from pipelines.config import compose

WORDS = ["experiment=otgnet_debug", "trainer.threads=1", "trainer.max_steps=8", "trainer.limit_val_batches=0", "data.batch_size=400"]


@pytest.fixture(scope="module")
def module():
    """A module in the middle of its third task: three batches of each task, each seen once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = build(compose(WORDS), None)
        built.trainer.progress_bar_callback.disable()
        built.trainer.fit(built.module, datamodule=built.data)
    assert built.module.progress.task == 2
    return built.module


def test_replayed_events_read_the_memory_that_their_own_task_has_left(module):
    review = module.review
    assert isinstance(review, Review)
    for past in (0, 1):
        events = module.exams.events(review.replay.draw(past, 0, torch.Generator()))
        nodes = torch.cat([events.src, events.dst])
        if past == 1:  # a node of both tasks is as the first has left it
            before = module.exams.events(review.replay.draw(0, 0, torch.Generator()))
            nodes = nodes[~torch.isin(nodes, review._taking_part(before.event))]
        assert len(nodes)
        assert torch.equal(review.memory.rows[nodes], module.progress.snapshots[past].rows[nodes])


def test_a_draw_takes_equally_many_events_of_each_task_and_only_kept_ones(module):
    drawn = module.review.draw(torch.Generator().manual_seed(0))
    task = module.data.stream.task[drawn.event]
    assert set(task.tolist()) == {0, 1}
    for past in (0, 1):
        assert torch.isin(drawn.event[task == past], module.progress.replay.draw(past, 0, torch.Generator())).all()
    assert abs(int((task == 0).sum()) - int((task == 1).sum())) <= 25


def test_replayed_events_find_the_neighbours_that_stood_before_them_then(module):
    view = module.review.look(torch.Generator().manual_seed(0))
    assert view.mask.any(1).float().mean() > 0.5
    assert (view.age[view.mask] >= 0).all()


def test_every_labelled_node_of_a_task_is_met_once_at_its_first_event(module):
    exams, model = module.exams, module.model
    around, events = exams.around(0, "train", 0), exams.events(module.data.events(0, "train"))
    nodes, inputs, votes = first_meetings(model, around, module.fresh_memory(), events, exams.reach, 1)
    ends = torch.cat([events.src, events.dst])
    assert sorted(nodes.tolist()) == ends[around.known[ends] >= 0].unique().tolist()
    model.eval()
    first = look(events.span(0, exams.reach.batch_size), around, module.fresh_memory(), exams.reach.neighbours, exams.reach.votes,
                 exams.reach.gate)
    passed, _ = model(first, 1)
    model.train()
    for node in nodes[:5].tolist():
        place = min((place for place, other in enumerate(first.node.tolist()) if other == node), key=lambda place: int(first.key[place]))
        row = nodes.tolist().index(node)
        assert torch.equal(inputs[row], passed.inputs[place])
        assert torch.equal(votes[row], first.votes[place])


def test_the_worth_of_a_sample_is_the_product_of_its_gradient_with_that_of_all(module):
    model = module.model.eval()
    inputs, votes = torch.randn(7, model.encoder.first.in_features), torch.randint(3, (7, module.data.num_classes)).float()
    label = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    found = worth_of(model, inputs, votes, label, 2, "gradient", 0.0)
    parameters = [model.encoder.first.weight, model.encoder.first.bias, *model.heads.weight, *model.heads.bias]
    losses = torch.nn.functional.cross_entropy(model.logits(model.encoder.first(inputs).relu(), votes, 2), label, reduction="none")

    def gradient(loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])

    total = gradient(losses.mean())
    expected = torch.stack([gradient(loss) @ total for loss in losses])
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-6)
    model.train()


def test_label_propagation_is_the_majority_among_known_neighbours_met_so_far(module):
    data, exams = module.data, module.exams
    found, known, label = vote(exams, 1), data.gate_label(1).tolist(), data.stream.label.tolist()
    usual = Counter(c for c in known if c >= 0)
    for task in (0, 1):
        met_by = defaultdict(list)
        for e in sorted(exams.visible_events(task, "test").tolist()):
            one, other = int(data.stream.src[e]), int(data.stream.dst[e])
            met_by[one].append((e, other))
            met_by[other].append((e, one))
        own = set(data.events(task, "test").tolist())
        right = []
        for node in data.scored(task, "test").tolist():
            met = met_by[node]
            last = max(e for e, _ in met if e in own)
            votes = Counter(known[other] for e, other in met if e <= last and known[other] >= 0)
            said = min(votes, key=lambda c: (-votes[c], c)) if votes else min(usual, key=lambda c: (-usual[c], c))
            right.append(said == label[node])
        assert found.class_il[task] == pytest.approx(100 * sum(right) / len(right))


def test_the_figures_are_those_of_the_matrix_with_its_last_row_tested_again(module):
    rows = {f"{setting}/{kind}": [[90.0], [70.0, 80.0]] for setting in ("task_il", "class_il") for kind in ("snapshot", "current")}
    new = with_last(rows, {name: [60.0, 80.0] for name in rows})
    tested = module.exams.tests(module.model, module.progress.snapshots, "snapshot")
    found = figures(new, tested, vote(module.exams, 1), module.model.heads)
    assert found["test/class_il/AP"] == 70.0
    assert found["test/class_il/AF"] == 30.0
    assert found["test/task_il/learning"] == 85.0
    assert rows["task_il/snapshot"][-1] == [70.0, 80.0]
