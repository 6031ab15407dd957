"""Scoring a part of the stream: its events once in time order, each predicted before and written into memory after."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.task_order import EventBatch
from lightning_modules.otgnet.gate import GateSection
from lightning_modules.otgnet.memory import Memory, is_last
from lightning_modules.otgnet.model import OpenModel
from lightning_modules.otgnet.view import Surroundings, look


@dataclass(frozen=True)
class Reach:
    """How far a walk looks: neighbours attended to, neighbours that vote, the gate, and events that share one memory."""

    neighbours: int
    votes: int
    gate: GateSection
    batch_size: int


@dataclass
class Found:
    """The last prediction of each scored node: ids (S,), logits (S, C), labels (S,); and the share of neighbours that were gated."""

    node: Tensor
    logits: Tensor
    label: Tensor
    gated: float

    def loss(self) -> float:
        """Return the mean cross-entropy over all open classes; NaN where nothing was scored."""
        return float(F.cross_entropy(self.logits, self.label))


@torch.no_grad()
def walk(model: OpenModel, around: Surroundings, memory: Memory, events: EventBatch, scored: Tensor, label: Tensor, opened: int,
         reach: Reach) -> Found:
    """Walk through events, writing into `memory`, and predict the nodes `scored` (S,); `label` (N,) only says what was right."""
    was_training = model.training
    model.eval()
    wanted = torch.zeros(len(label), dtype=torch.bool, device=label.device)
    wanted[scored] = True
    table = label.new_zeros((len(label),)), torch.zeros(len(label), around.num_classes, device=label.device)
    gated = []
    for start in range(0, len(events), reach.batch_size):
        view = look(events.span(start, start + reach.batch_size), around, memory, reach.neighbours, reach.votes, reach.gate)
        passed, logits = model(view, opened)
        gated.append(view.gated_share)
        memory.write(view.node, view.key, passed.rows)
        memory.predict(view.node, view.key, logits.argmax(-1))
        last = wanted[view.node] & is_last(view.node, view.key, len(label))
        table[0][view.node[last]], table[1][view.node[last]] = 1, logits[last]
    model.train(was_training)
    node = table[0].nonzero().view(-1)
    return Found(node, table[1][node], label[node], float(torch.stack(gated).mean()) if gated else 0.0)
