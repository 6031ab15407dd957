"""Learning which tokens of a rationale matter: a generator of weights and a predictor of the answer, trained against each other."""

import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from torch import Tensor
from torchmetrics import MeanMetric

from datamodules.blocks import PADDING
from datamodules.weighting import KINDS, WeightingData
from lightning_modules.base import MethodModule, OptimizerFactory, Phase, optimizer_steps
from lightning_modules.kpod.weighting import prefixes as cuts
from lightning_modules.kpod.weighting.artefact import write_weights
from lightning_modules.kpod.weighting.masks import MaskSchedule, random_mask, relaxed_mask
from lightning_modules.kpod.weighting.network import Batch, WeightingNetwork
from lightning_modules.kpod.weighting.picture import draw_html, draw_png, weighed
from lightning_modules.optim.adamw import AdamW, AdamWConfig, Named

FRESH = ("tiny", "small")  # predictors without pretrained weights
COLLAPSED = (0.02, 0.98)  # a mean weight outside says that nothing, or everything, is masked
WEIGHED_TOGETHER = 64  # samples in a batch without gradients
SHOWN = 6  # rationales in the pictures
MEANS = ("answer_loss", "answer_loss_masked", "answer_loss_question", "mask_ratio", "weight", *(f"weight_{kind}" for kind in KINDS))


