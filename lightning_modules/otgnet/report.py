"""What a run says of itself: its matrices of accuracies in figures and tables, with label propagation beside them."""

from dataclasses import dataclass

import torch

from lightning_modules.base import Table
from lightning_modules.otgnet.baselines import last_events, propagated
from lightning_modules.otgnet.exams import MEMORIES, SETTINGS, Exams, accuracies
from lightning_modules.otgnet.heads import Heads
from lightning_modules.otgnet.measures import (
    average_forgetting,
    average_performance,
    class_accuracy,
    learning_accuracy,
    macro_f1,
)
from lightning_modules.otgnet.walk import Found

Rows = dict[str, list[list[float]]]  # "setting/memory" -> accuracy on tasks 0..T after each task T


@dataclass(frozen=True)
class Voted:
    """Accuracy of label propagation on every task, in percent, in both settings."""

    task_il: list[float]
    class_il: list[float]


def vote(exams: Exams, seen: int) -> Voted:
    """Propagate labels to the test nodes of tasks 0..seen: of what each has met by its last test event, that event included."""
    stream, found = exams.data.stream, Voted([], [])
    for task in range(seen + 1):
        nodes, events = exams.data.scored(task, "test"), exams.data.events(task, "test")
        before = last_events(stream.src, stream.dst, events, nodes, exams.data.num_nodes) + 1
        visible = exams.visible_events(task, "test")
        known, own = exams.data.gate_label(seen), torch.tensor(exams.data.classes_of(task))
        for labels, values in ((known, found.class_il), (torch.where(torch.isin(known, own), known, -1), found.task_il)):
            said = propagated(stream.src, stream.dst, visible, labels, nodes, before, exams.data.num_classes)
            values.append(100.0 * float((said == stream.label[nodes]).float().mean()))
    return found


def figures(rows: Rows, last: list[Found], voted: Voted, heads: Heads) -> dict[str, float]:
    """Return AP, AF and more of every matrix, and beside them what votes alone reach; `last` are the tests of each task at the end."""
    found: dict[str, float] = {}
    for setting in SETTINGS:
        for kind in MEMORIES:
            matrix, name = rows[f"{setting}/{kind}"], f"test/{setting}" if kind == "snapshot" else f"test/{setting}/{kind}"
            found |= {f"{name}/AP": average_performance(matrix), f"{name}/AF": average_forgetting(matrix)}
        found[f"test/{setting}/learning"] = learning_accuracy(rows[f"{setting}/snapshot"])
        votes = getattr(voted, setting)
        found[f"test/{setting}/label_propagation"] = sum(votes) / len(votes)
    logits, label = torch.cat([f.logits for f in last]), torch.cat([f.label for f in last])
    found["test/macro_f1"] = macro_f1(logits.argmax(-1), label, heads.num_classes)
    return found


def on_validation(found: list[Found], heads: Heads) -> dict[str, float]:
    """Return AP on the validation nodes of all tasks, by which settings are chosen; `found` are their walks at the end."""
    both = [accuracies(f, heads) for f in found if len(f.node)]
    return {f"val/{setting}/AP": sum(getattr(score, setting) for score in both) / max(len(both), 1) for setting in SETTINGS}


def tables(rows: Rows, last: list[Found], voted: Voted, names: list[str], heads: Heads) -> dict[str, Table]:
    """Lay out all matrices, and the accuracy on each class."""
    tasks = len(last)
    matrix = [(*name.split("/"), str(after), *row, *[""] * (tasks - len(row))) for name, all_rows in rows.items()
              for after, row in enumerate(all_rows)]
    matrix += [(setting, "label propagation", str(tasks - 1), *getattr(voted, setting)) for setting in SETTINGS]
    logits, label = torch.cat([f.logits for f in last]), torch.cat([f.label for f in last])
    within, among = (class_accuracy(said.argmax(-1), label, heads.num_classes) for said in (heads.within_task(logits, label), logits))
    classes = [(names[kind], int((label == kind).sum()), within[kind].item(), among[kind].item()) for kind in label.unique().tolist()]
    return {"accuracy": Table(("setting", "memory", "after task", *(f"task {task}" for task in range(tasks))), matrix),
            "classes": Table(("class", "test nodes", "task_il", "class_il"), classes)}


def scores(tests: dict[str, list[Found]], heads: Heads) -> dict[str, list[float]]:
    """Return one row of every matrix, from the tests of each task by memory."""
    found: dict[str, list[float]] = {}
    for kind, tested in tests.items():
        both = [accuracies(f, heads) for f in tested]
        found |= {f"{setting}/{kind}": [getattr(score, setting) for score in both] for setting in SETTINGS}
    return found


def with_last(rows: Rows, row: dict[str, list[float]]) -> Rows:
    """Return the matrices with their last row replaced."""
    return {name: [*rows[name][:-1], row[name]] for name in row}

