import sys
import types

import numpy as np
import pytest
import torch
from stand_in_graphs import (
    BEFORE_TEST,
    GAP,
    NODES,
    SHARED_GRAPHS,
    needs_shared_graphs,
    write_citeseer,
    write_geom_gcn,
    write_ppi,
    write_towns,
)
from torch_geometric.data import Data
from torch_geometric.datasets import PPI

from datamodules.freekd import FreekdData, FreekdDataConfig
from datamodules.graph_splits import random_split
from datamodules.graphs import Graph
from datamodules.rows import DataError
from pipelines.sources import docs_of, schema_of

TOWNS = "stand_in_graphs.Towns"


@pytest.fixture
def read(tmp_path):
    """Read a graph from tmp_path/root with a cache of the test's own; nothing in the root may change."""
    root = tmp_path / "root"

    def make(name, **values) -> FreekdData:
        before = listing(root)
        data = FreekdData(FreekdDataConfig(name, **{"root": str(root), "cache": str(tmp_path / "cache"), **values}))
        data.setup()
        assert listing(root) == before
        return data

    make.root = root
    return make


def listing(folder):
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*"))


def refusal(call):
    with pytest.raises(DataError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def counts(data):
    return tuple(data.facts[name] for name in ("train", "valid", "test"))


def test_the_files_of_planetoid_give_features_labels_and_the_public_split(read):
    x, y, test = write_citeseer(read.root / "CiteSeer" / "raw")
    data = read("citeseer", normalize="none")
    real = np.setdiff1d(np.arange(NODES), GAP)
    np.testing.assert_array_equal(data.graph.x.to_dense()[real], x[real])
    np.testing.assert_array_equal(data.graph.y[real], y[real])
    assert counts(data) == (20, 500, len(test))


def test_nodes_that_planetoid_makes_up_are_in_no_part_of_any_split(read):
    write_citeseer(read.root / "CiteSeer" / "raw")
    write_geom_gcn(read.root / "CiteSeer" / "geom-gcn" / "raw")
    for split in ("public", "full", "random", "geom-gcn"):
        graph = read("CiteSeer", split=split, normalize="none").graph
        assert not graph.x.to_dense()[list(GAP)].any()
        assert not (graph.train | graph.valid | graph.test)[list(GAP)].any(), split
    full = read("CiteSeer", split="full")
    assert counts(full) == (BEFORE_TEST - 500, 500, NODES - BEFORE_TEST - len(GAP))


def test_masks_stored_as_bytes_become_bools_and_text_files_that_name_others_are_followed(read):
    write_citeseer(read.root / "CiteSeer" / "raw")
    write_geom_gcn(read.root / "CiteSeer" / "geom-gcn" / "raw")
    for index in (0, 7):
        graph = read("CiteSeer", split="geom-gcn", split_index=index).graph
        assert graph.train.dtype == graph.valid.dtype == graph.test.dtype == torch.bool
        expected = ((torch.arange(NODES) + index) % 3 == 0).index_fill(0, torch.tensor(GAP), False)
        assert torch.equal(graph.train, expected)
    assert refusal(lambda: read("CiteSeer", split="geom-gcn", split_index=10)) == (
        "data.split_index: must lie in 0..9 for this set, not 10")


def test_a_set_is_read_once_and_anew_when_its_files_change(read, monkeypatch):
    write_towns(read.root)
    read(TOWNS)
    monkeypatch.setattr("datamodules.graph_sets._read", lambda *rest: pytest.fail("read again"))
    read(TOWNS)
    content = np.load(read.root / "towns" / "raw" / "towns.npz")
    np.savez(read.root / "towns" / "raw" / "towns.npz", **{**content, "x": content["x"] + 1})
    with pytest.raises(pytest.fail.Exception, match="read again"):
        read(TOWNS)


def test_any_class_of_pyg_is_read_by_its_dotted_name_with_its_arguments(read):
    content = write_towns(read.root)
    data = read(TOWNS, arguments=["name=Towns"], split_index=1)
    np.testing.assert_array_equal(data.graph.x, content["x"])
    labelled = content["y"] >= 0
    np.testing.assert_array_equal(data.graph.train, (content["part"][:, 1] == 0) & labelled)
    np.testing.assert_array_equal(data.graph.test, (content["part"][:, 1] == 2) & labelled)
    edges = {(s, t) for s, t in content["edges"].T.tolist()}
    assert sorted(zip(*data.graph.edge_index.tolist())) == sorted(edges)
    both = read(TOWNS, symmetric=True).graph.edge_index
    assert set(zip(*both.tolist())) == edges | {(t, s) for s, t in edges}


def test_a_class_without_masks_gets_a_random_split_and_says_so_if_a_stored_one_is_asked_for(read):
    write_towns(read.root)
    data = read(TOWNS, arguments=["masks=False"], train_per_class=3, valid_per_class=2)
    assert counts(data) == (9, 6, 11)
    assert "data.split: this set comes without a train mask; take data.split=random" in refusal(
        lambda: read(TOWNS, arguments=["masks=False"], split="stored"))


def test_ppi_is_one_union_whose_edges_are_numbered_from_the_first_node_of_each_graph(read):
    links = write_ppi(read.root / "raw")
    data = read("ppi")
    graph = data.graph
    assert data.multi_label
    assert (data.num_nodes, data.num_classes, graph.y.dtype) == (24, 7, torch.float32)
    expected = {(s + 8 * place, t + 8 * place) for place, split in enumerate(links.values()) for s, t in split if s != t}
    assert set(zip(*graph.edge_index.tolist())) == expected | {(t, s) for s, t in expected}
    assert graph.graph_id.tolist() == [node // 4 for node in range(24)]
    assert counts(data) == (8, 8, 8)
    (training,) = data.train_dataloader()
    assert training.num_nodes == 8
    assert training.train_mask.all()
    assert next(iter(data.val_dataloader())).num_nodes == 16
    batches = list(read("ppi", batch="graphs", batch_size=1).train_dataloader())
    assert sorted(batch.node_id.tolist() for batch in batches) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@needs_shared_graphs
def test_ppi_equals_pygs_reading_where_that_is_right(read, tmp_path):
    fixture = SHARED_GRAPHS / "PPI_synthetic_fixture"
    ours = read("PPI", root=str(fixture)).graph
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "raw").symlink_to(fixture / "raw")
    starts = 0
    for split, mask in (("train", ours.train), ("val", ours.valid), ("test", ours.test)):
        for theirs in PPI(str(tmp_path / "copy"), split=split):
            nodes = torch.arange(starts, starts + theirs.num_nodes)
            starts += theirs.num_nodes
            assert mask[nodes].all()
            torch.testing.assert_close(ours.x[nodes], theirs.x)
            torch.testing.assert_close(ours.y[nodes], theirs.y)
            part = ours.part(nodes).edge_index
            first = int(part.min())  # the first node with an edge, which PyG takes for the first node
            assert set(zip(*part.tolist())) == {(s + first, t + first) for s, t in zip(*theirs.edge_index.tolist())}


@needs_shared_graphs
@pytest.mark.parametrize(("name", "values", "sizes", "split"), [
    ("Cora", {}, (2708, 10556, 1433, 7), (140, 500, 1000)),
    ("Cora", {"split": "full"}, (2708, 10556, 1433, 7), (1208, 500, 1000)),
    ("Cora", {"split": "geom-gcn", "split_index": 3}, (2708, 10556, 1433, 7), (1192, 796, 497)),
    ("CiteSeer", {"split": "full"}, (3327, 9104, 3703, 6), (1812, 500, 1000)),
    ("chameleon", {}, (2277, 36101, 2325, 5), (1092, 729, 456)),
    ("chameleon", {"symmetric": True}, (2277, 62792, 2325, 5), (1092, 729, 456)),
    ("texas", {}, (183, 325, 1703, 5), (87, 59, 37)),
    ("texas", {"symmetric": True, "split_index": 9}, (183, 574, 1703, 5), (87, 59, 37)),
    ("Computers", {}, (13752, 491722, 767, 10), (200, 300, 13252)),
])
def test_the_public_graphs_have_their_documented_sizes(name, values, sizes, split, cache):
    data = FreekdData(FreekdDataConfig(name, root=str(SHARED_GRAPHS), cache=str(cache), **values))
    data.setup()
    assert tuple(data.facts.values())[:4] == sizes
    assert counts(data) == split


def test_a_random_split_has_so_many_of_each_class_and_depends_on_its_seed_only():
    y = torch.tensor([0] * 100 + [1] * 60 + [2] * 7 + [3] + [-1] * 5)
    train, valid, test = random_split(y, 20, 30, seed=1)
    per_class = [[int((mask & (y == c)).sum()) for mask in (train, valid, test)] for c in range(4)]
    assert per_class == [[20, 30, 50], [20, 25, 15], [4, 2, 1], [1, 0, 0]]
    assert not (train | valid | test)[y < 0].any()
    assert torch.equal(train, random_split(y, 20, 30, seed=1)[0])
    assert not torch.equal(train, random_split(y, 20, 30, seed=2)[0])
    several = random_split(torch.zeros(50, 3), 20, 30, seed=1)
    assert [int(mask.sum()) for mask in several] == [30, 10, 10]
    assert (sum(mask.int() for mask in several) == 1).all()


def test_ogbn_graphs_are_read_through_the_package_ogb(read, monkeypatch):
    class PygNodePropPredDataset:
        def __init__(self, name, root):
            assert name == "ogbn-arxiv"
            assert sorted(path.name for path in (read.root / "ogbn_arxiv").iterdir()) == ["RELEASE_v1.txt", "raw"]
            self.edges = torch.tensor(np.loadtxt(f"{root}/ogbn_arxiv/raw/edge.csv", delimiter=",", dtype=np.int64).T)

        def __len__(self):
            return 1

        def __getitem__(self, place):
            return Data(torch.ones(6, 2), self.edges, y=torch.tensor([[0], [1], [2], [0], [1], [2]]))

        def get_idx_split(self):
            return {"train": torch.tensor([0, 5]), "valid": torch.tensor([1]), "test": torch.tensor([2, 3])}

    package = types.ModuleType("ogb.nodeproppred")
    package.PygNodePropPredDataset = PygNodePropPredDataset
    (read.root / "ogbn_arxiv" / "raw").mkdir(parents=True)
    (read.root / "ogbn_arxiv" / "RELEASE_v1.txt").touch()
    (read.root / "ogbn_arxiv" / "raw" / "edge.csv").write_text("0,1\n3,2\n")
    monkeypatch.setitem(sys.modules, "ogb", types.ModuleType("ogb"))
    monkeypatch.setitem(sys.modules, "ogb.nodeproppred", package)
    graph = read("ogbn-arxiv").graph
    assert graph.y.tolist() == [0, 1, 2, 0, 1, 2]
    assert graph.edge_index.tolist() == [[0, 3], [1, 2]]
    assert [mask.nonzero().view(-1).tolist() for mask in (graph.train, graph.valid, graph.test)] == [[0, 5], [1], [2, 3]]


@pytest.mark.parametrize(("name", "values", "text"), [
    ("PubMed", {}, "data.root: {root}/PubMed/raw has no files; put the raw files of the set there, "
                   "or leave data.root out to download them"),
    ("Cora", {"root": "nowhere"}, "data.root: no such folder nowhere; "
                                  "it holds the graph sets in the folders that PyG makes, such as Cora/raw"),
    ("torch_geometric.datasets.Wikipedia", {}, "data.name: torch_geometric.datasets has no class Wikipedia; "
                                               "name one such as torch_geometric.datasets.WikiCS"),
    ("no.such.Thing", {}, "data.name: no.such.Thing cannot be imported (No module named 'no'); "
                          "name a class such as torch_geometric.datasets.WikiCS"),
    ("torch_geometric.datasets.WikiCS", {}, "data.root: the raw files of WikiCS lack data.json; complete them, "
                                            "or leave data.root out to download the set"),
    ("torch.nn.Linear", {}, "data.name: torch.nn.Linear is not an InMemoryDataset of PyG"),
    (TOWNS, {"arguments": ["masks"]}, "data.arguments: must be key=value words, not masks"),
    (TOWNS, {"arguments": ["graphs=2"]}, "data.name: stand_in_graphs.Towns holds 2 graphs; only sets of one graph, and PPI, are read"),
])
def test_what_cannot_be_read_is_refused_in_one_line(read, name, values, text):
    write_towns(read.root)
    assert refusal(lambda: read(name, **values)) == text.format(root=read.root)


def test_missing_raw_files_are_named_and_never_downloaded_into_a_root(read):
    write_citeseer(read.root / "CiteSeer" / "raw")
    (read.root / "CiteSeer" / "raw" / "ind.citeseer.graph").unlink()
    assert refusal(lambda: read("CiteSeer")) == ("data.root: the raw files of Planetoid lack ind.citeseer.graph; complete them, "
                                                 "or leave data.root out to download the set")
    write_ppi(read.root / "PPI" / "raw")
    (read.root / "PPI" / "raw" / "valid_feats.npy").unlink()
    assert "PPI's raw files lack valid_feats.npy" in refusal(lambda: read("PPI"))


def test_damaged_raw_files_are_refused_in_one_line(read):
    write_citeseer(read.root / "CiteSeer" / "raw")
    (read.root / "CiteSeer" / "raw" / "ind.citeseer.allx").write_bytes(b"not a pickle")
    assert refusal(lambda: read("CiteSeer")).startswith("data.root: Planetoid cannot read its files there (UnpicklingError")


def test_a_failed_download_is_told_in_one_line(read, monkeypatch):
    def offline(*rest):
        raise OSError("no\nnetwork")

    monkeypatch.setattr("torch_geometric.datasets.planetoid.fs.cp", offline)
    text = refusal(lambda: read("Cora", root=None))
    assert text == ("data.name: Cora can neither be downloaded nor made (OSError: no network); "
                    "give the folder that holds it with data.root, and what its class takes with data.arguments")


@pytest.mark.parametrize(("values", "text"), [
    ({"name": "Coral"}, r"^name: must be one of planted, .* not Coral \(did you mean Cora\?\)"),
    ({"name": "texas", "split": "full"}, "^split: must be auto, stored or random for texas, not full"),
    ({"name": "CS", "split": "stored"}, "^split: must be auto or random for CS"),
    ({"batch": "graphs"}, "^batch: must be full, clustered or walks for planted"),
    ({"arguments": ["a=1"]}, "^arguments: go with the dotted name"),
    ({"fanouts": [0]}, "^fanouts: must list numbers above 0"),
    ({"fanouts": []}, "^fanouts: must list"),
    ({"batch_size": 0}, "^batch_size: must be at least 1"),
    ({"split_index": -1}, "^split_index: must not be negative"),
])
def test_wrong_settings_are_refused_by_name(values, text):
    with pytest.raises(ValueError, match=text):
        FreekdDataConfig(**values)


def test_keys_that_a_choice_does_not_read_are_named():
    assert {"root", "cache", "batch_size", "fanouts"} <= set(FreekdDataConfig().without_effect())
    clustered = FreekdDataConfig("Physics", batch="clustered").without_effect()
    assert set(clustered) == {"repeats", "walk_length"}
    assert {"split_index", "train_per_class"} <= set(FreekdDataConfig("Cora").without_effect())


def test_the_configuration_is_read_from_its_source_and_each_key_is_documented():
    schema = schema_of("datamodules.freekd.FreekdData")
    assert schema().chosen_split == "random"
    assert schema("pubmed").chosen_split == "public"
    assert set(docs_of(schema)) == set(vars(schema()))


def nearest_class_accuracy(x, data):
    """Classify by the nearest mean of the training nodes of each class; return whether each node is right."""
    graph = data.graph
    means = torch.stack([x[graph.train & (graph.y == c)].mean(0) for c in range(data.num_classes)])
    return torch.cdist(x, means).argmin(1) == graph.y


def smoothed(graph: Graph, x):
    sums = torch.zeros_like(x).index_add_(0, graph.edge_index[1], x[graph.edge_index[0]])
    return sums / torch.bincount(graph.edge_index[1], minlength=graph.num_nodes).clamp(min=1)[:, None]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_in_the_planted_graph_neighbours_tell_one_half_of_the_classes_and_features_the_other(seed):
    data = FreekdData(FreekdDataConfig(split_index=seed))
    data.setup()
    graph = data.graph
    by_neighbours, by_features = nearest_class_accuracy(smoothed(graph, graph.x), data), nearest_class_accuracy(graph.x, data)
    for half, (knows, does_not) in enumerate([(by_neighbours, by_features), (by_features, by_neighbours)]):
        nodes = graph.test & (data.expert == half)
        assert knows[nodes].float().mean() > 0.15 + does_not[nodes].float().mean()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_in_the_planted_views_each_tells_one_half_of_the_classes(seed):
    data = FreekdData(FreekdDataConfig("planted-views", split_index=seed))
    data.setup()
    graph, batch = data.graph, next(iter(data.val_dataloader()))
    right = [nearest_class_accuracy(smoothed(graph, batch.features(view)), data) for view in (0, 1)]
    for half in (0, 1):
        nodes = graph.test & (data.expert == half)
        assert right[half][nodes].float().mean() > 0.2 + right[1 - half][nodes].float().mean()


def test_a_planted_graph_depends_on_its_split_index_alone():
    first, again, other = (FreekdData(FreekdDataConfig(split_index=index, seed=seed)) for index, seed in ((1, 1), (1, 2), (2, 1)))
    for data in (first, again, other):
        data.setup()
    assert torch.equal(first.graph.x, again.graph.x)
    assert torch.equal(first.graph.edge_index, again.graph.edge_index)
    assert not torch.equal(first.graph.y, other.graph.y)
    assert (first.graph.edge_index[0] != first.graph.edge_index[1]).all()
