"""Temporal graphs from files: this project's own tables, the layout of OTGNet's authors, and PyG's TemporalData."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import csv
from torch import Tensor, from_numpy
from torch_geometric.data import TemporalData
from torch_geometric.data.storage import GlobalStorage

from datamodules.rows import DataError
from datamodules.temporal import Protocol, TemporalStream, counted_tasks, windowed_tasks

FINE = 1_000_000  # times with fractions are counted in millionths of their unit


def read_folder(folder: Path, protocol: Protocol) -> TemporalStream:
    """Read events.csv (src, dst, t), nodes.csv (node, label, first_time), tasks.json and, if it is there, features.npy."""
    events = _table(folder / "events.csv", {"src": pa.int64(), "dst": pa.int64(), "t": pa.float64()})
    nodes = _table(folder / "nodes.csv", {"node": pa.int64(), "label": pa.int64(), "first_time": pa.float64()})
    label, first = nodes["label"].copy(), nodes["first_time"]
    _check_nodes(folder / "nodes.csv", nodes["node"], label)
    _check_events(folder / "events.csv", events["src"], events["dst"], events["t"], len(label))
    tasks, windows, names = _tasks(folder / "tasks.json", label)
    window = np.full(len(events["t"]), -1)
    for number, (begin, end) in enumerate(windows):
        window[(events["t"] >= begin) & (events["t"] < end + 1)] = number  # the last day, or tick, counts whole
    task = windowed_tasks(events["src"], events["dst"], window, label, first, tasks, protocol)
    return _stream(events, label, _features(folder / "features.npy", len(label)), tasks, task, names)


def read_authors(file: Path, classes_per_task: int) -> TemporalStream:
    """Read a csv with u, i, label_u, label_i, ts, and the .npy of the same name: one row of features a node, its first row unused."""
    columns = {"u": pa.int64(), "i": pa.int64(), "label_u": pa.int64(), "label_i": pa.int64(), "ts": pa.float64()}
    table = _table(file, columns)
    rows = _features(file.with_suffix(".npy"), None)
    nodes = len(rows) - 1
    events = {"src": table["u"] - 1, "dst": table["i"] - 1, "t": table["ts"]}
    _check_events(file, events["src"], events["dst"], events["t"], nodes, first_id=1)
    label = np.full(nodes, -1)
    for own, name in (("src", "label_u"), ("dst", "label_i")):
        label[events[own]] = table[name]
    for own, name in (("src", "label_u"), ("dst", "label_i")):
        if len(wrong := np.flatnonzero(label[events[own]] != table[name])):
            row = int(wrong[0])
            raise DataError(f"{file}: line {row + 2}: {name} is {table[name][row]} for node {events[own][row] + 1}, elsewhere "
                            f"{label[events[own]][row]}; a node has one class")
    return _of_counts(events, label, rows[1:], classes_per_task)


def read_saved(file: Path, classes_per_task: int) -> TemporalStream:
    """Read a TemporalData that torch.save has written; nothing else is unpickled."""
    with torch.serialization.safe_globals([TemporalData, GlobalStorage]):
        try:
            data = torch.load(file)
        except pickle.UnpicklingError:
            raise DataError(f"{file}: holds something else than a TemporalData; save one with torch.save") from None
    if not isinstance(data, TemporalData):
        raise DataError(f"{file}: holds a {type(data).__name__}; save a TemporalData with torch.save")
    return of_temporal_data(data, classes_per_task, str(file))


def of_temporal_data(data: TemporalData, classes_per_task: int, name: str = "data") -> TemporalStream:
    """Take PyG's TemporalData with `label` (N,), the class of each node or -1, and, if there are any, features `x` (N, F)."""
    if getattr(data, "label", None) is None:
        raise DataError(f"{name}: has no `label`; set data.label to the class of each node, -1 where it is not known")
    events = {key: getattr(data, key).numpy() for key in ("src", "dst", "t")}
    label = data.label.numpy()
    _check_events(Path(name), events["src"], events["dst"], events["t"], len(label), first_line=0, unit="event")
    given = getattr(data, "x", None)
    rows = np.ones((len(label), 1), np.float32) if given is None else given.numpy()
    if rows.ndim != 2 or len(rows) != len(label):
        raise DataError(f"{name}: x has shape {rows.shape}; it needs one row for each of {len(label)} nodes")
    return _of_counts(events, label, rows, classes_per_task)


def _of_counts(events: dict[str, np.ndarray], label: np.ndarray, rows: np.ndarray, each: int) -> TemporalStream:
    task, tasks = counted_tasks(events["src"], events["dst"], label, each)
    return _stream(events, label, rows, tasks, task, [str(number) for number in range(sum(map(len, tasks)))])


def _stream(events: dict[str, np.ndarray], label: np.ndarray, rows: np.ndarray, tasks: Sequence[Sequence[int]], task: np.ndarray,
            names: list[str]) -> TemporalStream:
    t = events["t"]
    fine = t if t.dtype.kind in "iu" or np.array_equal(t, np.floor(t)) else np.round(t * FINE)
    src, dst, times, kinds, owners = (_whole(values) for values in (events["src"], events["dst"], fine, label, task))
    features = from_numpy(np.ascontiguousarray(rows, np.float32))
    return TemporalStream(src, dst, times, features, kinds, [list(classes) for classes in tasks], owners, names)


def _whole(values: np.ndarray) -> Tensor:
    return from_numpy(np.array(values, np.int64))


