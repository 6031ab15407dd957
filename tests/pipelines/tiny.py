"""The smallest model and data that Lightning trains, for tests of what surrounds them."""

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_modules.base import optimizer_steps


class Numbers(L.LightningDataModule):
    """Batches that hold their own number: two rows of [n, n, n]."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.arange(self.batches).float().repeat_interleave(2)[:, None].repeat(1, 3), batch_size=2)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.ones(2, 3), batch_size=2)


class Line(L.LightningModule):
    """A linear layer that remembers the batches it saw and the steps at which it was validated."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.seen: list[int] = []
        self.validated: list[int] = []
        self.total_steps = 0

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.seen.append(int(batch[0, 0]))
        loss = self.layer(batch / 100).square().mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.layer(batch).square().mean())

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.validated.append(self.trainer.global_step)

    def configure_optimizers(self) -> dict:
        self.total_steps = optimizer_steps(self.trainer)
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def trainer(**more) -> L.Trainer:
    """Make a Trainer on one CPU that prints and writes nothing of its own."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    return L.Trainer(**{"accelerator": "cpu", **quiet, **more})
