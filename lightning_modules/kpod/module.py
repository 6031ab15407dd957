"""Chain-of-thought distillation that looks at key tokens first and starts with the last steps (KPOD, ICML 2024, arXiv 2405.16064)."""

import csv
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import SumMetric

from datamodules.kpod import KpodData
from datamodules.tokenization import vocabulary_here
from lightning_modules.base import NothingToTrain, OptimizerFactory, Phase, Rehearsal, Table
from lightning_modules.kpod.accuracy import COLUMNS, Accuracy
from lightning_modules.kpod.clusters import source_key
from lightning_modules.kpod.generation import GenerationSection, Generator, gather_texts
from lightning_modules.kpod.loss import distillation_loss
from lightning_modules.kpod.pictures import draw_accuracy, draw_schedule
from lightning_modules.kpod.plan import Plan
from lightning_modules.kpod.schedule import ScheduleSection, stages_of
from lightning_modules.kpod.weighting.module import WeightingConfig, weighting_phase
from lightning_modules.language.base import LanguageModule
from lightning_modules.language.embedding import identity_of, input_embedding
from lightning_modules.language.head import logits_only_at
from lightning_modules.language.lora import LoraSection
from lightning_modules.language.network import Keys, Recipe, fresh_sizes

VOCABULARY = 32_000  # tokens of LLaMA and T5, assumed for an estimate where the tokenizer is not on this machine


@dataclass(frozen=True)
class KpodModuleConfig:
    student: str = "mini"
    """size of a student with fresh weights (debug, mini, tiny, small, ...), or the hub name or folder of a language model to distil into"""
    until: Literal["weights", "difficulty", "schedule", "distil"] = "distil"
    """last phase to run: each leaves what it finds in data.cache for all runs that ask the same"""
    token_weights: Literal["learned", "off"] = "learned"
    """factor of each rationale token in the loss; off: 1 (w.o.-sig)"""
    weight_floor: float = 0.0
    """smallest factor: learned ones are squeezed into weight_floor..1, so that tokens of no weight are still learned a little"""
    normaliser: Literal["tokens", "weights", "sum"] = "tokens"
    """what the loss of a step is divided by: its learned tokens on all processes, the sum of their factors, or nothing"""
    difficulty_weights: Literal["learned", "off"] = "learned"
    """share of each token in the difficulty of its step; off: equal shares (w.o.-sig-dif)"""
    progressive: bool = True
    """give the first steps in early epochs, as the schedule has it; false: always generate whole rationales (w.o.-prog)"""
    diversity: bool = True
    """let each stage choose among clusters of questions; false: as beta=0 (w.o.-div)"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, about a third more time"""
    compile: bool = False
    """compile the student with torch.compile"""
    lora: LoraSection = field(default_factory=LoraSection)
    """low-rank adapters beside a frozen student"""
    weighting: WeightingConfig = field(default_factory=WeightingConfig)
    """the training of token weights"""
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    """which steps are given when"""
    generation: GenerationSection = field(default_factory=GenerationSection)
    """how held-out questions are answered"""

    @property
    def weighs(self) -> bool:
        """Whether any phase reads learned token weights."""
        return self.token_weights == "learned" or (self.progressive and self.difficulty_weights == "learned")

    def __post_init__(self) -> None:
        if not 0 <= self.weight_floor <= 1:
            raise ValueError(f"weight_floor: must lie in 0..1, not {self.weight_floor}")
        if self.until == "weights" and not self.weighs:
            raise ValueError("until: must be another phase than weights where no phase reads token weights, not weights")
        if self.until in ("difficulty", "schedule") and not self.progressive:
            raise ValueError(f"until: must be weights or distil where progressive=false, not {self.until}")

    def without_effect(self) -> dict[str, str]:
        """Name what the ablations leave idle."""
        idle = {} if self.progressive else dict.fromkeys(("difficulty_weights", "diversity"), "progressive=false has no schedule")
        return idle if self.token_weights == "learned" else {**idle, "weight_floor": "token_weights=off makes all factors 1"}


