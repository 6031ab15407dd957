"""Data for FreeKD: a generated graph with planted expertise, or a public one; the whole graph in each step, or mini-batches of it."""

import difflib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

from datamodules.blocks import TrainingLoader, TrainingOrder
from datamodules.graph_batches import ClusteredOrder, Neighbourhoods, Repeated, Walks, WholeGraphs, pool_edges
from datamodules.graph_sets import graph_set, read_set
from datamodules.graph_splits import full_split, random_split, stored_split
from datamodules.graphs import Graph, row_normalized, tidy_edges, whole
from datamodules.planted import planted
from datamodules.rows import DataError

log = logging.getLogger(__name__)

PLANETOID = ("Cora", "CiteSeer", "PubMed")
STORED = ("chameleon", "squirrel", "cornell", "texas", "wisconsin", "PPI", "ogbn-arxiv", "ogbn-products", "ogbn-papers100M")
UNSPLIT = ("planted", "planted-views", "CS", "Physics", "Computers", "Photo")
PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class FreekdDataConfig:
    name: str = "planted"
    """graph: planted or planted-views (generated), Cora, CiteSeer, PubMed, chameleon, squirrel, cornell, texas, wisconsin, CS, Physics,
    Computers, Photo, PPI, ogbn-arxiv, ogbn-products, or the dotted name of an InMemoryDataset such as torch_geometric.datasets.WikiCS"""
    arguments: list[str] = field(default_factory=list)
    """what a class named by its dotted name takes besides root, as [name=WikiCS, ...]"""
    root: str | None = None
    """folder that holds the graphs as PyG lays them out (Cora/raw, ...), only read; None: downloaded into data.cache"""
    split: Literal["auto", "public", "full", "geom-gcn", "stored", "random"] = "auto"
    """public, full (all nodes that are not held out) or geom-gcn for Planetoid; stored: what comes with the set; random: per class; auto:
    public for Planetoid, else stored, else random"""
    split_index: int = 0
    """which of several splits; of a random one, and of a planted graph, its seed"""
    train_per_class: int = 20
    """training nodes of each class in a random split"""
    valid_per_class: int = 30
    """validation nodes of each class in a random split"""
    symmetric: bool = False
    """add the reverse of every edge; false: as stored, which for chameleon and texas is directed"""
    normalize: Literal["auto", "rows", "none"] = "auto"
    """rows: features of a node sum to 1; auto: where features are counts or flags (Planetoid, Coauthor, Amazon), not elsewhere"""
    batch: Literal["full", "clustered", "walks", "graphs"] = "full"
    """full: the whole graph in each step; clustered: seeds that are neighbours, with sampled neighbours; walks: sub-graphs of random
    walks; graphs: whole graphs, where there are many (PPI)"""
    batch_size: int = 1024
    """nodes that a mini-batch of each process is about (walks: about as many; graphs: graphs)"""
    seeds: Literal["train", "all"] = "train"
    """nodes that mini-batches start from: those with training labels, or all"""
    fanouts: list[int] = field(default_factory=lambda: [10, 10])
    """neighbours sampled of each node, hop by hop; -1: all"""
    walk_length: int = 3
    """steps of a random walk"""
    repeats: int = 1
    """steps on the whole graph that count as an epoch"""
    cache: str = "~/.cache/fivefold"
    """folder for graphs in the form in which they are used"""
    seed: int | None = None
    """order of the mini-batches, and neighbours sampled; None: run.seed"""

    def __post_init__(self) -> None:
        self._check_name()
        for name in ("train_per_class", "valid_per_class", "batch_size", "walk_length", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, not {getattr(self, name)}")
        for name in ("split_index", "seed"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name}: must not be negative, not {getattr(self, name)}")
        if not self.fanouts or any(fanout < 1 and fanout != -1 for fanout in self.fanouts):
            raise ValueError(f"fanouts: must list numbers above 0, or -1 for all neighbours, not {self.fanouts}")
        if self.split in ("public", "full", "geom-gcn") and not self.planetoid:
            raise ValueError(f"split: must be auto, stored or random for {self.name}, not {self.split} (of {', '.join(PLANETOID)})")
        if self.split == "stored" and self.among(UNSPLIT):
            raise ValueError(f"split: must be auto or random for {self.name}, which comes without a split, not stored")
        if self.arguments and "." not in self.name:
            raise ValueError(f"arguments: go with the dotted name of a class as data.name, not with {self.name}")
        if self.batch == "graphs" and not self.among(["PPI"]):
            raise ValueError(f"batch: must be full, clustered or walks for {self.name}, which is one graph, not graphs")

    def _check_name(self) -> None:
        names = {name.lower(): name for name in (*UNSPLIT, *PLANETOID, *STORED)}
        if "." not in self.name and not self.among(names):
            near = difflib.get_close_matches(self.name.lower(), names, n=1)
            meant = f" (did you mean {names[near[0]]}?)" if near else ""
            raise ValueError(f"name: must be one of {', '.join(names.values())}, or the dotted name of a class, not {self.name}{meant}")

    def among(self, names: Iterable[str]) -> bool:
        """Tell whether the graph is one of `names`, whatever the case."""
        return self.name.lower() in [name.lower() for name in names]

    def without_effect(self) -> dict[str, str]:
        """Name the keys that other graphs, splits and kinds of batches read."""
        idle: dict[str, str] = {}
        if self.generated:
            idle |= dict.fromkeys(("root", "cache", "symmetric", "normalize"), f"{self.name} is generated")
        if self.chosen_split != "random":
            idle |= dict.fromkeys(("train_per_class", "valid_per_class"), f"the split is {self.chosen_split}")
        if self.chosen_split in ("public", "full"):
            idle["split_index"] = f"there is one {self.chosen_split} split"
        if self.batch != "full":
            idle["repeats"] = "an epoch is every node once"
        else:
            idle |= dict.fromkeys(("batch_size", "seeds", "seed"), "data.batch=full gives the whole graph in each step")
        if self.batch != "clustered":
            idle["fanouts"] = f"data.batch={self.batch} samples no neighbours"
        if self.batch != "walks":
            idle["walk_length"] = f"data.batch={self.batch} walks no steps"
        if self.batch == "graphs":
            idle |= {"seeds": "data.batch=graphs takes whole graphs"}
        return idle

    @property
    def planetoid(self) -> bool:
        return self.among(PLANETOID)

    @property
    def generated(self) -> bool:
        return self.among(("planted", "planted-views"))

    @property
    def chosen_split(self) -> str:
        """The split that auto stands for; of a class named by its dotted name, auto is decided when it is read."""
        if self.split != "auto":
            return self.split
        if self.planetoid:
            return "public"
        return "random" if self.among(UNSPLIT) else "auto" if "." in self.name else "stored"


class FreekdData(L.LightningDataModule):
    """Graph batches (`datamodules.graphs.GraphBatch`): the whole graph in every step, or mini-batches; validation sees the whole graph.

    Of several graphs, training sees only those with training nodes, and validation the others.
    """

    def __init__(self, config: FreekdDataConfig) -> None:
        super().__init__()
        self.config = config
        self._graph: Graph | None = None

    def prepare_data(self) -> None:
        """Read the graph into the cache: once on a machine, before the other processes look for it."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Make or read the graph; raise DataError if it cannot be used."""
        if self._graph is not None:
            return
        self._graph = graph = self._generated() if self.config.generated else self._read()
        self._training, self._held_out = graph.with_those(graph.train), graph.with_those(graph.valid | graph.test)
        self._batch = whole(self._held_out)
        log.info("%s: %d nodes, %d edges, %d features, %d classes; %d train, %d validate, %d test", self.config.name,
                 *self.facts.values())

    def _generated(self) -> Graph:
        config = self.config
        graph = planted(config.split_index, views=config.name.lower() == "planted-views")
        train, valid, test = random_split(graph.y, config.train_per_class, config.valid_per_class, config.split_index)
        return replace(graph, train=train, valid=valid, test=test)

    def _read(self) -> Graph:
        config = self.config
        raw = read_set(graph_set(config.name, config.split, config.arguments), config.root, Path(config.cache).expanduser())
        train, valid, test = self._split(raw)
        y = raw["y"]
        by_rows = config.normalize == "rows" or (config.normalize == "auto" and config.among((*PLANETOID, *UNSPLIT)))
        x = row_normalized(raw["x"]) if by_rows else raw["x"]
        classes = y.shape[1] if y.ndim == 2 else int(y.max()) + 1
        edges = tidy_edges(raw["edge_index"], len(y), config.symmetric)
        return Graph(x, edges, y, train, valid, test, classes, raw.get("graph_id"))

    def _split(self, raw: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        config, kind = self.config, self.config.chosen_split
        masks: dict[str, Tensor] = {name: raw[name] for name in PARTS if name in raw}
        if kind == "full":
            return full_split(masks, raw["real"])
        if kind == "random" or (kind == "auto" and len(masks) < len(PARTS)):
            y = torch.where(raw["real"], raw["y"], -1) if raw["y"].ndim == 1 else raw["y"]  # what is made up is in no part
            return random_split(y, config.train_per_class, config.valid_per_class, config.split_index)
        return stored_split(masks, config.split_index, raw["y"])

    def train_dataloader(self) -> Any:
        """The whole graph as often as `repeats` says, or mini-batches in an order that a checkpoint restores exactly."""
        config, (rank, processes) = self.config, _place()
        if config.batch == "full":
            if processes > 1 and rank == 0:
                log.warning("every process trains on the whole graph; data.batch=clustered shares its nodes out")
            return Repeated(self._batch if self._training is self._held_out else whole(self._training), config.repeats)
        graph, pool = self._training, self._pool()
        size = max(1, config.batch_size // (config.walk_length + 1)) if config.batch == "walks" else config.batch_size
        if len(pool) < size * processes:
            raise DataError(f"data.batch_size: {size} on each of {processes} is more than the {len(pool)} there are to start from; "
                            "lower it, or take data.batch=full")
        if config.batch == "clustered":
            order: TrainingOrder = ClusteredOrder(pool_edges(graph, pool), len(pool), size, self.seed, rank, processes)
            return TrainingLoader(Neighbourhoods(graph, pool, config.fanouts, self.seed), order)
        batches = WholeGraphs(graph, pool) if config.batch == "graphs" else Walks(graph, pool, config.walk_length, self.seed)
        return TrainingLoader(batches, TrainingOrder(len(pool), size, self.seed, rank, processes))

    def _pool(self) -> Tensor:
        """List what mini-batches start from: nodes of the graph that is trained on, or ids of its graphs."""
        graph = self._training
        if self.config.batch == "graphs":
            assert graph.graph_id is not None
            return graph.graph_id.unique()
        return (graph.train if self.config.seeds == "train" else torch.ones_like(graph.train)).nonzero().view(-1)

    def val_dataloader(self) -> Repeated:
        """The whole graph, or all graphs that are held out, as one batch; its masks say what validates and what tests."""
        return Repeated(self._batch)

    def test_dataloader(self) -> Repeated:
        """The same batch as for validation."""
        return self.val_dataloader()

    @property
    def seed(self) -> int:
        return 1 if self.config.seed is None else self.config.seed

    @property
    def graph(self) -> Graph:
        """All of the graph, and of several graphs their disjoint union."""
        assert self._graph is not None, "call setup() first"
        return self._graph

    @property
    def num_features(self) -> int:
        return self.graph.num_features

    @property
    def num_classes(self) -> int:
        return self.graph.num_classes

    @property
    def num_nodes(self) -> int:
        return self.graph.num_nodes

    @property
    def multi_label(self) -> bool:
        return self.graph.multi_label

    @property
    def expert(self) -> Tensor | None:
        """In a generated graph, which network or view knows each node, (n,) int64."""
        return self.graph.expert

    @property
    def facts(self) -> dict[str, int]:
        """Sizes of the graph and of the parts of its split."""
        graph = self.graph
        return {"nodes": graph.num_nodes, "edges": graph.edge_index.shape[1], "features": graph.num_features,
                "classes": graph.num_classes, "train": int(graph.train.sum()), "valid": int(graph.valid.sum()),
                "test": int(graph.test.sum())}


def _place() -> tuple[int, int]:
    """Rank of this process, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
