"""What is kept of finished tasks, and the figures of a run over tasks."""

import math

import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score, recall_score

from datamodules.otgnet import OtgnetData, OtgnetDataConfig
from lightning_modules.otgnet.baselines import last_events, propagated
from lightning_modules.otgnet.measures import (
    average_forgetting,
    average_performance,
    class_accuracy,
    forward_transfer,
    learning_accuracy,
    macro_f1,
)
from lightning_modules.otgnet.pictures import draw_course, draw_embeddings, draw_matrices
from lightning_modules.otgnet.replay import Finished, Replay, ReplaySection, keep, link_loss


@pytest.fixture(scope="module")
def task():
    data = OtgnetData(OtgnetDataConfig())
    data.setup()
    stream, generator = data.stream, torch.Generator().manual_seed(0)
    rows = torch.randn(stream.num_nodes, 8, generator=generator)
    worth = torch.randn(stream.num_nodes, generator=generator)
    return Finished(stream.src, stream.dst, data.events(0, "train"), data.gate_label(0), data.visible(0, "train"), rows, worth)


def kept_of(task, **settings):
    return keep(task, [0, 1], ReplaySection(**settings), torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["triads", "random", "herding", "influence"])
def test_what_is_kept_of_a_class_are_training_events_of_its_own_nodes(task, kind):
    for number, kept in kept_of(task, kind=kind).items():
        assert 0 < len(kept.events) <= 40
        assert torch.isin(kept.events, task.events).all()
        ends = torch.stack([task.known[task.src[kept.events]], task.known[task.dst[kept.events]]])
        assert (ends == number).any(0).all()
        assert torch.equal(kept.events, kept.events.unique())


def test_joint_training_keeps_every_event_with_an_end_of_the_class(task):
    for number, kept in kept_of(task, kind="all").items():
        expected = [e for e in task.events.tolist() if number in (int(task.known[task.src[e]]), int(task.known[task.dst[e]]))]
        assert kept.events.tolist() == expected


def test_pairs_of_closed_triads_have_met_and_those_of_open_ones_have_not(task):
    links = {frozenset(pair) for pair in torch.stack([task.src[task.events], task.dst[task.events]], 1).tolist()}
    for kept in kept_of(task, per_class=5).values():
        assert len(kept.met)
        assert len(kept.apart)
        assert all(frozenset(pair) in links for pair in kept.met.tolist())
    before = {}
    for event in task.events.tolist():
        before.setdefault(frozenset((int(task.src[event]), int(task.dst[event]))), event)
    for kept in kept_of(task, per_class=5, sorts="open").values():  # never met before the event that opened the triad
        assert all(before.get(frozenset(pair), math.inf) > kept.events.min() for pair in kept.apart.tolist())


def test_a_class_without_triads_keeps_events_instead(task):
    few = Finished(task.src, task.dst, task.events[:3], task.known, task.neighbours, task.rows, task.worth)
    assert sum(len(kept.events) for kept in keep(few, [0, 1], ReplaySection(), torch.Generator()).values())


def test_the_nodes_that_are_worth_most_are_kept_or_those_worth_least(task):
    best, worst = (kept_of(task, kind="influence", per_class=1, helpful=helpful)[0].events for helpful in (True, False))

    def worth(events):
        ends = torch.cat([task.src[events], task.dst[events]])
        return task.worth[ends[task.known[ends] == 0]]

    own = (task.known == 0).nonzero().view(-1)
    seen = torch.isin(own, torch.cat([task.src[task.events], task.dst[task.events]]))
    assert worth(best).max() == task.worth[own[seen]].max()
    assert worth(worst).min() == task.worth[own[seen]].min()


