"""The losses against loops over nodes, and what must not flow: nothing into a teacher, nothing from one neighbour or none."""

import pytest
import torch

from lightning_modules.freekd import losses
from lightning_modules.freekd.structure import LocalEdges, cosines, edges_within, log_shares
from tests.lightning_modules.freekd import freekd_by_loops as naive

NODES = 12


@pytest.fixture
def graph():
    """Edges of a random directed graph with a self loop, an isolated node (11) and one with a single neighbour (10)."""
    torch.manual_seed(3)
    source, target = torch.randint(0, 10, (2, 40))
    extra = torch.tensor([[2, 4, 3], [2, 10, 0]])
    pairs = torch.cat([torch.stack([source, target]), extra], 1)
    return torch.unique(pairs, dim=1)


def drawn(networks, width=5, classes=4):
    generator = torch.Generator().manual_seed(networks)
    z = torch.randn(networks, NODES, width, generator=generator)
    logits = 2 * torch.randn(networks, NODES, classes, generator=generator)
    teacher = torch.randint(networks, (NODES,), generator=generator)
    carried = torch.randint(2, (NODES,), generator=generator).float()
    return z, logits, teacher, carried


def edges_of(graph):
    return edges_within(graph, torch.arange(NODES), NODES)


def kept_of(edges, teacher):
    return teacher[edges.centre] == teacher[edges.neighbour]


def structure(z, edges, teacher, carried, tau=1.0):
    return losses.structure_losses(torch.stack([cosines(v, edges) for v in z]), kept_of(edges, teacher), edges, teacher, carried, tau)


@pytest.mark.parametrize("networks", [2, 3])
@pytest.mark.parametrize("tau", [1.0, 0.2])
def test_losses_of_two_and_three_networks_equal_a_loop_over_nodes(graph, networks, tau):
    z, logits, teacher, carried = drawn(networks)
    edges = edges_of(graph)
    node = losses.node_losses(losses.log_probabilities(logits, False), teacher)
    assert node.tolist() == pytest.approx(naive.node_losses(logits.tolist(), teacher.tolist()), abs=1e-6)
    found = structure(z, edges, teacher, carried, tau)
    wanted = naive.structure_losses(z.tolist(), graph.t().tolist(), teacher.tolist(), carried.tolist(), tau)
    assert max(wanted) > 1e-3
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("networks", [2, 3])
def test_mutual_learning_averages_over_the_other_networks(networks):
    _, logits, _, _ = drawn(networks)
    node = losses.node_losses(losses.log_probabilities(logits, False), None)
    assert node.tolist() == pytest.approx(naive.node_losses(logits.tolist(), None), rel=1e-5)


def test_with_two_networks_the_general_losses_are_those_of_the_first_paper_to_the_last_bit(graph):
    """FreeKD as written: a1 = 0 lets Phi teach Psi, a1 = 1 lets Psi teach Phi."""
    z, logits, a1, a2 = drawn(2)
    edges = edges_of(graph)
    log_p = losses.log_probabilities(logits, False)

    def kl(p, q):
        return (p.exp() * (p - q)).sum((-1, -2))

    phi = (a1 * kl(log_p[1], log_p[0])).sum() / NODES
    psi = ((1 - a1) * kl(log_p[0], log_p[1])).sum() / NODES
    assert torch.equal(losses.node_losses(log_p, a1), torch.stack([phi, psi]))
    kept = kept_of(edges, a1)
    s = [log_shares(cosines(v, edges), kept, edges) for v in z]
    several = edges.degrees(kept) > 1

    def over_neighbours(p, q, teaches):
        return (edges.sums(p.exp() * (p - q) * kept) * teaches * (a2 * several / several.sum())).sum()

    wanted = torch.stack([over_neighbours(s[1], s[0], a1), over_neighbours(s[0], s[1], 1 - a1)])
    assert torch.equal(structure(z, edges, a1, a2), wanted)


def test_several_labels_are_taught_by_the_divergence_of_independent_coins():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, NODES, 6, generator=generator)
    coins = [torch.distributions.Bernoulli(logits=x) for x in logits]
    wanted = torch.distributions.kl_divergence(coins[0], coins[1]).sum(-1)
    log_p = losses.log_probabilities(logits, True)
    assert torch.allclose(losses.divergence(log_p[0], log_p[1]), wanted, rtol=1e-4, atol=1e-6)
    y = torch.randint(2, (NODES, 6), generator=generator)
    wanted_ce = torch.nn.functional.binary_cross_entropy_with_logits(logits[0], y.float(), reduction="none").mean(-1)
    assert torch.allclose(losses.cross_entropies(log_p, y)[0], wanted_ce, rtol=1e-5)
    assert torch.allclose(losses.entropies(log_p)[0], coins[0].entropy().mean(-1), rtol=1e-4, atol=1e-6)


def test_cross_entropy_and_entropy_of_classes_are_torchs():
    _, logits, teacher, _ = drawn(3)
    log_p = losses.log_probabilities(logits, False)
    wanted = torch.nn.functional.cross_entropy(logits[1], teacher, reduction="none")
    assert torch.allclose(losses.cross_entropies(log_p, teacher)[1], wanted)
    assert torch.allclose(losses.entropies(log_p), torch.distributions.Categorical(logits=logits).entropy(), atol=1e-6)


