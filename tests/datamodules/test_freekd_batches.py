from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from datamodules.freekd import FreekdData, FreekdDataConfig
from datamodules.graph_batches import ClusteredOrder, Neighbourhoods, WholeGraphs, pool_edges
from datamodules.graphs import Graph, batch_of, compressed, row_normalized, take_rows, tidy_edges, tidy_features
from datamodules.rows import DataError
from lightning_modules.freekd.networks import NetworkConfig, make_network


def data(**values):
    made = FreekdData(FreekdDataConfig(train_per_class=60, **values))
    made.setup()
    return made


def ids(batches):
    return [batch.node_id.tolist() for batch in batches]


def shared_out(made, world_size, monkeypatch):
    """Return the training loaders of each process."""
    loaders = []
    for rank in range(world_size):
        monkeypatch.setattr("datamodules.freekd._place", lambda rank=rank: (rank, world_size))
        loaders.append(made.train_dataloader())
    return loaders


CLUSTERED = {"batch": "clustered", "batch_size": 50, "fanouts": [4, 3]}
WALKS = {"batch": "walks", "batch_size": 120}


@pytest.mark.parametrize("kind", [CLUSTERED, WALKS, {**CLUSTERED, "seeds": "all"}])
def test_the_same_seed_gives_the_same_batches_and_another_seed_others(kind):
    first, again, other = (ids(data(seed=seed, **kind).train_dataloader()) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("kind", [CLUSTERED, WALKS])
def test_a_loader_goes_on_in_the_middle_of_an_epoch_with_the_same_batches(kind):
    whole_run = data(**kind).train_dataloader()
    expected = ids(whole_run) + ids(whole_run)
    assert len(expected) >= 6
    stopped = data(**kind).train_dataloader()
    parts = iter(stopped)
    begun = ids([next(parts), next(parts)])
    resumed = data(**kind).train_dataloader()
    resumed.load_state_dict(stopped.state_dict())
    rest = []
    while len(begun) + len(rest) < len(expected):
        rest += ids(resumed)
    assert begun + rest[: len(expected) - 2] == expected


@pytest.mark.parametrize("kind", [CLUSTERED, {**CLUSTERED, "seeds": "all"}])
def test_processes_share_the_seeds_out_and_an_epoch_has_each_once(kind, monkeypatch):
    made = data(**kind)
    apart = [[batch.node_id[: batch.seeds] for batch in loader] for loader in shared_out(made, 2, monkeypatch)]
    assert len(apart[0]) == len(apart[1])
    seen = torch.cat([nodes for rank in apart for nodes in rank])
    assert len(seen) == len(seen.unique())
    pool = made.graph.train if "seeds" not in kind else torch.ones_like(made.graph.train)
    assert pool[seen].all()
    assert len(seen) > int(pool.sum()) - 2 * 50


def test_a_batch_says_the_truth_about_its_nodes_and_edges():
    made = data(**CLUSTERED)
    graph = made.graph
    edges = set(zip(*graph.edge_index.tolist()))
    for batch in made.train_dataloader():
        nodes = batch.node_id
        assert torch.equal(batch.x, graph.x[nodes])
        assert torch.equal(batch.y, graph.y[nodes])
        assert batch.train_mask.tolist() == [place < 50 for place in range(len(nodes))]
        assert set(zip(*nodes[batch.edge_index].tolist())) <= edges
        own = set(nodes[:50].tolist())
        inside = sorted((s, t) for s, t in edges if s in own and t in own)
        assert sorted(zip(*nodes[batch.seed_edges].tolist())) == inside


def test_clustered_seeds_keep_far_more_neighbours_than_random_ones():
    made = data(**CLUSTERED)
    pool = made.graph.train.nonzero().view(-1)
    clustered = sum(batch.seed_edges.shape[1] for batch in made.train_dataloader())
    dealt = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0)).view(-1, 40)[:, :50]
    neighbourhoods = Neighbourhoods(made.graph, pool, [1], 0)
    random = sum(neighbourhoods.__getitems__(places.tolist()).seed_edges.shape[1] for places in dealt)
    assert clustered > 2.5 * random


def test_an_order_of_clusters_has_each_node_once_and_changes_with_the_epoch():
    ring = torch.arange(30)
    edges = torch.stack([ring, ring.roll(1)])
    order = ClusteredOrder(torch.cat([edges, edges.flip(0)], 1), 30, 5, seed=0)
    first, second = order.permutation(0).tolist(), order.permutation(1).tolist()
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second
    beside = [abs(a - b) % 28 <= 4 for a, b in pairwise(first)]  # at most four steps apart on the ring
    assert sum(beside) > 15


@pytest.mark.parametrize(("name", "hops"), [("sage", 2), ("gat", 2), ("gcn", 3)])
def test_complete_neighbourhoods_give_the_logits_of_the_whole_graph(name, hops):
    """A GCN divides by the degree of its neighbours' neighbours, so that it needs one hop more than it has layers."""
    made = data(batch="clustered", batch_size=40, fanouts=[-1] * hops)
    torch.manual_seed(0)
    network = make_network(name, made.num_features, made.num_classes, NetworkConfig()).eval()
    expected = network(made.graph.x, made.graph.edge_index)[1]
    for batch in made.train_dataloader():
        torch.testing.assert_close(network(batch.x, batch.edge_index)[1][:40], expected[batch.node_id[:40]])


def test_walks_make_subgraphs_with_all_edges_inside_and_labels_of_training_nodes_only():
    made = data(**WALKS)
    edges = set(zip(*made.graph.edge_index.tolist()))
    for batch in made.train_dataloader():
        nodes = batch.node_id
        assert batch.seeds == batch.num_nodes <= 120
        assert torch.equal(batch.train_mask, made.graph.train[nodes])
        inside = set(nodes.tolist())
        assert sorted(zip(*nodes[batch.edge_index].tolist())) == sorted((s, t) for s, t in edges if s in inside and t in inside)


