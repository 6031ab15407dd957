"""A few batches again and again: a model that cannot learn these by heart has a fault."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from lightning.pytorch import LightningDataModule


class FixedBatches:
    """The first `count` batches of a loader, the same in every epoch; a checkpoint restores the place among them."""

    def __init__(self, loader: Any, count: int) -> None:
        self.loader, self.count = loader, count
        self.position = 0  # batches of this epoch that were handed out
        self._kept: list[Any] = []

    @property
    def kept(self) -> list[Any]:
        """The batches, read once."""
        if not self._kept:
            self._kept = list(islice(self.loader, self.count))
        return self._kept

    def __len__(self) -> int:
        return len(self.kept)

    def __iter__(self) -> Iterator[Any]:
        for place in range(self.position % len(self), len(self)):
            self.position = place + 1
            yield self.kept[place]

    def state_dict(self) -> dict[str, int]:
        """Where the epoch stands."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state` was taken."""
        self.position = state["position"]


def keep_to(data: LightningDataModule, count: int) -> None:
    """Let a datamodule train on its first `count` batches alone."""
    whole = data.train_dataloader
    data.train_dataloader = lambda: FixedBatches(whole(), count)  # type: ignore[method-assign]
