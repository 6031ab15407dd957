"""PPI's files: graphs of proteins, 121 functions each may have, whole graphs held out.

PyG's reader numbers the nodes of a graph from the smallest node that has an edge, and so shifts all edges of a graph whose first node
has none. Here they are numbered from the graph's first node.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.rows import DataError

SPLITS = ("train", "valid", "test")


def read_ppi(raw: Path) -> dict[str, Tensor]:
    """Read the raw files of all splits as one disjoint union, with graph_id (n,) and a mask for each split."""
    parts = [_split(raw, split) for split in SPLITS]
    nodes = [len(part["x"]) for part in parts]
    starts = [sum(nodes[:place]) for place in range(len(parts))]
    graphs = [int(part["graph_id"].max()) + 1 for part in parts]
    union = {name: torch.cat([part[name] for part in parts]) for name in ("x", "y")}
    union["edge_index"] = torch.cat([part["edge_index"] + start for part, start in zip(parts, starts)], 1)
    union["graph_id"] = torch.cat([part["graph_id"] + sum(graphs[:place]) for place, part in enumerate(parts)])
    which = torch.arange(len(parts)).repeat_interleave(torch.tensor(nodes))
    return {**union, "real": torch.ones(len(which), dtype=torch.bool), **{split: which == place for place, split in enumerate(SPLITS)}}


def _split(raw: Path, split: str) -> dict[str, Tensor]:
    arrays = {name: torch.from_numpy(np.load(_file(raw, f"{split}_{name}.npy"))) for name in ("feats", "labels", "graph_id")}
    content = json.loads(_file(raw, f"{split}_graph.json").read_text())
    edges = torch.tensor([(link["source"], link["target"]) for link in content["links"]], dtype=torch.long).view(-1, 2).t()
    if not content.get("directed", False):
        edges = torch.cat([edges, edges.flip(0)], 1)
    graph = arrays["graph_id"].long()
    graph = graph - graph.min()
    within = (edges[0] != edges[1]) & (graph[edges[0]] == graph[edges[1]])
    return {"x": arrays["feats"].float(), "y": arrays["labels"].float(), "graph_id": graph, "edge_index": edges[:, within]}


def _file(raw: Path, name: str) -> Path:
    if not (raw / name).is_file():
        raise DataError(f"data.root: PPI's raw files lack {name}; complete them, or leave data.root out to download the set")
    return raw / name
