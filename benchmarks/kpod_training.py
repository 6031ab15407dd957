"""A training step of our distillation beside one of TRL's SFTTrainer: the same student, the same samples in the same batches, one run."""

import copy
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from optimizer_step import Goal, judged, table

from datamodules.kpod import KpodData
from lightning_modules.language.llama import new_llama

BATCH, WARM_UP = 8, 5
LEARNING_RATE, CLIP = 1e-3, 1.0
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STEP = Goal("ours / TRL", 1.0)


def clock() -> float:
    """Seconds of this process on a CPU, where others may take the core; of the wall on a GPU, once it is idle."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize(DEVICE)
        return time.perf_counter()
    return time.process_time()


def data_section(root: str, cache: Path) -> dict[str, Any]:
    """Choose GSM8K in the folder `root`, or made problems."""
    source: dict[str, Any] = {"root": root, "dataset": "gsm8k", "vocab_size": 4096} if root else {"problems": 1000, "held_out_problems": 50}
    return {**source, "cache": str(cache), "batch_size": BATCH, "seed": 1}


@dataclass
class Steps:
    """The steps of one turn of one contender: when each ended, and its loss."""

    ends: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Time of all steps after the first ones."""
        return self.ends[-1] - self.ends[WARM_UP - 1]


@dataclass
class Training:
    """Turns of both over the same batches."""

    tokens: int  # of the timed steps
    parameters: int
    ours: list[Steps] = field(default_factory=list)
    trl: list[Steps] = field(default_factory=list)
    version: str = ""

    @property
    def ratio(self) -> float:
        return statistics.median(ours.seconds / trl.seconds for ours, trl in zip(self.ours, self.trl, strict=True))

    @property
    def difference(self) -> float:
        """Largest relative difference between the losses of a step."""
        ours, trl = (np.array([steps.losses for steps in turns]) for turns in (self.ours, self.trl))
        return float(np.abs(ours / trl - 1).max())


class Watch(Callback):
    """Note the end and the loss of each of our steps, the samples in it, and the weights before the first."""

    def __init__(self) -> None:
        self.steps, self.indices, self.weights, self.parameters = Steps(), [], {}, 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.weights = copy.deepcopy(pl_module.model.state_dict())
        self.parameters = sum(p.numel() for p in pl_module.parameters())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.losses.append(float(outputs["loss"]))
        self.indices += batch["index"].tolist()
        self.steps.ends.append(clock())


def our_turn(root: str, cache: Path, folder: Path, steps: int) -> Watch:
    """Train as `fivefold train` does: its Trainer with all callbacks, metrics written every 10 steps; no validation."""
    from pipelines.build import build
    from pipelines.config import compose

    section = [f"data.{name}={value}" for name, value in data_section(root, cache).items()]
    config = compose([
        "method=kpod", "module.student=tiny", "optim=adamw", "logger=csv", *section, f"optim.lr={LEARNING_RATE}",
        "optim.schedule.name=constant", "optim.schedule.warmup=0", "module.token_weights=off", "module.progressive=false",
        f"trainer.max_steps={steps}", f"trainer.gradient_clip_val={CLIP}", "trainer.limit_val_batches=0", "trainer.log_every_n_steps=10",
        "trainer.precision=32-true", "trainer.threads=1", f"trainer.accelerator={DEVICE.type.replace('cuda', 'gpu')}"])
    folder.mkdir()
    built, watch = build(config, folder), Watch()
    built.trainer.callbacks.append(watch)
    built.trainer.fit(built.module, datamodule=built.data)
    return watch


def trl_turn(data: KpodData, ours: Watch, folder: Path, steps: int) -> Steps:
    """Let SFTTrainer train on the samples of our steps in the same order, from the same weights."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class TrlWatch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            found.ends.append(clock())

    found, samples = Steps(), data.samples
    spans = [samples.span(index) for index in ours.indices]
    rows = {"input_ids": [samples.ids[span].tolist() for span in spans],
            "labels": [np.where(samples.steps[span] == -1, -100, samples.ids[span]).tolist() for span in spans]}
    model = new_llama("tiny", data.vocab_size, data.block_size, data.eos_token_id)
    model.load_state_dict(ours.weights)
    arguments = SFTConfig(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=LEARNING_RATE, max_grad_norm=CLIP,
        lr_scheduler_type="constant", weight_decay=0.0, train_sampling_strategy="sequential", dataset_kwargs={"skip_prepare_dataset": True},
        use_cpu=DEVICE.type == "cpu", bf16=False, gradient_checkpointing=False, dataloader_pin_memory=False, report_to="none",
        save_strategy="no", logging_steps=10, disable_tqdm=True, max_length=None)
    trainer = SFTTrainer(model, args=arguments, train_dataset=Dataset.from_dict(rows), processing_class=data.tokenizer,
                         callbacks=[TrlWatch()])
    trainer.train()
    found.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return found


def measure_training(data: KpodData, root: str, folder: Path, steps: int, rounds: int) -> Training | None:
    """Let both train in turns; None where TRL is not installed."""
    try:
        import trl
    except ImportError:
        return None
    found: Training | None = None
    for turn in range(rounds):
        ours = our_turn(root, data.cache, folder / f"ours-{turn}", steps)
        found = found or Training(_tokens(data, ours.indices), ours.parameters, version=trl.__version__)
        found.ours.append(ours.steps)
        found.trl.append(trl_turn(data, ours, folder / f"trl-{turn}", steps))
        means = np.array(ours.steps.losses).reshape(-1, 10).mean(1)  # TRL tells the mean of every ten
        ours.steps.losses = means.tolist()
    return found


def _tokens(data: KpodData, indices: list[int]) -> int:
    return int(np.diff(data.samples.offsets)[indices[WARM_UP * BATCH :]].sum())


def training_report(found: Training | None) -> str:
    if found is None:
        return "TRL is not installed; `make bench` installs it."
    speed = [found.tokens / statistics.median(turn.seconds for turn in turns) for turns in (found.ours, found.trl)]
    header = ["student", "our tokens/s", f"TRL {found.version}, tokens/s", f"time of a step, {STEP.name} (goal ≤ {STEP.limit})",
              "losses differ by"]
    return table(header, [[f"LLaMA of {found.parameters / 1e6:.1f} M", *(f"{value:,.0f}" for value in speed), judged(STEP, found.ratio),
                          f"{found.difference:.1e}"]])
