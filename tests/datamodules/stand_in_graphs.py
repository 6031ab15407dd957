"""Raw files of graph sets in the formats that PyG's readers expect, and a set of a class that PyG does not know."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch_geometric.data import Data, InMemoryDataset

SHARED_GRAPHS = Path(__file__).resolve().parents[3] / "shared" / "data" / "graphs"

needs_shared_graphs = pytest.mark.skipif(not SHARED_GRAPHS.is_dir(), reason="the folder shared/data/graphs beside this one is missing")

TRAIN, BEFORE_TEST, NODES, GAP = 20, 540, 600, (545, 560, 561)  # of the stand-in for CiteSeer; GAP: test nodes that the files leave out


def write_citeseer(raw):
    """Write Planetoid's eight files: 540 nodes, and 57 test nodes whose numbers have gaps; return features and labels by node."""
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    x = (generator.random((NODES, 30)) < 0.1).astype(np.float32)
    x[:, 0] = 1  # so that only made-up nodes have no features
    y = generator.integers(1, 6, NODES)
    test = [node for node in generator.permutation(np.arange(BEFORE_TEST, NODES)).tolist() if node not in GAP]
    ordered = sorted(test)
    one_hot = np.eye(6, dtype=np.int32)[y]
    edges = {node: sorted({int(j) for j in generator.integers(0, BEFORE_TEST, 2)} - {node}) for node in range(NODES)}
    edges.update({node: [] for node in GAP})
    # the files list the test nodes' rows in the order of test.index
    contents = {"x": sp.csr_matrix(x[:TRAIN]), "y": one_hot[:TRAIN], "allx": sp.csr_matrix(x[:BEFORE_TEST]), "ally": one_hot[:BEFORE_TEST],
                "tx": sp.csr_matrix(x[test]), "ty": one_hot[test], "graph": edges}
    for name, content in contents.items():
        (raw / f"ind.citeseer.{name}").write_bytes(pickle.dumps(content))
    (raw / "ind.citeseer.test.index").write_text("\n".join(map(str, test)) + "\n")
    assert ordered[0] == BEFORE_TEST
    return x, y, test


def write_geom_gcn(raw):
    """Write ten splits with masks of 0 and 1 as bytes, beside text files that name the eight files of the public split."""
    raw.mkdir(parents=True)
    for name in ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index"):
        (raw / f"ind.citeseer.{name}").write_text(f"../../raw/ind.citeseer.{name}")
    for split in range(10):
        part = (np.arange(NODES) + split) % 3
        np.savez(raw / f"citeseer_split_0.6_0.2_{split}.npz", **{name: (part == value).astype(np.uint8)
                                                                for value, name in enumerate(("train_mask", "val_mask", "test_mask"))})


def write_ppi(raw):
    """Write three splits of two graphs of 4 nodes, the first node of each without an edge; return the edges of each split."""
    raw.mkdir(parents=True)
    edges = {"train": [(1, 2), (2, 3), (5, 7), (6, 6)], "valid": [(1, 3), (6, 7)], "test": [(2, 3), (5, 6)]}
    for split, links in edges.items():
        node_link = {"directed": False, "multigraph": False, "graph": {}, "nodes": [{"id": node} for node in range(8)],
                     "links": [{"source": source, "target": target} for source, target in links]}
        (raw / f"{split}_graph.json").write_text(json.dumps(node_link))
        np.save(raw / f"{split}_feats.npy", np.random.default_rng(1).random((8, 5)))
        np.save(raw / f"{split}_labels.npy", (np.random.default_rng(2).random((8, 7)) < 0.3).astype(np.int64))
        np.save(raw / f"{split}_graph_id.npy", np.repeat([3, 4], 4))
    return edges


class Towns(InMemoryDataset):
    """A directed graph of 30 nodes read from one file, with two splits as bytes and nodes without a label."""

    def __init__(self, root, name="towns", masks=True, graphs=1):
        self.name, self.with_masks, self.graphs = name, masks, graphs
        super().__init__(root)
        self.load(self.processed_paths[0])

    @property
    def raw_dir(self):
        return str(Path(self.root) / self.name.lower() / "raw")

    @property
    def processed_dir(self):
        return str(Path(self.root) / self.name.lower() / "processed")

    @property
    def raw_file_names(self):
        return ["towns.npz"]

    @property
    def processed_file_names(self):
        return "data.pt"

    def process(self):
        raw = np.load(self.raw_paths[0])
        part = torch.from_numpy(raw["part"])  # (30, 2)
        masks = {f"{name}_mask": (part == place).to(torch.uint8) for place, name in enumerate(("train", "val", "test"))}
        data = Data(torch.from_numpy(raw["x"]), torch.from_numpy(raw["edges"]), y=torch.from_numpy(raw["y"]),
                    **masks if self.with_masks else {})
        self.save([data] * self.graphs, self.processed_paths[0])


def write_towns(root):
    raw = root / "towns" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(3)
    content = {"x": generator.random((30, 4)).astype(np.float32), "edges": generator.integers(0, 30, (2, 60)),
               "y": generator.integers(0, 3, 30), "part": generator.integers(0, 3, (30, 2))}
    content["y"][:4] = -1
    np.savez(raw / "towns.npz", **content)
    return content
