"""AV-Odyssey Bench and DeafTest (arXiv 2412.02611): models that are asked what they hear and see, and some that learn to.

The small model learns in two stages, because an ear that hears well is no good to a language model that has not learnt to ask it: first
the ear reads out what single sounds are like (a phase of its own), then the language model learns to answer questions about pairs of them,
the ear held still. An answer names the content before the letter ("second B"): supervision by the letter alone stays at chance.

An omni model has an ear that hears already. It learns the same replies, and only what connects its ear, or adapters beside its language
model, are trained.
"""

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.av_odyssey import Talk
from datamodules.cache import build_once
from lightning_modules.av_odyssey.adapter import Adapter
from lightning_modules.av_odyssey.ear import EarSection, ear_phase, load_ear
from lightning_modules.av_odyssey.examined import ExaminedModule
from lightning_modules.av_odyssey.hearing import mel_filters
from lightning_modules.av_odyssey.kinds import OMNI
from lightning_modules.av_odyssey.lessons import Lessons, blocks_to_shard, made_ready, reply_loss, save_merged
from lightning_modules.av_odyssey.omni import OmniAdapter, OmniSection
from lightning_modules.av_odyssey.oracle import Oracle
from lightning_modules.av_odyssey.replay import Replay
from lightning_modules.av_odyssey.small import SmallModel
from lightning_modules.av_odyssey.talk import SmallAdapter, vectors_of
from lightning_modules.av_odyssey.words import prompt_of, reply_of
from lightning_modules.base import NothingToTrain, OptimizerFactory, OwnFolder, Phase
from lightning_modules.language.parts import gather_to_generate, in_step

log = logging.getLogger(__name__)

FORMAT = 3  # part of every key: raise it when what is stored, or how it is found, changes
SOURCES = {"small": ("deaftest",), "oracle": ("deaftest", "deaftest_seen", "hub")}  # what those can answer that cannot answer all
SHORT = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # trainer.precision: the type of weights that are held still


@dataclass(frozen=True)
class SmallSection:
    width: int = 128
    """width of the language model"""
    layers: int = 3
    """its layers"""
    heads: int = 4
    """its attention heads"""
    reply: Literal["content", "letter"] = "content"
    """what it learns to say: the word that tells the options apart and then the letter, or the letter alone"""

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be 1 or above, not {getattr(self, name)}")
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"width: must be an even multiple of heads = {self.heads}, not {self.width}")


@dataclass(frozen=True)
class AvOdysseyModuleConfig:
    adapter: Literal["small", "oracle", "replay", "qwen2_5_omni", "qwen3_omni", "gemma4", "gemma3n", "phi4_multimodal"] = "small"
    """what replies: the small model, signal processing that knows the answers to DeafTest, the file of data.replies, or an omni model:
    Qwen2.5-Omni, Qwen3-Omni, Gemma 4, Gemma 3n or Phi-4-multimodal; the last two see with the packages of fivefold[omni]"""
    size: Literal["tiny"] = "tiny"
    """an omni model without module.pretrained: a tiny model with random weights, which shows that all works and knows nothing"""
    pretrained: str | None = None
    """an omni model: folder or Hub name of its weights and processor"""
    before: bool = False
    """an omni model: examine it before it learns, too, for a first row of figures"""
    omni: OmniSection = field(default_factory=OmniSection)
    """how an omni model is asked, and what of it learns"""
    small: SmallSection = field(default_factory=SmallSection)
    """the small model's language half"""
    ear: EarSection = field(default_factory=EarSection)
    """its ear, and how that is taught"""
    examples: int = 16
    """W&B: questions of an evaluation that it shows with their sounds and pictures, wrong ones first"""
    rule: Literal["official", "strict", "vlmevalkit"] = "official"
    """how letters are read in replies for val/accuracy; the tables have all rules"""
    unanswered: Literal["official", "wrong", "left_out"] = "official"
    """how questions count that the model failed at, by running out of memory or so: as an empty reply by each rule (for the official one an
    A), as wrong answers, or not at all. An evaluation that has such is incomplete, and asks them again when it goes on"""

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise ValueError(f"examples: must be 0 or above, not {self.examples}")

    def without_effect(self) -> dict[str, str]:
        """Name what only other adapters have."""
        idle = {} if self.adapter == "small" else dict.fromkeys(("small", "ear"), f"adapter={self.adapter} has no such model")
        if self.adapter not in OMNI:
            idle |= dict.fromkeys(("size", "pretrained", "omni", "before"), f"adapter={self.adapter} has no such model")
        return idle | ({"size": "module.pretrained names the weights"} if self.pretrained else {})

    def strategies(self) -> tuple[str, ...]:
        """Name the strategies for this adapter: what is small is not parted."""
        return ("single", "ddp", "fsdp", "deepspeed") if self.adapter in OMNI else ("single", "ddp")


