"""A small training of token weights, as the launcher runs it: samples of made problems, seeds before each batch, exact checkpoints."""

import torch
from lightning.pytorch import Trainer

from datamodules.problems import problems
from datamodules.samples import Wording, make_samples
from datamodules.tokenization import train_tokenizer
from datamodules.weighting import WeightingData
from lightning_modules.kpod.weighting.module import WeightingConfig, WeightingModule
from pipelines.callbacks import SeedEachBatch
from pipelines.checkpoints import WholeFiles

WIDTH = 24  # of the student's embedding


def data_in(folder, count=40, batch_size=8):
    rows = problems({"train": count}, 3, 0)
    tokenizer = train_tokenizer([" ".join(Wording().parts(row)) for row in rows], 300, for_answers=True)
    return WeightingData(make_samples(folder / "samples", rows, Wording(), tokenizer, 1000)[0], tokenizer, batch_size)


def embedding_for(data):
    return torch.randn(len(data.tokenizer), WIDTH, generator=torch.Generator().manual_seed(7))


def module_for(data, folder, **config):
    chosen = WeightingConfig(batch_size=data.batch_size, **{"epochs": 3, "allow_collapse": True, **config})
    return WeightingModule(chosen, embedding_for(data), folder)


def trainer_for(epochs=3, *callbacks, **options):
    return Trainer(accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                   enable_model_summary=False, num_sanity_val_steps=0, gradient_clip_val=1.0, use_distributed_sampler=False,
                   plugins=[WholeFiles()], callbacks=[SeedEachBatch(3), *callbacks], **options)