@dataclass(frozen=True)
class WeightingConfig:
    predictor: str = "tiny"
    """what predicts the answer: tiny or small with fresh weights, or the hub name or folder of a T5, such as google/flan-t5-large"""
    epochs: int = 3
    """passes over the training samples"""
    batch_size: int = 16
    """samples of each process in a batch; each is read as often as it has prefixes"""
    lr: float | None = None
    """learning rate of the predictor; None: 3e-3 with fresh weights, 5e-5 with pretrained ones"""
    generator_lr: float = 1e-3
    """learning rate of the generator of weights"""
    weight_decay: float = 0.0
    """decoupled weight decay of matrices"""
    alpha: float = 0.5
    """price of a kept token against the answer's loss in nats"""
    tau_start: float = 1.0
    """temperature of the masks at the beginning; it falls linearly"""
    tau_end: float = 0.5
    """temperature of the masks at the end"""
    warmup: float | None = None
    """share of the training with random masks, in which the predictor learns; None: 0.5 with fresh weights, 0.1 with pretrained ones"""
    ramp: float = 0.1
    """share of the training, after the warm-up, in which the price rises from 0 to alpha"""
    mask_share: float = 0.3
    """share of the tokens that random masks hide"""
    prefixes: int | None = None
    """beginnings of a rationale from which the answer is predicted, beside the whole; None: 1 with fresh weights, 3 with pretrained ones"""
    prefix_kind: Literal["some_step_ends", "every_step_end", "some_lengths"] = "some_step_ends"
    """which beginnings: some that end with a step, all of these, or any number of tokens"""
    hidden: int = 256
    """width of the generator's hidden layer"""
    heads: int = 8
    """heads of the generator's attention"""
    hard: bool = False
    """masks of 0 and 1 with straight-through gradients, instead of soft ones; they tend to collapse"""
    mode: Literal["mean", "sum"] = "mean"
    """both parts of the loss as means, or as the paper's sums over prefixes and tokens: long rationales then count more"""
    mask_at: Literal["embeddings", "context"] = "embeddings"
    """where masks go: on the tokens, or behind the generator's attention, where kept tokens tell of masked ones"""
    masked_token: Literal["learned", "zero"] = "learned"
    """what a masked token becomes"""
    freeze_predictor: bool = False
    """train only the generator after the warm-up"""
    held_out: float = 0.05
    """share of the samples, at most 512, on which this training is validated"""
    allow_collapse: bool = False
    """go on with weights that are nearly all 0 or nearly all 1"""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "hidden", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be 1 or above, not {getattr(self, name)}")
        for name in ("lr", "generator_lr", "tau_start", "tau_end"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name}: must be above 0, not {getattr(self, name)}")
        for name in ("alpha", "weight_decay", "prefixes"):
            if getattr(self, name) is not None and not getattr(self, name) >= 0:
                raise ValueError(f"{name}: must be 0 or above, not {getattr(self, name)}")
        for name in ("warmup", "ramp", "mask_share", "held_out"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: must lie in 0..1 (1 excluded), not {getattr(self, name)}")
        if self.random_share + self.ramp >= 1:
            raise ValueError(f"ramp: must end before the training does: warmup + ramp below 1, not {self.random_share + self.ramp}")

    def without_effect(self) -> dict[str, str]:
        """Name what other settings leave idle."""
        idle = {"prefixes": "prefix_kind=every_step_end takes all"} if self.prefix_kind == "every_step_end" else {}
        if not self.random_share:
            idle |= dict.fromkeys(("mask_share", "freeze_predictor"), "warmup=0 means no random masks")
        return idle

    @property
    def is_fresh(self) -> bool:
        """Whether the predictor starts without pretrained weights."""
        return self.predictor in FRESH

    @property
    def random_share(self) -> float:
        return self.warmup if self.warmup is not None else 0.5 if self.is_fresh else 0.1

    @property
    def rate(self) -> float:
        return self.lr if self.lr is not None else 3e-3 if self.is_fresh else 5e-5

    @property
    def beginnings(self) -> int:
        return self.prefixes if self.prefixes is not None else 1 if self.is_fresh else 3


class TwoRates(AdamW):
    """AdamW whose first group is the generator of weights, and whose second is everything else."""

    def grouped(self, named: Named) -> list[Named]:
        return [[pair for pair in named if is_generator(pair[0])], [pair for pair in named if not is_generator(pair[0])]]


def is_generator(name: str) -> bool:
    """Tell by its name whether a parameter belongs to the generator."""
    return name.startswith("network.weigher.")


class WeightingModule(MethodModule):
    """Eq 2 to 7 of KPOD over the student's frozen `embedding` (V, E); leaves the weight of every token in `folder` when the fit ends."""

    STRATEGIES = ("single", "ddp")

    def __init__(self, config: WeightingConfig, embedding: Tensor, folder: Path | None) -> None:
        super().__init__(config, OptimizerFactory(TwoRates, AdamWConfig(config.rate, weight_decay=config.weight_decay)))
        self.student_embedding, self.folder = embedding, folder
        self.network: Any = None  # made in configure_model, under the run's seed
        self.masks = MaskSchedule(config.alpha, config.random_share, config.ramp, config.tau_start, config.tau_end)
        self.means = torch.nn.ModuleDict({name: MeanMetric(nan_strategy="disable") for name in MEANS})
        self.kinds = torch.empty(0, dtype=torch.long)  # (V,) of each token, as its place in KINDS
        self.outcome: np.ndarray | None = None  # (L,) float32 weights, when the training is over
        self.steps = 0  # of the optimizer in the whole training

    def configure_model(self) -> None:
        """Build the network; called by Lightning on every process, more than once."""
        if self.network is None:
            c = self.config
            self.network = WeightingNetwork(self.student_embedding, c.predictor, c.heads, c.hidden, in_context=c.mask_at == "context",
                                            learned=c.masked_token == "learned")
            # torch's DistributedDataParallel would send the student's embedding around before every step
            self._ddp_params_and_buffers_to_ignore = ["network.embedding"]

    def configure_optimizers(self) -> Any:
        """Make the optimizer; both learning rates stay as they are."""
        optimizer = self.optimizer([(name, p) for name, p in self.named_parameters() if p.requires_grad])
        optimizer.param_groups[0]["lr"] = self.config.generator_lr
        return optimizer

    def on_fit_start(self) -> None:
        self.steps = optimizer_steps(self.trainer)
        self.kinds = self.batches.kinds(len(self.student_embedding)).to(self.device)

    @property
    def batches(self) -> WeightingData:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def progress(self) -> float:
        """The share of the training that is done."""
        return self.trainer.global_step / self.steps

    def draw_prefixes(self, steps: Tensor) -> cuts.Prefixes:
        """Choose the beginnings of each rationale from which the answer is predicted."""
        if self.config.prefix_kind == "every_step_end":
            return cuts.every_step_end(steps)
        draw = cuts.some_lengths if self.config.prefix_kind == "some_lengths" else cuts.some_step_ends
        return draw(steps, self.config.beginnings)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        progress, config = self.progress, self.config
        logits, embedded = self.network.logits(batch)
        if self.masks.is_random(progress):
            mask = random_mask(logits, config.mask_share) + 0 * logits  # every parameter has a gradient, as processes expect it
        else:
            mask = relaxed_mask(logits, self.masks.temperature(progress), config.hard)
        prefixes = self.draw_prefixes(batch["steps"])
        loss = self.network.loss(batch, embedded, mask, prefixes, self.masks.price(progress), by_length=config.mode == "sum")
        self.log("train/loss", loss.total, prog_bar=True, sync_dist=True)
        self.log("train/answer_loss", loss.answer, sync_dist=True)
        self.log("train/mask_ratio", loss.ratio, sync_dist=True)
        return loss.total

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Let the predictor be where it was trained enough: a parameter without a gradient stays as it is."""
        if self.config.freeze_predictor and not self.masks.is_random(self.progress):
            for name, parameter in self.named_parameters():
                if not is_generator(name):
                    parameter.grad = None

    def on_validation_epoch_start(self) -> None:
        for metric in self.means.values():
            metric.reset()  # type: ignore[operator]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        there, steps = batch["index"] != PADDING, batch["steps"]
        logits, embedded = self.network.logits(batch)
        weights = logits.sigmoid()
        kept = (weights > 0.5).float()
        whole, question = cuts.whole(steps), cuts.nothing(steps)
        self.note("answer_loss", self.network.answer_nll(batch, embedded, torch.ones_like(kept), whole)[there])
        self.note("answer_loss_masked", self.network.answer_nll(batch, embedded, kept, whole)[there])
        self.note("answer_loss_question", self.network.answer_nll(batch, embedded, kept, question)[there])
        tokens = (steps >= 0) & there[:, None]
        self.note("mask_ratio", kept[tokens])
        self.note("weight", weights[tokens])
        for number, kind in enumerate(KINDS):
            self.note(f"weight_{kind}", weights[tokens & (self.kinds[batch["input_ids"]] == number)])

    def note(self, name: str, values: Tensor) -> None:
        """Count values towards a mean of this validation."""
        self.means[name].update(values.float())  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        for name, metric in self.means.items():
            value = metric.compute().item()  # type: ignore[operator]
            if not math.isnan(value):  # a kind of token that does not occur
                self.log(f"val/{name}", value, prog_bar=name == "answer_loss_masked", sync_dist=True)

    def on_train_end(self) -> None:
        self.finish()

    def on_fit_end(self) -> None:
        """Come to the outcome where it was not reached in training: a resumed fit that had no step left."""
        self.finish()
        self.trainer.strategy.barrier("the token weights are written")

    def finish(self) -> None:
        """Weigh every token, judge the outcome and write it, once the training is over; every process comes to the same outcome.

        Raises ValueError if the weights say nothing.
        """
        if self.outcome is not None or self.trainer.global_step < self.steps:
            return
        weights = self.weigh()
        rationale = self.batches.samples.steps >= 0
        refuse_collapse(float(weights[rationale].mean()), self.config)
        self.outcome = weights
        if self.folder is not None and self.trainer.is_global_zero:
            write_weights(self.folder, weights, self.batches.samples, self.facts(weights))

    @torch.no_grad()
    def weigh(self) -> np.ndarray:
        """Return the weight of each token of all samples, (L,) float32: w in the rationale, 1 elsewhere; nothing is drawn."""
        samples, training = self.batches.samples, self.training
        self.to(self.trainer.strategy.root_device).eval()
        found = np.ones(len(samples.ids), np.float32)
        for batch in self.batches.everything(WEIGHED_TOGETHER):
            weights = self.network.weights({name: value.to(self.device) for name, value in batch.items()}).cpu().numpy()
            for index, row, steps in zip(batch["index"].tolist(), weights, batch["steps"].numpy(), strict=True):
                span = samples.span(index)
                found[span][samples.steps[span] >= 0] = row[steps >= 0]
        self.train(training)
        return found

    def facts(self, weights: np.ndarray) -> dict[str, Any]:
        """Return what the artefact says of itself."""
        samples = self.batches.samples
        rationale = samples.steps >= 0
        kinds = self.kinds.cpu().numpy()[samples.ids[rationale]]
        by_kind = {kind: float(weights[rationale][kinds == number].mean()) for number, kind in enumerate(KINDS) if (kinds == number).any()}
        validation = {name: float(value) for name, value in self.trainer.callback_metrics.items() if name.startswith("val/")}
        return {"mean_weight": float(weights[rationale].mean()), "kept": float((weights[rationale] > 0.5).mean()), "by_kind": by_kind,
                "validation": validation, "steps": self.steps, "config": asdict(self.config),
                "versions": {"torch": torch.__version__, "transformers": transformers.__version__}}

    def pictures(self, folder: Path) -> list[Path]:
        """Draw the weights of the first held-out rationales, once they are known."""
        self.finish()
        if self.outcome is None:
            return []
        data = self.batches
        shown = [weighed(data.samples, self.outcome, index, data.tokenizer) for index in data.held_out[:SHOWN].tolist()]
        return [draw_html(folder / "token_weights.html", shown), draw_png(folder / "token_weights.png", shown)]


def refuse_collapse(mean: float, config: WeightingConfig) -> None:
    """Raise ValueError, or warn where that was asked for, if the mean weight of the rationale tokens says that the training failed."""
    low, high = COLLAPSED
    if low <= mean <= high:
        return
    if mean < low:
        found = f"is below {low}: nearly every token is masked"
        remedy = (f"lower alpha (now {config.alpha}), or let the predictor learn longer before masks cost anything: raise "
                  f"module.weighting.warmup (now {config.random_share}) or epochs (now {config.epochs})")
        remedy += ", or set hard=false" if config.hard else ""
    else:
        found = f"is above {high}: hardly any token is masked"
        remedy = f"raise alpha (now {config.alpha}), or let the generator learn longer: raise module.weighting.epochs (now {config.epochs})"
    message = f"module.weighting.alpha: the weighting has collapsed, its mean token weight {mean:.3f} {found}; {remedy}"
    if not config.allow_collapse:
        raise ValueError(f"{message}; module.weighting.allow_collapse=true goes on with such weights")
    warnings.warn(message, stacklevel=2)


def weighting_phase(config: WeightingConfig, embedding: Tensor, data: Any, folder: Path) -> Phase:
    """Describe the training of token weights for the samples of `data`, a KpodData that is set up, in the student's embedding (V, E)."""
    batches = WeightingData(data.samples, data.tokenizer, config.batch_size, config.held_out, data.seed,
                            None if config.is_fresh else config.predictor)
    return Phase("weights", folder, WeightingModule(config, embedding, folder), batches, config.epochs)