def test_draws_are_of_all_classes_alike_and_the_same_for_a_seed(task):
    replay = Replay([kept_of(task)])
    one, other = (replay.draw(0, 10, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one, other)
    assert len(one) in range(8, 11)  # an event may belong to both classes
    assert len(replay.draw(0, 0, torch.Generator())) == len(torch.cat([kept.events for kept in replay.tasks[0].values()]).unique())
    again = Replay.of(replay.state_dict())
    assert torch.equal(again.draw(0, 10, torch.Generator().manual_seed(4)), one)
    assert again.events == replay.events


def test_the_link_loss_is_that_of_a_logistic_regression_with_both_sorts_alike():
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    met, apart = torch.tensor([[0, 1]]), torch.tensor([[0, 2], [1, 2], [0, 1]])
    wanted = 0.5 * math.log(1 + math.exp(-2)) + 0.5 * (2 * math.log(2) + math.log(1 + math.exp(2))) / 3
    assert link_loss(rows, met, apart).item() == pytest.approx(wanted, rel=1e-6)
    assert link_loss(rows, met[:0], apart[:0]).item() == 0


def test_ap_and_af_of_a_matrix_worked_out_by_hand():
    matrix = [[90.0], [70.0, 80.0], [75.0, 60.0, 50.0]]
    assert average_performance(matrix) == pytest.approx((75 + 60 + 50) / 3)
    assert average_forgetting(matrix) == pytest.approx(((90 - 75) + (80 - 60)) / 2)
    assert learning_accuracy(matrix) == pytest.approx((90 + 80 + 50) / 3)
    assert average_forgetting([[50.0]]) == 0


def test_forward_transfer_is_what_lies_above_chance_before_a_task_is_learnt():
    assert forward_transfer([60.0, 20.0], [2, 4]) == pytest.approx(((60 - 50) + (20 - 25)) / 2)
    assert forward_transfer([], []) == 0


def test_a_task_that_is_forgotten_less_than_nothing_counts_from_its_best():
    assert average_forgetting([[50.0], [60.0, 1.0]]) == 0  # it has never been better than at the end


def test_class_accuracies_and_macro_f1_are_those_of_sklearn():
    torch.manual_seed(0)
    predicted, label = torch.randint(4, (50,)), torch.randint(3, (50,))  # class 3 occurs among predictions only, class 4 nowhere
    assert macro_f1(predicted, label, 5) == pytest.approx(100 * f1_score(label, predicted, average="macro", zero_division=0), rel=1e-5)
    ours = class_accuracy(predicted, label, 5)
    assert ours[:3].tolist() == pytest.approx((100 * recall_score(label, predicted, average=None, labels=[0, 1, 2])).tolist(), rel=1e-5)
    assert ours[3:].isnan().all()


@pytest.mark.parametrize("seed", range(3))
def test_label_propagation_counts_the_labelled_neighbours_before_an_event(seed):
    generator = torch.Generator().manual_seed(seed)
    src, dst = torch.randint(9, (2, 60), generator=generator)
    known = torch.randint(-1, 3, (9,), generator=generator)
    visible = (torch.rand(60, generator=generator) < 0.8).nonzero().view(-1)
    nodes, before = torch.tensor([1, 4, 7]), torch.randint(60, (3,), generator=generator)
    usual = [int((known == kind).sum()) for kind in range(3)]
    wanted = []
    for node, limit in zip(nodes.tolist(), before.tolist()):
        votes = [0, 0, 0]
        for event in visible.tolist():
            for own, other in ((int(src[event]), int(dst[event])), (int(dst[event]), int(src[event]))):
                if event < limit and own == node and other != node and known[other] >= 0:
                    votes[int(known[other])] += 1
        wanted.append(votes.index(max(votes)) if any(votes) else usual.index(max(usual)))
    assert propagated(src, dst, visible, known, nodes, before, 3).tolist() == wanted
    latest = last_events(src, dst, visible, nodes, 9).tolist()
    assert latest == [max(e for e in visible.tolist() if node in (int(src[e]), int(dst[e]))) for node in nodes.tolist()]


def test_pictures_are_drawn_of_one_task_and_of_several(tmp_path):
    for matrix in ([[50.0]], [[90.0], [70.0, 80.0]]):
        paths = [draw_matrices(tmp_path, {"class_il": matrix, "task_il": matrix}), draw_course(tmp_path, {"class_il": matrix}),
                 draw_embeddings(tmp_path, torch.randn(20, 5), torch.arange(20) % 3, ["a", "b", "c"], old=1)]
        for path in paths:
            assert len(Image.open(path).convert("L").getcolors()) > 20
            path.unlink()