class KpodModule(LanguageModule):
    """A student learns from rationales with Eq 15: each token by its weight, the last steps first; it is judged by its answers.

    Algorithm 1 in phases: token weights are a training of their own, before this one; `on_fit_start` finds the difficulties of all steps
    for the student as it is, and the schedule; then Lightning trains, an epoch a stage.
    """

    STRATEGIES = ("single", "ddp", "fsdp", "deepspeed")

    def __init__(self, config: KpodModuleConfig, optimizer: OptimizerFactory) -> None:
        self.pretrained = None if config.student in {*fresh_sizes(True), *fresh_sizes(False)} else config.student
        super().__init__(config, optimizer, self.pretrained)
        self.plan: Plan | None = None  # what training is taught; made in on_fit_start
        self.val_nll = SumMetric(nan_strategy="disable")
        self.val_tokens = SumMetric(nan_strategy="disable")
        self.texts: list[tuple[int, str]] = []  # of the running validation, on this process

    @property
    def data(self) -> KpodData:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def recipe(self) -> Recipe:
        return self._recipe(self.data, str(self.trainer.precision))

    def _recipe(self, data: Any, precision: str) -> Recipe:
        config = self.config
        return Recipe(
            config.student, self.pretrained, data.vocab_size, data.block_size, data.eos_token_id, data.pad_token_id, data.seq2seq,
            config.gradient_checkpointing, config.compile, config.lora, precision, Keys("module.student", "data.max_tokens", "data.layout"),
        )

    def phases(self, data: KpodData) -> Iterable[Phase]:
        """Give the training of token weights, where a later phase reads them. Raises ValueError for what the later ones would not find."""
        if self.config.progressive:
            source_key(self.config.schedule)
        if self.config.weighs:
            recipe = self._recipe(data, "32-true")
            yield weighting_phase(self.config.weighting, input_embedding(recipe), data, self._plan(data).weights_folder)

    def _plan(self, data: KpodData) -> Plan:
        identity = identity_of(self._recipe(data, "32-true"), data.seed)
        return Plan(self.config, data, identity)

    def on_fit_start(self) -> None:
        """Work out what training is taught. Raises NothingToTrain where the run was to end before it."""
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]  # one batch of everything: nothing is taught
            return
        config, plan = self.config, self._plan(self.data)
        if config.until == "weights":
            raise NothingToTrain(f"token weights: {plan.weights_folder}")
        if config.progressive:
            self._find_difficulties(plan)
            if config.until == "difficulty":
                raise NothingToTrain(f"difficulties of the steps: {plan.difficulty_folder}")
            stages = stages_of(config.schedule, self.trainer.max_epochs)
            plan.find_schedule(stages, lambda: input_embedding(self.recipe()).numpy())
            if config.until == "schedule":
                raise NothingToTrain(f"schedule: {plan.schedule_folder(stages)}")
        self.data.teach(plan.taught_weights, plan.schedule.table if plan.schedule else None, config.normaliser)
        self.plan = plan

    def _find_difficulties(self, plan: Plan) -> None:
        """Judge all steps by the student as it is. Raises ValueError where it has begun to learn."""
        if self.trainer.ckpt_path and not plan.has_difficulties:
            raise ValueError(f"run.resume: the difficulties that this run began with are gone from {plan.difficulty_folder}; "
                             "set data.cache to where they are, or start a new run")
        self.model.eval()
        plan.find_difficulties(self._logits_as_they_are, self.data.config.eval_batch_size)
        self.model.train()

    @torch.no_grad()
    def _logits_as_they_are(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the logits of the student before it learns."""
        with self.trainer.precision_plugin.forward_context():
            return self({name: value.to(self.device) for name, value in batch.items()})

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Return logits (B, T, V) at the places of the batch's labels (B, T)."""
        names = ("input_ids", "attention_mask", "decoder_input_ids")
        return self.model(**{name: batch[name] for name in names if name in batch}, use_cache=False).logits

    def learned(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (M, V), labels (M,) and weights (M,) at the places where something is to be learned.

        A compiled student gives them at all places, (B, T, ...): it would be compiled anew for each M.
        """
        labels, weights = batch["labels"], batch["weights"]
        if self.config.compile or "places" not in batch:
            return self(batch), labels, weights
        places = batch["places"]
        with logits_only_at(self.model, places):
            return self(batch), labels.flatten()[places], weights.flatten()[places]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        scale = self.trainer.world_size * self.trainer.accumulate_grad_batches
        loss, sums = distillation_loss(*self.learned(batch), batch["total"], scale)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        self.log("train/nll", sums.nll / sums.tokens, sync_dist=True)
        self.log("train/mean_weight", sums.weights / sums.tokens, sync_dist=True)
        self.log("train/learned_tokens", sums.tokens.float(), sync_dist=True, reduce_fx="sum")
        return loss

    def on_validation_epoch_start(self) -> None:
        self.texts = []
        self.generator = Generator(self.model, self.data.tokenizer, self.config.generation, self.data.seed)
        for metric in (self.val_nll, self.val_tokens):
            metric.set_dtype(torch.float64)  # here, because bf16-true casts the sums along with the weights
            metric.reset()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer questions from the first loader; from the second, take the likelihood of whole rationales."""
        if dataloader_idx == 0:
            self.texts += self.generator(batch)
        else:
            _, sums = distillation_loss(*self.learned(batch), 1.0, 1.0)
            self.val_nll.update(sums.nll.double())
            self.val_tokens.update(sums.tokens.double())

    def on_validation_epoch_end(self) -> None:
        accuracy = Accuracy()
        for index, text in gather_texts(self.texts).items():
            row = self.data.held_out[index]
            accuracy.add(index, text, row.question, row.answer)
        for name, value in accuracy.metrics().items():
            self.log(f"val/{name}", value, prog_bar=name == "accuracy", sync_dist=True)
        tokens = self.val_tokens.compute().item()
        if tokens:
            self.log("val/loss", self.val_nll.compute().item() / tokens, sync_dist=True)
        self.tables = {"answers": Table(COLUMNS, list(accuracy.rows()))}

    def pictures(self, folder: Path) -> list[Path]:
        """Draw the schedule and the accuracy by stage, and take the token weights that the first phase has drawn."""
        if self.plan is None:
            return []
        drawn = [folder / name for name in ("token_weights.html", "token_weights.png", "schedule.png", "accuracy.png")]
        for picture in drawn[:2]:
            if (made := self.plan.weights_folder / picture.name).is_file():
                shutil.copy(made, picture)
        if self.plan.schedule:
            draw_schedule(self.plan.schedule, drawn[2])
        draw_accuracy(accuracies(folder / "metrics.csv"), drawn[3], self.plan.schedule.stages if self.plan.schedule else 0)
        return [picture for picture in drawn if picture.is_file()]

    def rehearsal(self, data: Any, vocab_size: int | None) -> Rehearsal:
        """Take the vocabulary of a pretrained student from it, else of the tokenizer if it is on this machine, else assume LLaMA's."""
        notes: tuple[str, ...] = (f"length: every sample is taken to have data.max_tokens={data.max_tokens} tokens",)
        if self.pretrained:
            vocab_size = 0  # the model brings its own
        elif vocab_size is None:
            vocab_size = data.vocab_size if data.tokenizer == "train" else vocabulary_here(data.tokenizer)
        if vocab_size is None:
            vocab_size = VOCABULARY
            notes += (f"vocabulary: {VOCABULARY} tokens are assumed, because the tokenizer {data.tokenizer} is not on this machine; "
                      "write vocab_size=N for another number",)
        facts = SimpleNamespace(vocab_size=vocab_size, block_size=data.max_tokens, batch_size=data.batch_size, eos_token_id=None,
                                pad_token_id=0, seq2seq=data.layout == "seq2seq")
        tokens = torch.zeros(data.batch_size, data.max_tokens, dtype=torch.long)
        batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens, "weights": torch.ones(tokens.shape),
                 "index": tokens[:, 0], "total": torch.tensor(float(tokens.numel()))}
        return Rehearsal(facts, {**batch, "decoder_input_ids": tokens} if facts.seq2seq else batch, notes)


def accuracies(metrics: Path) -> list[tuple[int, float]]:
    """Read accuracy by stage from the file of a run's metrics: the last validation of each epoch."""
    if not metrics.is_file():
        return []
    with metrics.open(newline="") as file:
        found = {int(row["epoch"]) + 1: float(row["val/accuracy"]) for row in csv.DictReader(file) if row.get("val/accuracy")}
    return sorted(found.items())
