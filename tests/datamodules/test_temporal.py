"""Temporal streams: recent neighbours, tasks, parts, and what files hold."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import TemporalData

from datamodules.opening import opening
from datamodules.otgnet import OtgnetData, OtgnetDataConfig
from datamodules.recency import RecentNeighbours
from datamodules.rows import DataError
from datamodules.temporal_files import of_temporal_data, read_authors, read_folder, read_saved
from datamodules.temporal_tasks import PARTS, Division, split_nodes

STREAMS = Path(__file__).resolve().parents[3] / "shared" / "data" / "temporal"
needs_streams = pytest.mark.skipif(not STREAMS.is_dir(), reason="the shared temporal data are not beside this checkout")


def some_stream(seed, nodes=12, events=200):
    generator = torch.Generator().manual_seed(seed)
    src, dst = torch.randint(nodes, (2, events), generator=generator)
    return src, dst, torch.randint(40, (events,), generator=generator).sort().values


def history(src, dst, t, node, before, visible, strict):
    """Brute force: neighbours of one node before one event, oldest first."""
    found = []
    for event in visible:
        if event >= before or (strict and before < len(t) and t[event] == t[before]):
            continue
        ends = {(int(src[event]), int(dst[event])), (int(dst[event]), int(src[event]))}
        found += [(other, event) for own, other in ends if own == node]
    return found


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_recent_neighbours_are_those_that_a_walk_through_all_events_finds(seed, strict):
    src, dst, t = some_stream(seed)
    visible = (torch.rand(len(src), generator=torch.Generator().manual_seed(seed)) < 0.7).nonzero().view(-1)
    ours = RecentNeighbours(src, dst, t, visible, nodes=12, strict_time=strict)
    nodes = torch.arange(12).repeat_interleave(len(src) + 1)
    before = torch.arange(len(src) + 1).repeat(12)
    neighbour, event, mask = ours.last(nodes, before, 4)
    for row in range(0, len(nodes), 7):
        wanted = history(src, dst, t, int(nodes[row]), int(before[row]), visible.tolist(), strict)[-4:]
        assert list(zip(neighbour[row, mask[row]].tolist(), event[row, mask[row]].tolist())) == wanted
        assert mask[row].tolist() == [False] * (4 - len(wanted)) + [True] * len(wanted)


def test_a_node_without_history_has_no_neighbours_and_neither_has_a_stream_without_visible_events():
    src, dst, t = some_stream(0)
    for node, events in ((15, None), (1, torch.empty(0, dtype=torch.int64))):
        found = RecentNeighbours(src, dst, t, events, nodes=20).last(torch.tensor([node]), torch.tensor([200]), 3)
        assert not found[2].any()


def test_events_that_come_later_change_nothing():
    src, dst, t = some_stream(1)
    whole, cut = RecentNeighbours(src, dst, t, nodes=12), RecentNeighbours(src, dst, t, torch.arange(100), nodes=12)
    nodes, before = torch.arange(12), torch.full((12,), 100)
    assert all(torch.equal(one, other) for one, other in zip(whole.last(nodes, before, 5), cut.last(nodes, before, 5)))


def test_each_class_is_divided_in_the_shares_that_were_asked_for():
    stream = opening(0, "otg")
    part = split_nodes(stream.label, torch.ones(stream.num_nodes, dtype=torch.bool), 0.1, 0.2, seed=3)
    for kind in range(stream.num_classes):
        own = part[stream.label == kind]
        assert [int((own == number).sum()) for number in (1, 2)] == [round(share * len(own)) for share in (0.1, 0.2)]
        assert (own >= 0).all()


def test_training_never_meets_a_held_out_node_and_validation_no_test_node():
    data = OtgnetData(OtgnetDataConfig())
    data.setup()
    for task in range(data.num_tasks):
        for number, part in enumerate(PARTS):
            events = data.events(task, part)
            ends = torch.cat([data.stream.src[events], data.stream.dst[events]])
            assert data.node_part[ends].max() == number
            seen = data.visible(task, part)
            assert data.node_part[seen.neighbour].max() <= number
            assert data.stream.task[seen.event].max() <= task
        assert torch.isin(data.scored(task, "test"), (data.node_part == 2).nonzero().view(-1)).all()


def test_labels_are_known_of_training_nodes_of_open_classes_only():
    data = OtgnetData(OtgnetDataConfig())
    data.setup()
    known = data.gate_label(1)
    assert (data.node_part[known >= 0] == 0).all()
    assert known.max() == max(data.classes_of(1))


def test_held_out_labels_do_not_change_what_is_trained_on():
    stream = opening(0, "otg")
    part = split_nodes(stream.label, torch.ones(stream.num_nodes, dtype=torch.bool), 0.1, 0.1, seed=0)
    one = Division(stream, part)
    scrambled = stream.label.clone()
    scrambled[part > 0] = scrambled[part > 0].flip(0)
    other = Division(opening(0, "otg").__class__(**{**vars(stream), "label": scrambled}), part)
    for task in range(len(stream.tasks)):
        assert torch.equal(one.events(task, "train"), other.events(task, "train"))
        assert torch.equal(one.gate_label(task), other.gate_label(task))


@needs_streams
@pytest.mark.parametrize(("name", "protocol", "events", "nodes"), [
    ("arxiv_open", "otg", [3987, 1389, 1746, 13871, 3321, 15751], 20088),
    ("arxiv_open", "evolving", [3987, 7419, 9901, 26442, 45149, 77019], 59540)])
def test_arxiv_has_as_many_events_and_nodes_in_its_tasks_as_published(name, protocol, events, nodes):
    stream = read_folder(STREAMS / name, protocol)
    assert torch.bincount(stream.task[stream.task >= 0]).tolist() == events
    kept = stream.task >= 0
    assert len(torch.cat([stream.src[kept], stream.dst[kept]]).unique()) == nodes
    assert (stream.t.diff() > 0).all()  # no two events of one time


def write_folder(folder, events="0,1,0\n0,2,1\n2,3,2.5\n", nodes="0,0,0\n1,0,0\n2,1,1\n3,1,2.5\n", tasks=((0, 0, [0]), (1, 3, [1]))):
    (folder / "events.csv").write_text("src,dst,t\n" + events)
    (folder / "nodes.csv").write_text("node,label,first_time\n" + nodes)
    entries = [{"start": begin, "end": end, "classes": classes} for begin, end, classes in tasks]
    (folder / "tasks.json").write_text(json.dumps({"tasks": entries}))
    return folder


def test_a_folder_of_tables_becomes_a_stream(tmp_path):
    stream = read_folder(write_folder(tmp_path), "otg")
    assert stream.task.tolist() == [0, 1, 1]
    assert stream.t.tolist() == [0, 1_000_000, 2_500_000]  # fractions make millionths
    assert (stream.features == 1).all()


@pytest.mark.parametrize(("change", "said"), [
    ({"events": "0,1,5\n0,2,1\n"}, "events.csv: line 3: time 1 comes after 5; sort events by time"),
    ({"events": "0,1,0\n0,9,1\n"}, "events.csv: line 3: dst is 9, and there are nodes 0 to 3"),
    ({"events": "0,1,0\n0,x,1\n"}, "events.csv: .*columns src, dst, t must hold numbers"),
    ({"events": "0,1,0\n0,,1\n"}, "events.csv: line 3: dst is empty"),
    ({"nodes": "0,0,0\n1,0,0\n3,1,1\n"}, "nodes.csv: line 4: node is 3, not 2"),
    ({"nodes": "0,0,0\n1,,0\n"}, "nodes.csv: line 3: label is empty; write a number, -1 for an unknown class"),
    ({"nodes": "0,0,0\n1,7,0\n2,1,1\n3,1,2\n"}, "nodes.csv: line 3: label is 7, which no task of tasks.json opens"),
    ({"nodes": "0,0,0\n1,-2,0\n2,1,1\n3,1,2\n"}, "nodes.csv: line 3: label is -2; write a class from 0, or -1"),
    ({"tasks": ((0, 2, [0]), (1, 3, [1]))}, "tasks.json: task 1 lasts from 1 to 3; a window .* starts after the one before it has ended"),
    ({"tasks": ((0, 0, [0, 1]), (1, 3, []))}, "tasks.json: task 1 opens no class"),
    ({"tasks": ((0, 0, [0]), (1, 3, [0]))}, "tasks.json: tasks must open each of the classes 0 to 1 once")])
def test_bad_tables_are_refused_with_their_line(tmp_path, change, said):
    with pytest.raises(DataError, match=said):
        read_folder(write_folder(tmp_path, **change), "otg")


def test_missing_files_and_columns_are_named(tmp_path):
    with pytest.raises(DataError, match=r"events\.csv: no such file"):
        read_folder(tmp_path, "otg")
    write_folder(tmp_path)
    (tmp_path / "events.csv").write_text("src,dst\n0,1\n")
    with pytest.raises(DataError, match=r"events\.csv: lacks a column; it needs src, dst, t"):
        read_folder(tmp_path, "otg")


def test_features_must_be_finite_and_one_row_a_node(tmp_path):
    write_folder(tmp_path)
    np.save(tmp_path / "features.npy", np.zeros((3, 2)))
    with pytest.raises(DataError, match="one row for each of 4 nodes"):
        read_folder(tmp_path, "otg")
    np.save(tmp_path / "features.npy", np.array([[0.0], [np.nan], [0], [0]]))
    with pytest.raises(DataError, match="row 1 holds a number that is not finite"):
        read_folder(tmp_path, "otg")


def test_a_file_of_features_that_is_none_is_refused(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "features.npy").write_text("0.5,0.1")
    with pytest.raises(DataError, match=r"features\.npy: is no array of numbers; write it with numpy\.save"):
        read_folder(tmp_path, "otg")
    np.save(tmp_path / "features.npy", np.array([["a"]] * 4))
    with pytest.raises(DataError, match=r"features\.npy: holds <U1; it needs numbers"):
        read_folder(tmp_path, "otg")


def test_whole_times_keep_their_last_digit_beyond_what_a_float_holds(tmp_path):
    last = 10**18
    events = f"0,1,{last + 1}\n0,2,{last + 2}\n"
    stream = read_folder(write_folder(tmp_path, events=events, tasks=((0, 10, [0]), (11, 2 * last, [1]))), "otg")
    assert stream.t.tolist() == [last + 1, last + 2]


def authors(folder, rows):
    (folder / "ml.csv").write_text("u,i,label_u,label_name_u,label_i,label_name_i,ts,idx\n" + rows)
    np.save(folder / "ml.npy", np.arange(10.0).reshape(5, 2))
    return folder / "ml.csv"


def test_the_layout_of_the_authors_is_read_with_nodes_from_0(tmp_path):
    stream = read_authors(authors(tmp_path, "1,2,0,a,0,a,0,1\n1,3,0,a,1,b,5,2\n4,3,2,c,1,b,7,3\n"), classes_per_task=1)
    assert (stream.src.tolist(), stream.dst.tolist(), stream.label.tolist()) == ([0, 0, 3], [1, 2, 2], [0, 0, 1, 2])
    assert stream.task.tolist() == [0, 1, 2]
    assert stream.features.tolist() == [[2, 3], [4, 5], [6, 7], [8, 9]]


def test_a_node_with_two_classes_is_refused(tmp_path):
    with pytest.raises(DataError, match="line 2: label_u is 0 for node 1, elsewhere 1; a node has one class"):
        read_authors(authors(tmp_path, "1,2,0,a,0,a,0,1\n1,3,1,a,1,b,5,2\n"), classes_per_task=1)


def test_a_temporal_data_of_pyg_is_taken_from_a_file(tmp_path):
    wanted = opening(1, "evolving")
    data = TemporalData(src=wanted.src, dst=wanted.dst, t=wanted.t)
    data.label, data.x = wanted.label, wanted.features
    torch.save(data, tmp_path / "stream.pt")
    module = OtgnetData(OtgnetDataConfig(source="pyg", root=str(tmp_path / "stream.pt"), classes_per_task=2))
    module.setup()
    assert torch.equal(module.stream.features, wanted.features)
    assert module.stream.tasks == wanted.tasks
    later = torch.maximum(wanted.label[wanted.src], wanted.label[wanted.dst]) // 2
    assert torch.equal(module.stream.task, later)


def test_a_file_of_something_else_is_not_unpickled(tmp_path):
    torch.save(Path("x"), tmp_path / "stream.pt")
    with pytest.raises(DataError, match="holds something else than a TemporalData"):
        read_saved(tmp_path / "stream.pt", 2)


def test_a_temporal_data_without_labels_is_refused():
    with pytest.raises(DataError, match="has no `label`"):
        of_temporal_data(TemporalData(src=torch.tensor([0]), dst=torch.tensor([1]), t=torch.tensor([0])), 2)


def test_a_task_that_nobody_is_scored_in_is_refused(tmp_path):
    module = OtgnetData(OtgnetDataConfig(source="folder", root=str(write_folder(tmp_path))))
    with pytest.raises(DataError, match="no valid node arrives in task 0"):
        module.setup()


def test_a_generated_stream_is_the_same_for_a_seed_and_opens_its_classes_in_order():
    one, other = opening(5, "otg"), opening(5, "otg")
    assert torch.equal(one.dst, other.dst)
    assert torch.equal(one.features, other.features)
    kept = one.task >= 0
    assert torch.equal(one.class_task[one.label[one.src]][kept], one.task[kept])
    assert 0.5 < (one.label[one.src] != one.label[one.dst])[kept].float().mean() < 0.75  # 3/4, less those that meet their own by chance


@pytest.mark.parametrize(("change", "said"), [
    ({"dst": torch.tensor([1, 3])}, "data: event 1: dst is 3, and there are nodes 0 to 2"),
    ({"t": torch.tensor([5, 4])}, "data: event 1: time 4 comes after 5"),
    ({"x": torch.ones(2, 4)}, r"data: x has shape \(2, 4\); it needs one row for each of 3 nodes")])
def test_a_temporal_data_that_does_not_fit_together_is_refused(change, said):
    data = TemporalData(src=torch.tensor([0, 1]), dst=torch.tensor([1, 2]), t=torch.tensor([0, 1]))
    data.label = torch.tensor([0, 0, 1])
    for name, values in change.items():
        setattr(data, name, values)
    with pytest.raises(DataError, match=said):
        of_temporal_data(data, 2)


def test_data_that_nobody_names_are_asked_for():
    with pytest.raises(DataError, match=r"data\.root: must name the folder data; write data\.root=PATH, or data\.source=generated"):
        OtgnetData(OtgnetDataConfig(source="folder")).setup()
