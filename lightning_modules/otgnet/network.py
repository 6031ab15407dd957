"""One forward pass over a batch of events: rows for the memory, hidden features for the classifier, and what the gate has held back."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_modules.otgnet.attention import NeighbourAttention
from lightning_modules.otgnet.bottleneck import Bottleneck
from lightning_modules.otgnet.encoding import TimeEncoding
from lightning_modules.otgnet.view import View


@dataclass(frozen=True)
class NetworkSection:
    backbone: Literal["otgnet", "tgn", "tgat", "mlp"] = "otgnet"
    """otgnet; tgn (memory with a GRU, no gate); tgat (attention without memory); mlp (features of a node and nothing else)"""
    hidden: int = 100
    """width of embeddings and memory"""
    neighbours: int = 5
    """most recent neighbours that a node attends to"""
    time_dim: int = 5
    """frequencies that encode the age of a neighbour's event"""
    classifier: int = 128
    """width of the classifier's hidden layer"""
    dropout: float = 0.5
    """share of attention inputs and of the classifier's hidden features that training leaves out"""
    update: Literal["pair", "own"] = "pair"
    """what updates a node's memory: the messages of both ends of the event, or its own"""
    masked: bool = True
    """leave empty neighbour slots out of the attention"""
    votes: int = 20
    """recent neighbours whose training labels are counted and add to the logits; 0: none"""
    vote_weight: float = 4.0
    """what a class gains by votes, times log(1 + votes). Trained, it would fall short: on its training nodes a network needs no votes"""

    def __post_init__(self) -> None:
        for name in ("hidden", "neighbours", "time_dim", "classifier"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: must lie in 0..1 (1 excluded), not {self.dropout}")
        if self.votes < 0:
            raise ValueError(f"votes: must be 0 or above, not {self.votes}")
        if self.vote_weight < 0:
            raise ValueError(f"vote_weight: must be 0 or above, not {self.vote_weight}")

    def without_effect(self) -> dict[str, str]:
        """Name what other backbones leave idle."""
        idle = {} if self.votes else {"vote_weight": "votes=0 asks nobody"}
        if self.backbone != "otgnet":
            idle["update"] = f"backbone={self.backbone} has an update of its own"
        if self.backbone == "mlp":
            idle |= dict.fromkeys(("neighbours", "time_dim", "masked"), "backbone=mlp sees no neighbours")
        return idle


@dataclass
class Passed:
    """What a forward pass gives: rows (Q, d), what the classifier reads (Q, in), its hidden features (Q, classifier), what was gated."""

    rows: Tensor
    inputs: Tensor
    hidden: Tensor
    gated: "HeldBack"


@dataclass
class HeldBack:
    """Embeddings x (G, d) that passed as their code only, with the classes (G,) of who owns them.

    `key` (G,) orders them: node for a neighbour, number of nodes + the key of its end of the event for a message.
    """

    x: Tensor
    label: Tensor
    key: Tensor

    def to(self, device: torch.device) -> "HeldBack":
        return HeldBack(self.x.to(device), self.label.to(device), self.key.to(device))

    @staticmethod
    def ordered(parts: "list[HeldBack]") -> "HeldBack":
        """Put what several processes held back into the order of `key`, each once: the same as one process does alone."""
        key = torch.cat([part.key for part in parts])
        order = key.argsort(stable=True)
        key = key[order]
        first = torch.ones_like(key, dtype=torch.bool)
        first[1:] = key[1:] != key[:-1]
        order = order[first]
        return HeldBack(torch.cat([part.x for part in parts])[order], torch.cat([part.label for part in parts])[order], key[first])


class TemporalNetwork(nn.Module):
    """Projection, attention over neighbours through the class gate, memory update, and the classifier's first layer."""

    def __init__(self, num_features: int, config: NetworkSection, scale: float) -> None:
        super().__init__()
        self.config, width = config, config.hidden
        self.sees_neighbours = config.backbone != "mlp"
        self.remembers = config.backbone in ("otgnet", "tgn")
        inputs = num_features
        if self.sees_neighbours:
            self.project = nn.Linear(width + num_features, width)
            self.attention = NeighbourAttention(width, config.time_dim, config.dropout, config.masked)
            self.time = TimeEncoding(config.time_dim, scale)
            inputs += width
        if config.backbone == "otgnet":
            self.update: nn.Module = nn.Linear((3 if config.update == "pair" else 2) * width, width)
        elif config.backbone == "tgn":
            self.update = nn.GRUCell(2 * width, width)
        elif config.backbone == "tgat":
            self.update = nn.Linear(2 * width, width)
        self.first = nn.Linear(inputs, config.classifier)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, view: View, code: Bottleneck) -> Passed:
        """Pass a view; `code` gives what may cross between classes."""
        rows = view.rows[view.centre]
        if not self.sees_neighbours:
            none = view.label.new_zeros(0)
            inputs = view.features[view.centre]
            return Passed(rows, inputs, self.classify(inputs), HeldBack(rows[:0], none, none))
        remembered = view.rows if self.remembers else torch.zeros_like(view.rows)
        u = self.project(torch.cat([remembered, view.features], -1))  # (U, d)
        messages, behind = self._messages(view, u, code)
        crossed = torch.cat([view.crossed, view.crossed]).nonzero().view(-1)
        held_back = messages[crossed].detach()
        if len(held_back):
            messages = messages.index_copy(0, crossed, code(held_back))
        rows = self._updated(view, rows, u, messages)
        gated = HeldBack(torch.cat([u[behind].detach(), held_back]), torch.cat([view.label[behind], view.taken[crossed]]),
                         torch.cat([view.table[behind], view.num_nodes + view.key[crossed]]))
        inputs = torch.cat([rows, view.features[view.centre]], -1)
        return Passed(rows, inputs, self.classify(inputs), gated)

    def _messages(self, view: View, u: Tensor, code: Bottleneck) -> tuple[Tensor, Tensor]:
        """Attend to the neighbours: m (Q, d). Those of another class come as their code; their places (G,) are returned, too."""
        place = torch.zeros(len(u), dtype=torch.bool, device=u.device)
        place[view.neighbour[view.gated]] = True
        behind = place.nonzero().view(-1)  # each node once, however often it is gated
        coded = torch.zeros(len(u), dtype=torch.int64, device=u.device)
        coded[behind] = len(u) + torch.arange(len(behind), device=u.device)
        keys = self.attention.keys(torch.cat([u, code(u[behind].detach())]) if len(behind) else u)
        chosen = keys[torch.where(view.gated, coded[view.neighbour], view.neighbour)]
        if not self.config.masked:  # an empty slot is a node without memory and features
            chosen = torch.where(view.mask[..., None], chosen, self.attention.keys(self.project.bias))
        return self.attention(u[view.centre], chosen, self.time(view.age), view.mask), behind

    def _updated(self, view: View, rows: Tensor, u: Tensor, messages: Tensor) -> Tensor:
        """Return the new rows of all centres, (Q, d)."""
        source, destination = messages.chunk(2)
        pair = torch.cat([source, destination], -1)
        if self.config.backbone == "otgnet":
            heard = torch.cat([pair, pair]).tanh() if self.config.update == "pair" else messages
            return torch.tanh(self.update(torch.cat([rows, heard], -1)))
        if self.config.backbone == "tgn":
            return self.update(torch.cat([messages, torch.cat([destination, source])], -1), rows)
        return torch.tanh(self.update(torch.cat([u[view.centre], messages], -1)))

    def classify(self, inputs: Tensor) -> Tensor:
        """Return the classifier's hidden features of [H_v; x_v]."""
        return self.dropout(torch.relu(self.first(inputs)))
