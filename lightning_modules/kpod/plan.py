"""What a distillation is taught, found once for all runs that ask the same: token weights, difficulties, the schedule of given steps.

Each lies in a folder named after all that decides it, so that another seed, student, data set or setting finds a folder of its own, and
the same run, started again, finds what it had.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from datamodules.cache import build_once
from datamodules.kpod import KpodData
from lightning_modules.kpod.clusters import cluster, question_vectors, source_key
from lightning_modules.kpod.difficulty import nll_of_all, step_difficulties
from lightning_modules.kpod.schedule import Schedule, ScheduleSection, make_schedule
from lightning_modules.kpod.weighting.artefact import read_weights
from lightning_modules.processes import from_first

log = logging.getLogger(__name__)

FORMAT = 1  # part of every key: raise it when what is stored, or how it is found, changes


class Plan:
    """Finds what the samples of `data`, which is set up, are taught; `student` names the weights that the student starts from.

    `config` is a KpodModuleConfig.
    """

    def __init__(self, config: Any, data: KpodData, student: str) -> None:
        self.config, self.data, self.student = config, data, student
        self.difficulties: np.ndarray | None = None  # (Σ n_i,) float64
        self.schedule: Schedule | None = None

    @property
    def section(self) -> ScheduleSection:
        """The settings of the schedule, ablations included."""
        return self.config.schedule if self.config.diversity else replace(self.config.schedule, beta=0.0)

    @property
    def weights_folder(self) -> Path:
        return self._folder("weights", self.student, asdict(self.config.weighting), self.data.seed)

    @property
    def difficulty_folder(self) -> Path:
        weights = self.weights_folder.name if self.config.difficulty_weights == "learned" else None
        return self._folder("difficulty", self.student, weights)

    def schedule_folder(self, stages: int) -> Path:
        return self._folder("schedule", self.difficulty_folder.name, asdict(self.section), source_key(self.section), stages, self.data.seed)

    def _folder(self, kind: str, *decisive: Any) -> Path:
        content = repr((FORMAT, self.data.samples.key, *decisive)).encode()
        return self.data.cache / "kpod" / kind / hashlib.blake2b(content, digest_size=10).hexdigest()

    @property
    def taught_weights(self) -> np.ndarray | None:
        """The factor of each token in the loss, (L,) float32; None: 1 for all."""
        if self.config.token_weights == "off":
            return None
        floor = np.float32(self.config.weight_floor)
        return floor + (1 - floor) * self._weights()

    def _weights(self) -> np.ndarray:
        return read_weights(self.weights_folder, self.data.samples)

    @property
    def has_difficulties(self) -> bool:
        return self.difficulty_folder.is_dir()

    def find_difficulties(self, logits: Callable[[dict[str, Tensor]], Tensor], batch_size: int) -> None:
        """Read the difficulty of every step, or work it out with `logits` of the student as it is; every process has to call this."""
        samples, folder = self.data.samples, self.difficulty_folder
        if not from_first(self.has_difficulties):
            log.info("difficulty: one forward over %d samples", len(samples))
            nll = nll_of_all(samples, lambda indices: self.data.full_batches(indices, batch_size), logits,
                             self._folder("nll", self.student))
            weights = self._weights() if self.config.difficulty_weights == "learned" else None
            found = step_difficulties(nll, samples, weights)

            def build(temporary: Path) -> None:
                np.savez(temporary / "difficulty.npz", difficulties=found, counts=samples.counts)
                facts = {"samples": samples.key, "student": self.student, "mean": float(found.mean()), "steps": len(found)}
                (temporary / "meta.json").write_text(json.dumps(facts, indent=1))

            build_once(folder, build)
        self.difficulties = np.load(folder / "difficulty.npz")["difficulties"]

    def find_schedule(self, stages: int, embedding: Callable[[], np.ndarray]) -> None:
        """Read the schedule, or work it out; `embedding` gives the student's input embeddings (V, H), by which questions are clustered."""
        folder = self.schedule_folder(stages)
        build_once(folder, lambda temporary: self._schedule(stages, embedding, temporary))
        self.schedule = Schedule.load(folder)
        log.info("schedule: %d stages, each taking %d given steps from the questions that it chooses; %.1f %% of the difficulty before the "
                 "first, %.1f %% of the questions unfinished after the last", stages, self.schedule.step,
                 100 * self.schedule.difficulty[0] / self.schedule.budget[-1], 100 * self.schedule.unfinished)

    def _schedule(self, stages: int, embedding: Callable[[], np.ndarray], folder: Path) -> None:
        assert self.difficulties is not None
        samples, section, seed = self.data.samples, self.section, self.data.seed
        if section.beta:
            clusters = cluster(question_vectors(samples, section, embedding), section.clusters, seed)
        else:
            clusters = np.zeros(len(samples), np.uint8)
        schedule = make_schedule(self.difficulties, samples.counts, clusters, section, stages, seed)
        schedule.save(folder)
        np.save(folder / "clusters.npy", clusters)
        facts = {"samples": samples.key, "difficulty": self.difficulty_folder.name, "seed": seed, **asdict(section), **schedule.facts()}
        (folder / "meta.json").write_text(json.dumps(facts, indent=1))
