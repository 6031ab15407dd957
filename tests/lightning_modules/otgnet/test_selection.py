"""Triads, what samples are worth, and which few are kept: against enumeration, exact inverses and exhaustive search."""

from itertools import combinations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from datamodules.recency import RecentNeighbours
from lightning_modules.otgnet.influence import worth
from lightning_modules.otgnet.selection import greedy, herding, radius_of, to_unit
from lightning_modules.otgnet.triads import closed_triads, open_triads


def some_stream(seed, nodes=10, events=80):
    generator = torch.Generator().manual_seed(seed)
    src, dst = torch.randint(nodes, (2, events), generator=generator)
    label = torch.randint(-1, 2, (nodes,), generator=generator)
    return src, dst, label, RecentNeighbours(src, dst, torch.arange(events), nodes=nodes)


def met(src, dst, node, before):
    """Brute force: the last event before `before` of a node with each other node."""
    found = {}
    for event in range(before):
        ends = (int(src[event]), int(dst[event]))
        if node in ends and ends[0] != ends[1]:
            found[ends[1] if ends[0] == node else ends[0]] = event
    return found


@pytest.mark.parametrize("seed", [0, 1, 3, 4])
def test_closed_and_open_triads_are_those_that_enumeration_finds(seed):
    src, dst, label, neighbours = some_stream(seed)
    closed, opened = set(), set()
    for event in range(len(src)):
        s, d = int(src[event]), int(dst[event])
        if s == d or label[s] != 1 or label[d] != 1:
            continue
        of_s, of_d = met(src, dst, s, event), met(src, dst, d, event)
        closed |= {(of_s[u], of_d[u], s, d, u) for u in of_s.keys() & of_d.keys() if label[u] == 1}
        for a, b, of_a, of_b in ((s, d, of_s, of_d), (d, s, of_d, of_s)):
            opened |= {(of_a[u], event, a, b, u) for u in of_a.keys() - of_b.keys() if label[u] == 1 and u != b}
    for function, wanted in ((closed_triads, closed), (open_triads, opened)):
        ours = function(src, dst, label, torch.arange(len(src)), neighbours, 1, last=80)
        rows = torch.cat([ours.events, ours.nodes], 1).tolist()
        assert len(rows) == len(set(map(tuple, rows)))
        assert set(map(tuple, rows)) == wanted
        assert wanted


def test_a_class_without_events_has_no_triads():
    src, dst, label, neighbours = some_stream(0)
    assert len(closed_triads(src, dst, label, torch.arange(80), neighbours, 7)) == 0
    assert len(open_triads(src, dst, label, torch.empty(0, dtype=torch.int64), neighbours, 1)) == 0


def small_classifier(seed=0):
    torch.manual_seed(seed)
    x, label = torch.randn(30, 4, dtype=torch.float64), torch.randint(3, (30,))
    layer = nn.Linear(4, 3, dtype=torch.float64)
    parameters = {name: value.detach() for name, value in layer.named_parameters()}
    return x, label, parameters, lambda given: functional_call(layer, given, (x,))


def gradients(x, label, parameters):
    """One row a sample, by autograd, one sample after another."""
    rows = []
    for one, kind in zip(x, label):
        leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        loss = nn.functional.cross_entropy(one @ leaves["weight"].T + leaves["bias"], kind)
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, [leaves["weight"], leaves["bias"]])]))
    return torch.stack(rows)


def hessian(x, label, parameters):
    def loss(flat):
        weight, bias = flat[:12].view(3, 4), flat[12:]
        return nn.functional.cross_entropy(x @ weight.T + bias, label)

    flat = torch.cat([parameters["weight"].flatten(), parameters["bias"]])
    return torch.autograd.functional.hessian(loss, flat)