class AvOdysseyModule(ExaminedModule):
    """A model behind an adapter, examined at each validation; the small one is trained, and parts of an omni model."""

    STRATEGIES = ("single", "ddp", "fsdp", "deepspeed")
    UNIT = "words"

    def __init__(self, config: AvOdysseyModuleConfig, optimizer: OptimizerFactory) -> None:
        super().__init__(config, optimizer)
        self.model: SmallModel | None = None
        self.network: Any = None  # of an omni model
        self.replier: Adapter | None = None  # what is not the small model
        self.vectors = np.empty(0, np.float32)  # of the sounds of all training questions, (N, 2, 2 ear)
        self.strict_loading = config.adapter not in OMNI  # whose checkpoints have only what was trained

    def ear_folder(self, data: Any) -> Path:
        content = repr((FORMAT, asdict(self.config.ear), data.seed, data.config.profile)).encode()
        return Path(data.config.cache).expanduser() / "av_odyssey" / "ear" / hashlib.blake2b(content, digest_size=10).hexdigest()

    def phases(self, data: Any) -> Iterable[Phase]:
        """Give the teaching of the ear."""
        if self.config.adapter == "small":
            yield ear_phase(self.config.ear, data.seed, data.config.profile, self.ear_folder(data))

    def setup(self, stage: str) -> None:
        self.data.taught, self.data.finished, self.data.as_it_comes = self._taught, self._begin, self.kept_in is not None
        name, source = self.config.adapter, self.data.config.source
        if source not in SOURCES.get(name, (source,)):
            others = [*(other for other, known in SOURCES.items() if source in known), "replay", *OMNI]
            raise ValueError(f"module.adapter: must be one of {', '.join(others)} where data.source={source}, not {name}")
        batches: int | float = self.trainer.limit_val_batches
        limited = isinstance(batches, int) or batches != 1.0 or self.trainer.fast_dev_run  # type: ignore[attr-defined]
        if self.kept_in is not None and limited:
            raise ValueError("trainer: limit_val_batches, overfit_batches and fast_dev_run must be left out where a model is examined, "
                             "which asks all questions; data.questions asks fewer")

    def _taught(self, questions: Any) -> Any:
        """Make training batches of questions, in the words of the model that learns."""
        if isinstance(self.replier, OmniAdapter):
            return Lessons(questions, self.replier)
        content = self.config.small.reply == "content"
        return Talk(questions, lambda question: (prompt_of(question), reply_of(question, content)))

    def configure_model(self) -> None:
        """Build what replies; called by Lightning on every process, more than once."""
        if self.config.adapter == "small" and self.model is None:
            section = self.config.small
            self.model = SmallModel(self.config.ear.width, section.width, section.layers, section.heads)
            self.model.encoder.requires_grad_(False)
        elif self.config.adapter in OMNI and self.replier is None:
            self.replier = self._omni()
        elif self.config.adapter != "small" and self.replier is None:
            self.replier = self._only_replies()

    def _omni(self) -> OmniAdapter:
        """Load an omni model, in its own precision to be examined as it comes, else ready to learn; and spread it over the processes."""
        config, as_it_comes = self.config, self.kept_in is not None
        dtype = SHORT.get(str(self.trainer.precision), torch.get_default_dtype())  # the default is what trainer.precision asks for
        omni = OmniAdapter.load(config.adapter, config.pretrained, config.omni, None if as_it_comes else dtype)
        if self.holds_parts and not omni.kind.learns:
            raise ValueError(f"strategy={'fsdp' if self.device_mesh else 'deepspeed'}: {omni.kind.title} is not spread over processes; "
                             "write strategy=single or ddp")
        if self.holds_parts and self.device_mesh is None and not omni.kind.gathers:
            raise ValueError(f"strategy.stage: must be 1 or 2 for {omni.kind.title}, not 3, or write strategy=fsdp: it reads weights past "
                             "their layers, where ZeRO 3 has not gathered them")
        network = omni.model = omni.model.requires_grad_(False) if as_it_comes else made_ready(omni).train()
        if config.omni.train == "projector" and not as_it_comes:
            network.get_submodule(omni.kind.projector).to(torch.get_default_dtype())
        omni.model = self.network = self.shard(network, blocks_to_shard(omni))
        gather_to_generate(network)
        if in_step(network):
            omni.in_step = self.data.in_step = True
        return omni

    def _only_replies(self) -> Adapter:
        """Make what replies without any weights."""
        replies = self.data.config.replies
        if self.config.adapter != "replay":
            return Oracle()
        if replies is None:
            raise ValueError("data.replies: must name the file of replies that module.adapter=replay scores")
        return Replay(Path(replies).expanduser())

    def _learning(self) -> set[str]:
        return {name for name, p in self.named_parameters() if p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep of an omni model only what is trained: the rest stays where it came from."""
        if self.network is not None:
            learning = self._learning()
            checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in learning}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of other parts than those that learn here: Lightning would pass over them without a word."""
        saved = checkpoint.get("state_dict", {}).keys()
        if self.network is None and saved and (other := saved ^ self.state_dict().keys()):
            raise ValueError(f"module.adapter: the checkpoint is of another model than {self.config.adapter}: only one of them has "
                             f"{min(other)}; leave module as its run has it")
        if self.network is not None and saved and (other := saved ^ self._learning()):
            raise ValueError(f"module.omni: other parts learnt in this checkpoint, such as {min(other)}; "
                             "leave module.omni as its run has it")

    def configure_optimizers(self) -> Any:
        return super().configure_optimizers() if self.model is not None or self.network is not None else None

    def on_fit_start(self) -> None:
        """Take the small model's trained ear, and hear all questions once. Raises NothingToTrain for a model that only replies."""
        if self.model is None:
            if self.network is None:
                name = self.config.adapter
                raise NothingToTrain(f"module.adapter={name} learns nothing; fivefold evaluate method=av_odyssey examines it")
            return
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.vectors = np.zeros((len(self.data.training), 2, 2 * self.config.ear.width), np.float32)
            return
        folder = self.ear_folder(self.data)
        load_ear(self.model.encoder, folder)
        hear = partial(self._hear, self.model)
        self.vectors = np.load(build_once(self._vectors_folder(folder), hear) / "vectors.npy")

    def _vectors_folder(self, ear: Path) -> Path:
        content = repr((FORMAT, ear.name, self.data.training.name)).encode()
        return ear.parent.parent / "vectors" / hashlib.blake2b(content, digest_size=10).hexdigest()

    def _hear(self, small: SmallModel, folder: Path) -> None:
        small.encoder.eval()
        np.save(folder / "vectors.npy", vectors_of(small.encoder, self.data.training, mel_filters(), self.device))

    def on_train_start(self) -> None:
        """Tell what an omni model scores before it learns, if that is asked: the row of figures before those of the first step."""
        if self.config.before and self.network is not None and self.trainer.global_step == 0:
            found = self.examine_now()
            log.info("before it learns: %s", "  ".join(f"{name} {value:.4f}" for name, value in found.items()))
            for logger in self.loggers:
                logger.log_metrics(found, step=-1)
                logger.save()

    def on_train_epoch_start(self) -> None:
        if self.model is not None:
            self.model.encoder.eval()  # its norms stay as they were taught

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if isinstance(self.replier, OmniAdapter):
            loss = reply_loss(self.network, self.replier.moved(batch))
        else:
            assert self.model is not None
            clips = torch.from_numpy(self.vectors[batch["index"].cpu().numpy()]).to(self.device)
            loss = self.model.loss(batch["words"], batch["labels"], clips)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    @property
    def untaught(self) -> bool:
        return self.kept_in is not None and (self.model is not None or (self.network is not None and self.config.pretrained is None))

    @property
    def adapter(self) -> Adapter:
        if self.model is not None:
            return SmallAdapter(self.model, self.device)
        assert self.replier is not None
        return self.replier

    def exportable(self) -> OwnFolder:
        """Write an omni model with what it has learnt as `module.pretrained` reads it. Raises ValueError for others."""
        if not isinstance(self.replier, OmniAdapter):
            raise ValueError(f"module.adapter: must be one of {', '.join(OMNI)}, for a model in the terms of transformers, not "
                             f"{self.config.adapter}")
        return OwnFolder("model", partial(save_merged, self.replier))
