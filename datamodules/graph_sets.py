"""Public graph sets through PyG's and ogb's own readers, and what has to be mended in what these return.

The user's folder is only read: PyG writes `processed` beside `raw`, so it works in a copy made of links, and what is kept under the cache
is the mended graph, named after the contents of the raw files.
"""

import ast
import hashlib
import importlib
import inspect
import io
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
from torch_geometric.data.storage import GlobalStorage

from datamodules.cache import build_once
from datamodules.graphs import sparse_without_a_word, tidy_features
from datamodules.ppi import read_ppi
from datamodules.rows import DataError

log = logging.getLogger(__name__)

PPI = "torch_geometric.datasets.PPI"  # the set that is read here
FORMAT = 1  # part of every key: raise it when what is stored changes
LINK_BYTES = 200  # a text file that is a link in a repository checked out without links is no longer than this

KEPT_BY_OGB = [DataEdgeAttr, DataTensorAttr, GlobalStorage]  # ogb 1.3.6 reads what it has stored as torch did before 2.6

Raw = dict[str, Tensor]  # x, edge_index, y, real (n,) bool: not made up; where given train, valid, test: (n,) or (n, splits) bool; graph_id


@dataclass(frozen=True)
class GraphSet:
    """A named set: the class that reads it, the folder that holds it under a root, and the one where its class looks for it."""

    kind: str  # dotted name
    arguments: dict[str, Any]
    folder: str
    below: Path
    raw: tuple[str, ...] = ("raw/**/*",)  # what is read of the folder, as globs

    @property
    def label(self) -> str:
        return self.folder or self.kind


SHOWN = {"cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed", "cs": "CS", "physics": "Physics", "computers": "Computers",
         "photo": "Photo"}


def graph_set(name: str, split: str, arguments: list[str]) -> GraphSet:
    """Find a set by the name of its graph, or by the dotted name of a class of PyG's kind, which `arguments` (key=value) go to."""
    if "." in name:
        given = dict(_argument(word) for word in arguments)
        return GraphSet(name, given, "", Path(), ("raw/**/*", "*/raw/**/*"))
    word = name.lower()
    if word.startswith("ogbn-"):
        folder = word.replace("-", "_")
        return GraphSet("ogb.nodeproppred.PygNodePropPredDataset", {"name": word}, folder, Path(folder),
                        ("raw/**/*", "split/**/*.csv.gz", "RELEASE_*"))
    pyg, shown = "torch_geometric.datasets.", SHOWN.get(word, word)
    if word in ("cora", "citeseer", "pubmed"):
        stored, raw = ("geom-gcn", "geom-gcn/raw/*") if split == "geom-gcn" else ("public", "raw/*")
        return GraphSet(pyg + "Planetoid", {"name": shown, "split": stored}, shown, Path(shown), (raw,))
    if word in ("chameleon", "squirrel"):
        return GraphSet(pyg + "WikipediaNetwork", {"name": word}, word, Path(word), ("geom_gcn/raw/*",))
    if word == "ppi":
        return GraphSet(PPI, {}, "PPI", Path())
    family = "WebKB" if word in ("cornell", "texas", "wisconsin") else "Coauthor" if word in ("cs", "physics") else "Amazon"
    return GraphSet(pyg + family, {"name": shown}, shown, Path(shown))


