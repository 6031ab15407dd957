import itertools
from collections import Counter

import pytest
import torch
import torch_geometric.typing
from torch_geometric.sampler import neighbor_sampler

from datamodules.graphs import tidy_edges
from datamodules.neighbours import CompiledSampler, InNeighbours

NODES = 60


@pytest.fixture
def edges():
    """Directed edges with self loops, nodes without a neighbour, and one node with many."""
    generator = torch.Generator().manual_seed(5)
    random = torch.randint(0, NODES - 4, (2, 260), generator=generator)
    hub = torch.stack([torch.arange(1, 40), torch.zeros(39, dtype=torch.long)])
    return tidy_edges(torch.cat([random, hub], 1), NODES, symmetric=False)


@pytest.fixture
def neighbours(edges):
    return InNeighbours.of(edges, NODES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pairs(edges):
    return list(zip(*edges.tolist()))


def sources_of(edges):
    return {node: sorted(s for s, t in pairs(edges) if t == node) for node in range(NODES)}


def test_all_neighbours_are_found_as_a_loop_finds_them(edges, neighbours):
    nodes = torch.tensor([7, 0, 59, 3])
    found, rows = neighbours.all_of(nodes)
    expected = sources_of(edges)
    for row, node in enumerate(nodes.tolist()):
        assert sorted(found[rows == row].tolist()) == expected[node]


def test_a_fanout_takes_so_many_different_neighbours_or_all_there_are(edges, neighbours):
    nodes = torch.arange(NODES)
    found, rows = neighbours.some_of(nodes, 4, generator())
    expected = sources_of(edges)
    for node in range(NODES):
        taken = found[rows == node].tolist()
        assert len(taken) == len(set(taken)) == min(4, len(expected[node]))
        assert set(taken) <= set(expected[node])


def test_every_set_of_neighbours_is_drawn_equally_often(neighbours, edges):
    expected = sources_of(edges)
    node = next(n for n in range(NODES) if len(expected[n]) == 6)
    draws = 30_000
    found, _ = neighbours.some_of(torch.full((draws,), node), 3, generator(1))
    counts = Counter(tuple(sorted(row)) for row in found.view(draws, 3).tolist())
    sets = list(itertools.combinations(expected[node], 3))
    assert set(counts) == set(sets)
    chi_squared = sum((counts[s] - draws / len(sets)) ** 2 / (draws / len(sets)) for s in sets)
    assert chi_squared < 43.8  # the 0.1 % point for 19 degrees of freedom


def test_complete_neighbourhoods_equal_a_search_hop_by_hop(edges, neighbours):
    seeds = torch.tensor([11, 2, 58])
    nodes, local = neighbours.sample(seeds, [-1, -1], generator())
    one_hop = {s for s, t in pairs(edges) if t in seeds.tolist()}
    two_hops = {s for s, t in pairs(edges) if t in one_hop}
    assert nodes[:3].tolist() == [11, 2, 58]
    assert len(nodes) == len(nodes.unique())
    assert set(nodes.tolist()) == {11, 2, 58} | one_hop | two_hops
    inner = {11, 2, 58} | one_hop
    assert sorted(pairs(nodes[local])) == sorted((s, t) for s, t in pairs(edges) if t in inner)


def test_a_sample_holds_real_edges_within_the_fanout_each_once_and_sorted_by_target(edges, neighbours):
    seeds = torch.tensor([0, 5, 9, 13])
    nodes, local = neighbours.sample(seeds, [3, 2], generator(2))
    assert set(pairs(nodes[local])) <= set(pairs(edges))
    assert len(set(pairs(local))) == local.shape[1]
    assert (local[1].diff() >= 0).all()
    per_target = torch.bincount(local[1], minlength=len(nodes))
    assert (per_target[:4] <= 3).all()
    assert (per_target[4:] <= 2).all()
    assert set(range(len(nodes))) == set(local.flatten().tolist()) | {0, 1, 2, 3}
    assert (neighbours.place == -1).all()


def test_the_same_generator_gives_the_same_sample_and_another_another(neighbours):
    seeds = torch.arange(8)
    first, again, other = (neighbours.sample(seeds, [3, 3], generator(seed)) for seed in (4, 4, 5))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not (len(first[0]) == len(other[0]) and torch.equal(first[0], other[0]))


def test_edges_between_nodes_are_all_those_with_both_ends_there(edges, neighbours):
    nodes = torch.tensor([4, 30, 0, 17, 9, 22])
    local = neighbours.between(nodes)
    inside = set(nodes.tolist())
    assert sorted(pairs(nodes[local])) == sorted((s, t) for s, t in pairs(edges) if s in inside and t in inside)
    assert (local[1].diff() >= 0).all()


def test_a_walk_goes_against_the_edges_and_stays_where_there_are_none(edges, neighbours):
    walks = neighbours.walk(torch.arange(NODES), 5, generator())
    real, expected = set(pairs(edges)), sources_of(edges)
    for walk in walks.tolist():
        for here, there in itertools.pairwise(walk):
            assert (there, here) in real or (here == there and not expected[here])


def test_a_walk_takes_each_neighbour_equally_often(edges, neighbours):
    hub = sources_of(edges)[0]
    ends = neighbours.walk(torch.zeros(40_000, dtype=torch.long), 1, generator())[:, 1]
    shares = torch.bincount(ends, minlength=NODES)[hub] / 40_000 * len(hub)
    assert (shares - 1).abs().max() < 0.17  # five deviations


def test_a_graph_without_edges_can_be_sampled():
    lonely = InNeighbours.of(torch.empty(2, 0, dtype=torch.long), 5)
    nodes, edges = lonely.sample(torch.tensor([1, 3]), [4, -1], generator())
    assert nodes.tolist() == [1, 3]
    assert edges.shape == (2, 0)
    assert lonely.between(torch.tensor([0, 1])).shape == (2, 0)
    assert lonely.walk(torch.tensor([2]), 2, generator()).tolist() == [[2, 2, 2]]


def test_pygs_compiled_sampler_is_driven_as_its_operator_wants(edges, neighbours, monkeypatch):
    """Stand in for the operator of pyg-lib, which no registry offers: it takes the arguments of pyg-lib 0.4, by position."""

    def neighbor_sample(colptr, row, seeds, fanouts, *rest):
        inner = InNeighbours(colptr, row, torch.full((len(colptr) - 1,), -1))
        nodes, local = inner.sample(seeds, fanouts, generator(int(torch.randint(1000, ()))))
        shuffled = torch.randperm(local.shape[1])
        return local[0][shuffled], local[1][shuffled], nodes, torch.arange(local.shape[1])

    monkeypatch.setattr(torch_geometric.typing, "WITH_PYG_LIB", True)
    monkeypatch.setattr(neighbor_sampler.torch.ops, "pyg", type("pyg", (), {"neighbor_sample": staticmethod(neighbor_sample)}))
    sampler = CompiledSampler(edges, NODES, [-1, -1])
    before = torch.get_rng_state()
    nodes, local = sampler.sample(torch.tensor([11, 2]), generator(3))
    assert torch.equal(before, torch.get_rng_state())
    expected = neighbours.sample(torch.tensor([11, 2]), [-1, -1], generator())
    assert torch.equal(nodes, expected[0])
    assert (local[1].diff() >= 0).all()
    assert sorted(pairs(local)) == sorted(pairs(expected[1]))
    few = CompiledSampler(edges, NODES, [2, 2])
    samples = [few.sample(torch.tensor([0, 1, 2]), generator(seed)) for seed in (6, 6)]
    assert all(torch.equal(*pair) for pair in zip(*samples))