def test_whole_graphs_come_as_often_as_repeats_says_and_keep_what_is_prepared():
    made = data(repeats=3)
    first, *rest = made.train_dataloader()
    assert len(rest) == 2
    assert all(batch is first for batch in rest)
    assert first.seeds == first.num_nodes == 1200
    assert first is next(iter(made.val_dataloader()))
    assert first.to("cpu") is first
    moved = first.to("meta")
    assert moved.x.device.type == moved.train_mask.device.type == "meta"
    assert first.to("meta") is moved
    sampled = next(iter(data(**CLUSTERED).train_dataloader()))
    assert sampled.to("meta") is not sampled.to("meta")


def several_graphs():
    """Three graphs of 4 nodes: the first trains, the second validates, the third tests."""
    graph_id = torch.arange(3).repeat_interleave(4)
    edges = tidy_edges(torch.tensor([[1, 2, 5, 6, 9], [2, 3, 6, 7, 10]]), 12, symmetric=True)
    return Graph(torch.randn(12, 3), edges, torch.zeros(12, 5), graph_id == 0, graph_id == 1, graph_id == 2, 5, graph_id)


def test_training_sees_no_node_of_a_held_out_graph():
    graph = several_graphs()
    training = graph.with_those(graph.train)
    assert training.num_nodes == 4
    assert torch.equal(training.x, graph.x[:4])
    assert sorted(zip(*training.edge_index.tolist())) == [(1, 2), (2, 1), (2, 3), (3, 2)]
    held_out = graph.with_those(graph.valid | graph.test)
    assert torch.equal(held_out.x, graph.x[4:])
    assert sorted(zip(*held_out.edge_index.tolist())) == [(1, 2), (2, 1), (2, 3), (3, 2), (5, 6), (6, 5)]
    batch = WholeGraphs(graph, torch.tensor([0, 2])).__getitems__([1])
    assert batch.node_id.tolist() == [8, 9, 10, 11]


def test_a_graph_of_which_nodes_are_taken_keeps_their_order_and_sparse_features():
    graph = several_graphs()
    graph = replace(graph, x=compressed(graph.x))
    part = graph.part(torch.tensor([2, 0, 1]))
    torch.testing.assert_close(part.x.to_dense(), graph.x.to_dense()[[2, 0, 1]])
    assert sorted(zip(*part.edge_index.tolist())) == [(0, 2), (2, 0)]


def test_sparse_features_behave_as_dense_ones():
    torch.manual_seed(0)
    dense = torch.randint(0, 4, (9, 40)) * (torch.rand(9, 40) < 0.1).float()
    dense[4] = 0
    sparse = tidy_features(dense)
    assert sparse.layout == torch.sparse_csr
    torch.testing.assert_close(sparse.to_dense(), dense)
    torch.testing.assert_close(row_normalized(sparse).to_dense(), row_normalized(dense))
    assert set(row_normalized(dense).sum(1).round(decimals=5).tolist()) <= {0.0, 1.0}
    rows = torch.tensor([8, 4, 0, 8])
    torch.testing.assert_close(take_rows(sparse, rows).to_dense(), dense[rows])
    assert take_rows(sparse, rows[:0]).shape == (0, 40)
    full = torch.rand(5, 5)
    assert tidy_features(full) is full


def test_edges_are_sorted_by_target_once_each_and_doubled_only_when_asked():
    edges = torch.tensor([[3, 0, 0, 2, 2], [1, 2, 2, 2, 0]])
    assert tidy_edges(edges, 4, symmetric=False).tolist() == [[2, 3, 0, 2], [0, 1, 2, 2]]
    both = tidy_edges(edges, 4, symmetric=True)
    assert set(zip(*both.tolist())) == {(3, 1), (1, 3), (0, 2), (2, 0), (2, 2)}
    assert (both[1].diff() >= 0).all()


def test_edges_that_name_a_node_that_is_not_there_are_refused():
    graph = several_graphs()
    with pytest.raises(DataError, match=r"data\.name: the edges name node 12, but there are 12 nodes"):
        replace(graph, edge_index=torch.tensor([[1], [12]]))


def test_a_batch_larger_than_what_there_is_to_start_from_is_refused():
    with pytest.raises(DataError, match=r"data\.batch_size: 5000 on each of 1 is more than the 360"):
        data(batch="clustered", batch_size=5000).train_dataloader()


def test_views_show_each_network_its_block_of_features_and_all_without_views():
    batch = next(iter(data(name="planted-views").val_dataloader()))
    first, second = batch.features(0), batch.features(1)
    torch.testing.assert_close(first + second, batch.x)
    assert not first[:, 24:].any()
    assert not second[:, :24].any()
    assert torch.equal(batch.features(2), first)
    plain = next(iter(data().val_dataloader()))
    assert plain.features(1) is plain.x


def test_batches_of_a_part_of_the_pool_have_labels_of_seeds_only():
    graph = data().graph
    batch = batch_of(graph, torch.arange(20), 5, torch.empty(2, 0, dtype=torch.long), torch.empty(2, 0, dtype=torch.long))
    assert not batch.train_mask[5:].any()
    assert torch.equal(batch.train_mask[:5], graph.train[:5])


def test_edges_of_a_pool_are_given_in_its_places_both_ways():
    graph = several_graphs()
    assert sorted(zip(*pool_edges(graph, torch.tensor([2, 3])).tolist())) == [(0, 1), (0, 1), (1, 0), (1, 0)]