def _argument(word: str) -> tuple[str, Any]:
    key, equals, value = word.partition("=")
    if not equals:
        raise DataError(f"data.arguments: must be key=value words, not {word}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def read_set(chosen: GraphSet, root: str | None, cache: Path) -> Raw:
    """Read a set from `root`, or, without one, download it into the cache; the second time it comes from the cache.

    Raise DataError if it is not there, cannot be downloaded, or is not a graph with labelled nodes.
    """
    kind = _class(chosen.kind)
    if root is None:
        files: list[tuple[str, Path]] = []
    else:
        files = list(_files(chosen, Path(root).expanduser().resolve(), root))
    key = _key(chosen, root is None, files)

    def build(temporary: Path) -> None:
        log.info("reading %s", chosen.label)
        torch.save(_read(kind, chosen, temporary / "work", files if root is not None else None), temporary / "graph.pt")
        shutil.rmtree(temporary / "work")

    folder = build_once(cache / "graphs" / key, build)
    with sparse_without_a_word():
        return torch.load(folder / "graph.pt", weights_only=True)


def _class(dotted: str) -> type:
    module, _, name = dotted.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if dotted.startswith("ogb."):
            raise DataError("data.name: the ogbn graphs are read by the package ogb, which is not installed; pip install ogb") from None
        raise DataError(f"data.name: {dotted} cannot be imported ({error}); name a class such as torch_geometric.datasets.WikiCS") from None
    except AttributeError:
        raise DataError(f"data.name: {module} has no class {name}; name one such as torch_geometric.datasets.WikiCS") from None
    if not dotted.startswith("ogb.") and not (isinstance(found, type) and issubclass(found, InMemoryDataset)):
        raise DataError(f"data.name: {dotted} is not an InMemoryDataset of PyG")
    return found


def _files(chosen: GraphSet, base: Path, root: str) -> Iterator[tuple[str, Path]]:
    """List the raw files of the set, each under the path where its class looks for it."""
    if not base.is_dir():
        raise DataError(f"data.root: no such folder {root}; it holds the graph sets in the folders that PyG makes, such as Cora/raw")
    named = [path for path in sorted(base.iterdir()) if path.is_dir() and _plain(path.name) == _plain(chosen.folder)]
    for start in (*named, base):  # a root may also be the folder of the set itself
        found = [path for part in chosen.raw for path in sorted(start.glob(part)) if path.is_file()]
        if not chosen.folder and "name" in chosen.arguments:
            own = {"raw", _plain(str(chosen.arguments["name"]))}
            found = [path for path in found if _plain(path.relative_to(start).parts[0]) in own]
        if found:
            yield from ((str(chosen.below / path.relative_to(start)), _linked(path)) for path in found)
            return
    wanted = Path(root) / chosen.folder / chosen.raw[0].partition("/*")[0]
    raise DataError(f"data.root: {wanted} has no files; put the raw files of the set there, or leave data.root out to download them")


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _linked(path: Path) -> Path:
    """Follow a text file that only names another: a link of a repository, checked out where links are not made."""
    if path.stat().st_size <= LINK_BYTES:
        text = path.read_bytes().decode("ascii", "replace").strip()
        target = path.parent / text
        if text.startswith("..") and "\n" not in text and target.is_file():
            return target.resolve()
    return path


def _key(chosen: GraphSet, downloaded: bool, files: list[tuple[str, Path]]) -> str:
    digest = hashlib.sha256(repr((FORMAT, chosen.kind, sorted(chosen.arguments.items()), downloaded)).encode())
    for name, path in files:
        with path.open("rb") as stream:
            digest.update(f"{name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()[:20]


def _read(kind: type, chosen: GraphSet, folder: Path, files: list[tuple[str, Path]] | None) -> Raw:
    """Run the set's own reader in a folder of links to its files; None: let it download them."""
    folder.mkdir()
    for relative, path in files or ():
        link = folder / relative
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    if chosen.kind == PPI and files is not None:
        return read_ppi(folder / "raw")
    with _quiet():
        dataset = _made(kind, chosen, folder, files is None)
    return read_ppi(folder / "raw") if chosen.kind == PPI else _tensors(dataset, chosen)


def _made(kind: type, chosen: GraphSet, folder: Path, download: bool) -> Any:
    arguments = {**chosen.arguments}
    if "root" in inspect.signature(kind.__init__).parameters:  # type: ignore[misc]
        arguments["root"] = str(folder)
    offline = kind if download else type(kind.__name__, (kind,), {"download": _refuse_download})
    try:
        with torch.serialization.safe_globals(KEPT_BY_OGB):
            return offline(**arguments)
    except DataError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        if not download:
            raise DataError(f"data.root: {kind.__name__} cannot read its files there ({reason})") from error
        raise DataError(f"data.name: {chosen.label} can neither be downloaded nor made ({reason}); "
                        "give the folder that holds it with data.root, and what its class takes with data.arguments") from error


def _refuse_download(dataset: Any) -> None:
    names = dataset.raw_file_names
    missing = [name for name in ([names] if isinstance(names, str) else names) if not (Path(dataset.raw_dir) / name).exists()]
    raise DataError(f"data.root: the raw files of {type(dataset).__name__} lack {', '.join(missing[:3]) or 'something'}"
                    f"{' and more' if len(missing) > 3 else ''}; complete them, or leave data.root out to download the set")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep readers from printing, and from asking whether a download of gigabytes is meant: the user has named the set."""
    stdin, sys.stdin = sys.stdin, io.StringIO("y\n")
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stdin = stdin


def _tensors(dataset: Any, chosen: GraphSet) -> Raw:
    """Take the tensors of a set with one graph, its masks as bools and without nodes that are not really there."""
    if len(dataset) != 1:
        raise DataError(f"data.name: {chosen.kind} holds {len(dataset)} graphs; only sets of one graph, and PPI, are read")
    data: Data = dataset[0]
    for name in ("x", "edge_index", "y"):
        if getattr(data, name, None) is None:
            raise DataError(f"data.name: {chosen.kind} has no {name}; the graph needs node features, edges and node labels")
    y = _labels(data.y, data.num_nodes, chosen)
    masks = _masks(dataset, data)
    real = torch.ones(data.num_nodes, dtype=torch.bool)
    if chosen.kind.endswith(".Planetoid"):
        real = ~_placeholders(Path(dataset.raw_dir), data.num_nodes)
        masks = {name: mask & (real if mask.ndim == 1 else real[:, None]) for name, mask in masks.items()}
    return {"x": tidy_features(data.x), "edge_index": data.edge_index, "y": y, "real": real, **masks}


def _labels(y: Tensor, num_nodes: int, chosen: GraphSet) -> Tensor:
    y = y.squeeze(-1) if y.ndim == 2 and y.shape[1] == 1 else y
    if y.shape[0] != num_nodes or (y.ndim == 1 and y.is_floating_point() and not torch.equal(y.nan_to_num(-1), y.nan_to_num(-1).round())):
        raise DataError(f"data.name: {chosen.kind} has labels of shape {tuple(y.shape)} for {num_nodes} nodes; each node needs a class")
    if y.ndim == 2:
        return y.float()
    return (y.nan_to_num(-1) if y.is_floating_point() else y).long()


def _masks(dataset: Any, data: Data) -> Raw:
    """Read the stored split, as bools whatever it is stored as; empty where there is none."""
    if hasattr(dataset, "get_idx_split"):  # ogb
        return {name: torch.zeros(data.num_nodes, dtype=torch.bool).index_fill_(0, torch.as_tensor(index), True)
                for name, index in dataset.get_idx_split().items()}
    stored = {"train": "train_mask", "valid": "val_mask", "test": "test_mask"}
    return {name: data[key].bool() for name, key in stored.items() if key in data and data[key] is not None}


def _placeholders(raw: Path, num_nodes: int) -> Tensor:
    """Find nodes that PyG makes up to fill gaps in Planetoid's list of test nodes (15 of CiteSeer): no features, no edges, a label 0."""
    listed = torch.tensor([int(line) for line in next(raw.glob("ind.*.test.index")).read_text().split()])
    made_up = torch.zeros(num_nodes, dtype=torch.bool)
    made_up[int(listed.min()) : int(listed.max()) + 1] = True
    made_up[listed] = False
    return made_up
