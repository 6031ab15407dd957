"""Going over earlier tasks while a new one is learnt: what is drawn, from which memory, and what a node of a finished task was worth."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.task_order import EventBatch
from lightning_modules.otgnet.exams import Exams
from lightning_modules.otgnet.influence import Curvature, Parameters, worth
from lightning_modules.otgnet.losses import class_shares
from lightning_modules.otgnet.memory import Memory
from lightning_modules.otgnet.model import OpenModel
from lightning_modules.otgnet.replay import Finished, Kept, Replay, ReplaySection, keep, link_loss
from lightning_modules.otgnet.view import Surroundings, View, look
from lightning_modules.otgnet.walk import Reach


class Review:
    """The replay of all tasks before one, over a memory in which each of their nodes is as its own task has left it."""

    def __init__(self, replay: Replay, exams: Exams, snapshots: list[Memory], task: int, section: ReplaySection) -> None:
        self.replay, self.exams, self.section, self.tasks = replay, exams, section, min(task, len(replay.tasks))
        self.around = exams.around(task, "train", task)
        self.memory = snapshots[-1].copy() if snapshots else None
        for past in reversed(range(self.tasks)):  # a node of several tasks is as the first has left it
            nodes = self._taking_part(replay.draw(past, 0, torch.Generator()))
            assert self.memory is not None
            self.memory.rows[nodes] = snapshots[past].rows[nodes]

    def __bool__(self) -> bool:
        return any(kept.events.numel() for classes in self.replay.tasks[:self.tasks] for kept in classes.values())

    def _taking_part(self, event: Tensor) -> Tensor:
        """List the ends of events and the neighbours they attend to."""
        events = self.exams.events(event)
        ends = torch.cat([events.src, events.dst])
        found, _, mask = self.around.neighbours.last(ends.cpu(), torch.cat([event, event]), self.exams.reach.neighbours)
        return torch.cat([ends, found[mask].to(ends.device)]).unique()

    def draw(self, generator: torch.Generator) -> EventBatch:
        """Draw as many events as a step replays, equally many of each task and class."""
        each = -(-self.section.batch_size // self.tasks)
        return self.exams.events(torch.cat([self.replay.draw(task, each, generator) for task in range(self.tasks)]))

    def look(self, generator: torch.Generator) -> View:
        """Look at a draw of events as they were."""
        reach, memory = self.exams.reach, self.memory
        assert memory is not None
        view = look(self.draw(generator), self.around, memory, reach.neighbours, reach.votes, reach.gate)
        if self.section.history:
            return view
        nobody = torch.zeros_like(view.mask)
        return replace(view, mask=nobody, gated=nobody, age=torch.zeros_like(view.age), votes=torch.zeros_like(view.votes))

    def shares(self, num_classes: int) -> Tensor:
        """Return how often each class comes up, (C,), if all is drawn alike."""
        events = self.exams.events(torch.cat([self.replay.draw(task, 0, torch.Generator()) for task in range(self.tasks)]))
        return class_shares(self.around.known[torch.cat([events.src, events.dst])], num_classes)

    def link_loss(self, view: View, rows: Tensor) -> Tensor:
        """Return the loss on kept pairs whose nodes both take part in a view, from their rows (Q, d)."""
        place = torch.full((view.num_nodes,), -1, device=rows.device)
        place.scatter_reduce_(0, view.node, torch.arange(len(rows), device=rows.device), "amax")
        pairs = [torch.cat([self.replay.pairs(task)[sort] for task in range(self.tasks)]) for sort in (0, 1)]
        met, apart = (place[p.to(rows.device)] for p in pairs)
        return link_loss(rows, met[(met >= 0).all(1)], apart[(apart >= 0).all(1)], self.section.link_mean)


@torch.no_grad()
def first_meetings(model: OpenModel, around: Surroundings, memory: Memory, events: EventBatch, reach: Reach,
                   opened: int) -> tuple[Tensor, Tensor, Tensor]:
    """Walk through training events, writing into `memory`.

    Returns labelled nodes (n,), what the classifier read at the first event of each (n, in), and their votes (n, C).
    """
    was_training = model.training
    model.eval()
    met = around.known < 0  # which are of no interest
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(events), reach.batch_size):
        view = look(events.span(start, start + reach.batch_size), around, memory, reach.neighbours, reach.votes, reach.gate)
        passed, _ = model(view, opened)
        memory.write(view.node, view.key, passed.rows)
        first = torch.full_like(around.known, 2 * len(around.t)).scatter_reduce_(0, view.node, view.key, "amin")
        new = (first[view.node] == view.key) & ~met[view.node]
        met[view.node] = True
        found.append((view.node[new], passed.inputs[new], view.votes[new]))
    model.train(was_training)
    nodes, inputs, votes = (torch.cat(parts) for parts in zip(*found))
    return nodes, inputs, votes


def worth_of(model: OpenModel, inputs: Tensor, votes: Tensor, label: Tensor, opened: int, curvature: Curvature, damping: float,
             by_mean: bool = False) -> Tensor:
    """Return what each sample is worth to all (n,), by the classifier's two layers: inputs (n, in), votes (n, C), labels (n,)."""
    heads, first = model.heads, model.encoder.first
    classes = heads.opened(opened).nonzero().view(-1)
    weight, bias = heads.by_class()
    parameters: Parameters = {"first": first.weight.detach(), "first_bias": first.bias.detach(), "head": weight.detach()[classes],
                              "head_bias": bias.detach()[classes]}
    lifted = model.vote_weight * votes[:, classes].log1p()

    def logits(p: Parameters) -> Tensor:
        hidden = F.relu(F.linear(inputs, p["first"], p["first_bias"]))
        return F.linear(hidden, p["head"], p["head_bias"]) + lifted

    place = torch.zeros(heads.num_classes, dtype=torch.int64, device=label.device)
    place[classes] = torch.arange(len(classes), device=label.device)
    return worth(logits, parameters, place[label], curvature, damping, by_mean=by_mean)


def choose(model: OpenModel, exams: Exams, task: int, before: Memory, after: Memory, section: ReplaySection, seed: int) -> dict[int, Kept]:
    """Choose what to keep of a finished task, from the memory that it began with and the one that its training events have left."""
    around, events = exams.around(task, "train", task), exams.events(exams.data.events(task, "train"))
    values = torch.full((len(around.known),), float("nan"))
    if section.kind in ("triads", "influence") and section.importance != "none":
        nodes, inputs, votes = first_meetings(model, around, before.copy(), events, exams.reach, task + 1)
        found = worth_of(model, inputs, votes, around.known[nodes], task + 1, section.importance, section.damping,
                         section.product == "mean")
        values[nodes.cpu()] = found.cpu()
    stream: Any = exams.data.stream
    finished = Finished(stream.src, stream.dst, events.event.cpu(), around.known.cpu(), around.neighbours, after.rows.cpu(), values)
    return keep(finished, exams.data.classes_of(task), section, torch.Generator().manual_seed((seed + task) % 2**63))
