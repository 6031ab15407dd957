"""Run by torchrun on two processes: a short training of token weights without chance, its outcome written to the folder given."""

import sys
from pathlib import Path

import torch
from weighing import data_in, module_for, trainer_for

from lightning_modules.kpod.weighting import module as weighting

CERTAIN = {"prefix_kind": "every_step_end", "warmup": 0.0, "ramp": 0.0, "held_out": 0.05}


def train(folder, batch_size, **options):
    """Train one epoch with m = w, so that nothing depends on how rows are shared out."""
    torch.set_num_threads(1)
    weighting.relaxed_mask = lambda logits, temperature, hard: logits.sigmoid()
    data = data_in(folder, batch_size=batch_size)
    trainer_for(1, **options).fit(module_for(data, folder / "out", epochs=1, **CERTAIN), datamodule=data)


if __name__ == "__main__":
    train(Path(sys.argv[1]), 4, devices=2, strategy="ddp")