def test_networks_that_agree_teach_each_other_nothing_and_move_nowhere(graph):
    z, logits, teacher, carried = drawn(2)
    same_z, same_logits = z[:1].repeat(2, 1, 1).requires_grad_(), logits[:1].repeat(2, 1, 1).requires_grad_()
    node = losses.node_losses(losses.log_probabilities(same_logits, False), teacher)
    struct = structure(same_z, edges_of(graph), teacher, carried)
    (node.sum() + struct.sum()).backward()
    assert node.abs().max() < 1e-7
    assert struct.abs().max() < 1e-7
    assert same_logits.grad.abs().max() < 1e-7
    assert same_z.grad.abs().max() < 1e-7


def test_a_teacher_gets_no_gradient_from_what_it_teaches(graph):
    z, logits, teacher, carried = drawn(3)
    z.requires_grad_(), logits.requires_grad_()
    node = losses.node_losses(losses.log_probabilities(logits, False), teacher)
    struct = structure(z, edges_of(graph), teacher, carried)
    for pupil in range(3):
        for loss, leaf in ((node, logits), (struct, z)):
            (gradient,) = torch.autograd.grad(loss[pupil], leaf, retain_graph=True)
            others = [k for k in range(3) if k != pupil]
            assert gradient[pupil].abs().sum() > 0
            assert gradient[others].abs().sum() == 0


def test_one_neighbour_or_none_carries_nothing_and_everything_stays_finite(graph):
    z, _, _, _ = drawn(2)
    edges = edges_of(graph)
    alone = torch.isin(edges.centre, torch.tensor([10, 11]))  # 10 has one neighbour, 11 none
    z.requires_grad_()
    cosine = torch.stack([cosines(v, edges) for v in z])
    teacher, carried = torch.zeros(NODES, dtype=torch.long), torch.ones(NODES)
    loss = losses.structure_losses(cosine, alone, edges, teacher, carried, 1.0)
    loss.sum().backward()
    assert loss.tolist() == [0.0, 0.0]
    assert z.grad.abs().sum() == 0


def test_an_empty_batch_gives_finite_zeros():
    edges = edges_within(torch.empty(2, 0, dtype=torch.long), torch.empty(0, dtype=torch.long), 0)
    nothing = torch.empty(0, dtype=torch.long)
    node = losses.node_losses(torch.empty(2, 0, 1, 3), nothing)
    struct = losses.structure_losses(torch.empty(2, 0), torch.empty(0, dtype=torch.bool), edges, nothing, torch.empty(0), 1.0)
    assert node.tolist() == struct.tolist() == [0.0, 0.0]


def test_renaming_the_nodes_changes_no_loss(graph):
    z, logits, teacher, carried = drawn(2)
    order = torch.randperm(NODES, generator=torch.Generator().manual_seed(1))
    new = order.argsort()  # old name -> new name
    before = structure(z, edges_of(graph), teacher, carried)
    after = structure(z[:, order], edges_of(new[graph]), teacher[order], carried[order])
    assert torch.allclose(before, after, atol=1e-7)
    log_p = losses.log_probabilities(logits, False)
    assert torch.allclose(losses.node_losses(log_p, teacher), losses.node_losses(log_p[:, order], teacher[order]), atol=1e-7)


def test_only_edges_between_different_nodes_of_the_batch_are_kept_by_centre():
    graph = torch.tensor([[0, 1, 2, 3, 3, 4], [1, 1, 3, 2, 4, 0]])
    edges = edges_within(graph, torch.tensor([4, 3, 2]), 5)
    named = [(int(torch.tensor([4, 3, 2])[j]), int(torch.tensor([4, 3, 2])[i])) for j, i in zip(edges.neighbour, edges.centre)]
    assert sorted(named) == [(2, 3), (3, 2), (3, 4)]
    assert edges.centre.tolist() == sorted(edges.centre.tolist())


def test_cosines_and_their_gradient_in_pieces_equal_autograd_on_whole_gathers(graph, monkeypatch):
    monkeypatch.setattr("lightning_modules.freekd.structure.CHUNK", {"cpu": 7})
    edges = edges_of(graph)
    z = torch.randn(NODES, 5, dtype=torch.float32, requires_grad=True)
    weights = torch.randn(len(edges.centre))
    (mine,) = torch.autograd.grad((cosines(z, edges) * weights).sum(), z)
    plain = torch.nn.functional.cosine_similarity(z[edges.centre], z[edges.neighbour], dim=-1)
    (wanted,) = torch.autograd.grad((plain * weights).sum(), z)
    assert torch.allclose(cosines(z, edges), plain, atol=1e-6)
    assert torch.allclose(mine, wanted, atol=1e-6)


def test_memory_of_the_structure_loss_does_not_grow_with_the_width():
    nodes, links, width = 300, 20_000, 256
    ends = torch.randint(nodes, (2, links))
    edges = LocalEdges(ends[1].sort().values, ends[0], nodes)
    z = torch.randn(nodes, width, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        cosines(z, edges)
    assert max(saved) <= max(links, nodes * width)
    assert sum(saved) < links * width / 4