@pytest.mark.parametrize(("curvature", "steps", "tolerance"), [("gradient", 0, 1e-10), ("cg", 60, 1e-6), ("lissa", 3000, 1e-4)])
def test_what_samples_are_worth_is_the_product_with_the_exact_inverse_hessian(curvature, steps, tolerance):
    x, label, parameters, logits = small_classifier()
    each = gradients(x, label, parameters)
    inverse = torch.eye(15, dtype=torch.float64)
    if curvature != "gradient":  # of a linear classifier, the curvature of Gauss and Newton is the Hessian
        inverse = torch.linalg.inv(hessian(x, label, parameters) + 0.05 * inverse)
    wanted = each @ inverse @ each.mean(0)
    found = worth(logits, parameters, label, curvature, damping=0.05, steps=steps)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_a_sample_that_is_worth_something_lowers_the_mean_loss_when_it_weighs_more():
    x, label, parameters, logits = small_classifier(1)
    ours = worth(logits, parameters, label, "cg", damping=1e-3, steps=60)
    each, curve = gradients(x, label, parameters), hessian(x, label, parameters) + 1e-3 * torch.eye(15, dtype=torch.float64)
    flat = torch.cat([parameters["weight"].flatten(), parameters["bias"]])

    def loss(values):
        return nn.functional.cross_entropy(x @ values[:12].view(3, 4).T + values[12:], label)

    best, worst = int(ours.argmax()), int(ours.argmin())
    assert ours[best] > 0 > ours[worst]
    moved = {which: flat - 1e-3 * torch.linalg.solve(curve, each[which]) for which in (best, worst)}  # a Newton step towards one sample
    assert loss(moved[best]) < loss(flat) < loss(moved[worst])


def test_closed_classes_do_not_disturb_what_samples_are_worth():
    x, label, parameters, logits = small_classifier()
    closed = torch.tensor([0.0, 0.0, float("-inf")], dtype=torch.float64)
    two = label % 2
    found = worth(lambda given: logits(given) + closed, parameters, two, "cg", damping=0.05, steps=60)
    less = {"weight": parameters["weight"][:2], "bias": parameters["bias"][:2]}
    wanted = worth(lambda given: x @ given["weight"].T + given["bias"], less, two, "cg", damping=0.05, steps=60)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


def value_of(chosen, importance, embedding, gamma, radius):
    near = torch.cdist(embedding, embedding) < radius
    near.fill_diagonal_(True)
    return float(importance[chosen].sum() + gamma * near[chosen].any(0).float().mean())


@pytest.mark.parametrize("seed", range(5))
def test_the_greedy_choice_is_within_its_guarantee_of_the_best(seed):
    torch.manual_seed(seed)
    importance, embedding, gamma, radius = torch.rand(12), torch.randn(12, 2), 5.0, 0.8
    chosen = greedy(importance, embedding, 3, gamma, radius).tolist()
    best = max(value_of(list(others), importance, embedding, gamma, radius) for others in combinations(range(12), 3))
    assert value_of(chosen, importance, embedding, gamma, radius) >= (1 - 1 / 2.71828) * best
    assert len(set(chosen)) == 3


def test_without_diversity_the_most_important_are_chosen_and_with_it_the_groups():
    importance = torch.tensor([1.0, 0.9, 0.8, 0.1])
    embedding = torch.tensor([[0.0], [0.01], [0.02], [9.0]])
    assert greedy(importance, embedding, 2, 0.0, 0.5).tolist() == [0, 1]
    assert greedy(importance, embedding, 2, 10.0, 0.5).tolist() == [0, 3]
    assert greedy(importance, embedding, 9, 10.0, 0.5, most=3).tolist() == [0, 1, 2]


def test_herding_keeps_the_mean():
    torch.manual_seed(0)
    embedding = torch.randn(200, 6)
    chosen = herding(embedding, 20)
    error = (embedding[chosen].mean(0) - embedding.mean(0)).norm()
    drawn = torch.stack([(embedding[torch.randperm(200)[:20]].mean(0) - embedding.mean(0)).norm() for _ in range(50)])
    assert error < drawn.min()
    assert len(set(chosen.tolist())) == 20


def test_scales_and_radii():
    assert to_unit(torch.tensor([2.0, 4.0, 3.0])).tolist() == [0.0, 1.0, 0.5]
    assert to_unit(torch.tensor([2.0, 2.0])).tolist() == [0.0, 0.0]
    assert radius_of(torch.tensor([[0.0], [1.0], [3.0]]), 0.5) == pytest.approx(2.0)
    assert radius_of(torch.zeros(1, 2), 0.5) == 0.0
