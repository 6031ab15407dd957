"""What is remembered of each node: a row, and the event that wrote it."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


def keys_of(event: Tensor) -> Tensor:
    """Number the ends of events (B,): sources, then destinations, (2B,); of two ends of one event the destination is the later."""
    return torch.cat([2 * event, 2 * event + 1])


def is_last(node: Tensor, key: Tensor, nodes: int) -> Tensor:
    """Tell which entries carry the largest key of their node, (Q,) bool; keys are unique."""
    latest = torch.full((nodes,), -1, dtype=torch.int64, device=node.device).scatter_reduce_(0, node, key, "amax")
    return latest[node] == key


@dataclass
class Memory:
    """Rows (N, d) of all nodes, the key of the event that wrote each (N,), -1 for none, and the class last predicted (N,), -1 for none.

    `seed` has drawn the rows that no event has written, which are therefore not saved.
    """

    rows: Tensor
    written: Tensor
    predicted: Tensor
    seed: int = 0

    @staticmethod
    def fresh(nodes: int, width: int, seed: int) -> "Memory":
        """Make a memory that has seen nothing; rows are drawn as Xavier does."""
        spread = (2.0 / (nodes + 1 + width)) ** 0.5
        rows = torch.randn(nodes, width, generator=torch.Generator().manual_seed(seed)) * spread
        none = torch.full((nodes,), -1, dtype=torch.int64)
        return Memory(rows, none, none.clone(), seed)

    def write(self, node: Tensor, key: Tensor, rows: Tensor) -> None:
        """Write rows (Q, d) of nodes (Q,), those of each node's last event only, and none that is older than what is there."""
        self.written.scatter_reduce_(0, node, key, "amax")
        newest = self.written[node] == key
        self.rows[node[newest]] = rows[newest].detach()

    def predict(self, node: Tensor, key: Tensor, classes: Tensor) -> None:
        """Note the classes (Q,) predicted at the ends `key` (Q,) of events; the last one of a node counts."""
        newest = self.written[node] == key
        self.predicted[node[newest]] = classes[newest]

    def copy(self) -> "Memory":
        return replace(self, rows=self.rows.clone(), written=self.written.clone(), predicted=self.predicted.clone())

    def to(self, device: torch.device) -> "Memory":
        return replace(self, rows=self.rows.to(device), written=self.written.to(device), predicted=self.predicted.to(device))

    def state_dict(self) -> dict[str, Any]:
        """Return what events have written; all else follows from the seed."""
        node = (self.written >= 0).nonzero().view(-1)
        return {"shape": list(self.rows.shape), "seed": self.seed, "node": node, "rows": self.rows[node], "written": self.written[node],
                "predicted": self.predicted[node]}

    @staticmethod
    def of(state: dict[str, Any]) -> "Memory":
        """Make the memory that gave `state`, on the CPU."""
        nodes, width = state["shape"]
        found, node = Memory.fresh(nodes, width, state["seed"]), state["node"].cpu()
        for name in ("rows", "written", "predicted"):
            getattr(found, name)[node] = state[name].cpu()
        return found