def _table(file: Path, columns: dict[str, pa.DataType]) -> dict[str, np.ndarray]:
    """Read the named columns of a csv; DataError with file and line for what is not a number, or is missing."""
    if not file.is_file():
        raise DataError(f"{file}: no such file; data.root must name what holds it")
    try:
        table = _parsed(file, columns)
    except KeyError:
        raise DataError(f"{file}: lacks a column; it needs {', '.join(columns)}") from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{file}: {' '.join(str(error).split())}; columns {', '.join(columns)} must hold numbers") from None
    found = {}
    for name in columns:
        column = table[name]
        if column.null_count:
            line = int(np.flatnonzero(column.is_null().to_numpy())[0]) + 2
            instead = "a number, -1 for an unknown class" if "label" in name else "a number"
            raise DataError(f"{file}: line {line}: {name} is empty; write {instead}")
        found[name] = column.to_numpy()
    return found


def _parsed(file: Path, columns: dict[str, pa.DataType]) -> pa.Table:
    """Parse the named columns; fractions only where there are some, since a float is a whole number exactly up to 2^53 only."""
    def parse(kinds: dict[str, pa.DataType]) -> pa.Table:
        convert = csv.ConvertOptions(column_types=kinds, include_columns=list(columns))
        return csv.read_csv(file, read_options=csv.ReadOptions(use_threads=False), convert_options=convert)

    try:
        return parse(dict.fromkeys(columns, pa.int64()))
    except pa.ArrowInvalid:
        return parse(columns)


def _check_nodes(file: Path, node: np.ndarray, label: np.ndarray) -> None:
    if len(wrong := np.flatnonzero(node != np.arange(len(node)))):
        row = int(wrong[0])
        raise DataError(f"{file}: line {row + 2}: node is {node[row]}, not {row}; number nodes from 0, in order")
    if len(wrong := np.flatnonzero(label < -1)):
        row = int(wrong[0])
        raise DataError(f"{file}: line {row + 2}: label is {label[row]}; write a class from 0, or -1 where it is not known")


def _check_events(file: Path, src: np.ndarray, dst: np.ndarray, t: np.ndarray, nodes: int, first_id: int = 0,
                  first_line: int = 2, unit: str = "line") -> None:
    """Refuse streams that are out of order or name nodes that do not exist."""
    if not len(t):
        raise DataError(f"{file}: has no events")
    if len(late := np.flatnonzero(np.diff(t) < 0)):
        row = int(late[0]) + 1
        raise DataError(f"{file}: {unit} {row + first_line}: time {t[row]} comes after {t[row - 1]}; sort events by time")
    for name, ids in (("src", src), ("dst", dst)):
        if len(wrong := np.flatnonzero((ids < 0) | (ids >= nodes))):
            row = int(wrong[0])
            raise DataError(f"{file}: {unit} {row + first_line}: {name} is {ids[row] + first_id}, and there are nodes {first_id} to "
                            f"{nodes - 1 + first_id}; add the node, or drop the event")


def _tasks(file: Path, label: np.ndarray) -> tuple[list[list[int]], list[tuple[float, float]], list[str]]:
    """Return classes and first and last time of each window, and the classes' names."""
    try:
        content = json.loads(file.read_text())
        entries = content["tasks"]
        tasks = [[int(c) for c in entry["classes"]] for entry in entries]
        windows = [(float(entry.get("start_day", entry["start"])), float(entry.get("end_day", entry["end"]))) for entry in entries]
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; it lists the windows with the classes that each opens") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f'{file}: must hold {{"tasks": [{{"start": 0, "end": 9, "classes": [0, 1]}}, …]}} ({error})') from None
    for number, (begin, end) in enumerate(windows):
        if end < begin or (number and begin <= windows[number - 1][1]):
            raise DataError(f"{file}: task {number} lasts from {begin:g} to {end:g}; a window ends after it starts, and starts after the "
                            "one before it has ended")
        if not tasks[number]:
            raise DataError(f"{file}: task {number} opens no class; list its classes, or merge its window with another")
    listed = [c for classes in tasks for c in classes]
    if len(set(listed)) < len(listed) or sorted(listed) != list(range(len(listed))):
        raise DataError(f"{file}: tasks must open each of the classes 0 to {len(listed) - 1} once, not {listed}")
    if len(unknown := np.flatnonzero(label >= len(listed))):
        row = int(unknown[0])
        raise DataError(f"{file.with_name('nodes.csv')}: line {row + 2}: label is {label[row]}, which no task of {file.name} opens")
    names = content.get("classes", [str(number) for number in range(len(listed))])
    return tasks, windows, [str(name) for name in names]


def _features(file: Path, nodes: int | None) -> np.ndarray:
    """Read features (N, F); a constant where there are none, for a stream that is known by its events alone."""
    if not file.is_file():
        if nodes is None:
            raise DataError(f"{file}: no such file; it holds one row of features a node")
        return np.ones((nodes, 1), np.float32)
    try:
        rows = np.load(file)
    except (ValueError, OSError):
        raise DataError(f"{file}: is no array of numbers; write it with numpy.save") from None
    if rows.dtype.kind not in "fiub":
        raise DataError(f"{file}: holds {rows.dtype}; it needs numbers")
    if rows.ndim != 2 or (nodes is not None and len(rows) != nodes):
        raise DataError(f"{file}: has shape {rows.shape}; it needs one row for each of {nodes} nodes")
    if len(wrong := np.flatnonzero(~np.isfinite(rows).all(1))):
        raise DataError(f"{file}: row {int(wrong[0])} holds a number that is not finite")
    return rows
