"""What does KPOD cost? Step difficulties, the schedule and a training step, each beside what it replaces or another package, as ratios.

    python benchmarks/kpod.py [--root FOLDER] [--rounds 5]

One process and one CPU thread (or the GPU where there is one). Contenders take turns, so that a disturbance of the machine meets all of
them; medians are compared, and times are those of the process on a CPU. The tables go into RESULTS.md. With FOLDER, that of gsm8k.jsonl,
the real questions are used, else made ones.
"""

import argparse
import math
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from kpod_training import BATCH, DEVICE, Training, clock, data_section, measure_training, training_report
from optimizer_step import Goal, judged, table
from results import write_section
from torch import Tensor

from datamodules.blocks import Batch
from datamodules.collation import FullBatches, TrainingBatches, full_batches
from datamodules.curriculum import Curriculum
from datamodules.kpod import KpodData, KpodDataConfig
from datamodules.samples import Samples, make_samples
from lightning_modules.kpod import schedule as schedules
from lightning_modules.kpod.difficulty import nll_of_all, step_difficulties
from lightning_modules.kpod.loss import token_nll
from lightning_modules.kpod.schedule import ScheduleSection
from lightning_modules.kpod.solver import solve
from lightning_modules.language.llama import new_llama

STAGES, BETA, CLUSTERS = 10, 12.0, 5
STAGE_SECONDS = Goal("dearest stage, s", 5.0)


def open_data(root: str, cache: Path) -> KpodData:
    """Tokenise GSM8K, or made problems where there is no folder."""
    data = KpodData(KpodDataConfig(**data_section(root, cache)))
    data.setup()
    return data


@dataclass
class Taken:
    """Seconds of ours and of the peer, in turns."""

    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)

    def take_turns(self, ours: Callable[[], Any], peer: Callable[[], Any], rounds: int) -> tuple[Any, Any]:
        """Time both `rounds` times and return what they found last."""
        results = [None, None]
        for _ in range(rounds):
            for which, (work, seconds) in enumerate(((ours, self.ours), (peer, self.peer))):
                start = clock()
                results[which] = work()
                seconds.append(clock() - start)
        return results[0], results[1]

    @property
    def medians(self) -> tuple[float, float]:
        return statistics.median(self.ours), statistics.median(self.peer)

    @property
    def ratio(self) -> float:
        return self.medians[0] / self.medians[1]


@dataclass
class Difficulty(Taken):
    """One forward beside one a step over the same samples, and the largest difference between the difficulties that they find."""

    samples: int = 0
    steps: float = 0.0  # a sample, on average
    difference: float = 0.0


def measure_difficulty(data: KpodData, count: int, rounds: int, size: str = "tiny") -> Difficulty:
    """Let both ways take turns over the first `count` samples, with a LLaMA of random weights."""
    torch.manual_seed(0)
    model = new_llama(size, data.vocab_size, data.block_size).to(DEVICE).eval()
    with tempfile.TemporaryDirectory() as folder:
        samples, _ = make_samples(Path(folder), data.samples.rows[:count], data.wording, data.tokenizer, data.config.max_tokens)
    dataset = FullBatches(TrainingBatches(Curriculum(samples), data.form))

    def batches(indices: list[int]) -> Iterator[Batch]:
        return full_batches(dataset, indices, BATCH)

    def forward(batch: Batch) -> Tensor:
        return model(input_ids=batch["input_ids"].to(DEVICE), attention_mask=batch["attention_mask"].to(DEVICE)).logits

    def ours() -> np.ndarray:
        with tempfile.TemporaryDirectory() as work:
            return step_difficulties(nll_of_all(samples, batches, forward, Path(work)), samples)

    found = Difficulty(samples=len(samples), steps=float(samples.counts.mean()))
    one, each = found.take_turns(ours, lambda: one_forward_a_step(samples, batches, forward), rounds)
    found.difference = float(np.abs(one - each).max())
    return found


@torch.no_grad()
def one_forward_a_step(samples: Samples, batches: Callable[[list[int]], Iterable[Batch]], forward: Callable[[Batch], Tensor]) -> np.ndarray:
    """Find the difficulty of each step the plain way, (Σ n_i,): a forward over everything up to its end, for batches of equal length."""
    found, starts = np.zeros(samples.counts.sum()), np.cumsum(samples.counts) - samples.counts
    for batch in batches(np.argsort(np.diff(samples.offsets), kind="stable").tolist()):
        rows = batch["index"].numpy()
        for step in range(int(samples.counts[rows].max())):
            here = np.flatnonzero(samples.counts[rows] > step)
            begins, ends = (samples.first(rows[here], edge) - samples.offsets[rows[here]] - 1 for edge in (step, step + 1))
            part = {name: batch[name][here, : ends.max()] for name in ("input_ids", "attention_mask", "labels")}
            nll = token_nll(forward(part), part["labels"].to(DEVICE)).cpu().numpy()
            for row, begin, end, values in zip(rows[here], begins, ends, nll, strict=True):
                found[starts[row] + step] = values[begin:end].mean(dtype=np.float64)
    return found


@dataclass
class Scheduling(Taken):
    """The whole table and its dearest stage; ours and the peer are seconds of that stage's greedy."""

    questions: int = 0
    table: float = 0.0
    worst: float = 0.0


def measure_schedule(counts: np.ndarray, rounds: int) -> Scheduling:
    """Time the table for questions with `counts` steps and log-normal difficulties, and the greedy of its dearest stage in plain Python."""
    random = np.random.default_rng(0)
    difficulties, clusters = random.lognormal(0, 0.9, counts.sum()), random.integers(0, CLUSTERS, len(counts))
    calls: list[tuple[float, tuple[Any, ...]]] = []

    def timed(*arguments: Any) -> np.ndarray:
        start = clock()
        chosen = solve(*arguments)
        calls.append((clock() - start, arguments))
        return chosen

    found = Scheduling(questions=len(counts))
    start = clock()
    with patch.object(schedules, "solve", timed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how much the schedule covers is not the question here
        schedules.make_schedule(difficulties, counts, clusters, ScheduleSection(beta=BETA, clusters=CLUSTERS), STAGES)
    found.table = clock() - start
    found.worst, (costs, kinds, budget, beta, _) = max(calls, key=lambda call: call[0])
    sorted_once, by_heads = found.take_turns(lambda: solve(costs, kinds, budget, beta, augment=False),
                                             lambda: greedy_by_heads(costs, kinds, budget, beta), rounds)
    assert np.array_equal(sorted_once, by_heads), "both greedies take the same questions in the same order"
    return found


def greedy_by_heads(costs: np.ndarray, clusters: np.ndarray, budget: float, beta: float) -> np.ndarray:
    """Take the densest affordable question again and again, in plain Python: only the cheapest of each cluster has to be looked at."""
    queues = [np.flatnonzero(clusters == name)[::-1] for name in range(CLUSTERS)]
    queues = [queue[np.argsort(-costs[queue], kind="stable")].tolist() for queue in queues]  # the cheapest last
    taken, counts, left = [], [0] * CLUSTERS, budget
    while True:
        heads = [(beta * (math.sqrt(count + 1) - math.sqrt(count)) / costs[queue[-1]], -name)
                 for name, (queue, count) in enumerate(zip(queues, counts)) if queue and costs[queue[-1]] <= left]
        if not heads:
            return np.array(taken)
        name = -max(heads)[1]
        taken.append(queues[name].pop())
        counts[name] += 1
        left -= costs[taken[-1]]


def report(difficulty: Difficulty, found: list[Scheduling], training: Training | None) -> str:
    """Write the tables of one run in Markdown."""
    one, each = difficulty.medians
    difficulties = table(
        ["samples", "steps a sample", "one forward, s", "one a step, s", "ratio", "largest difference"],
        [[str(difficulty.samples), f"{difficulty.steps:.2f}", f"{one:.2f}", f"{each:.2f}", f"{difficulty.ratio:.2f}",
          f"{difficulty.difference:.1e}"]])
    schedule = table(
        ["questions", f"table of {STAGES} stages, s", f"dearest stage, s (goal ≤ {STAGE_SECONDS.limit})", "its greedy, ms",
         "in plain Python, ms", "ratio"],
        ([f"{s.questions:,}", f"{s.table:.2f}", judged(STAGE_SECONDS, s.worst), *(f"{1000 * seconds:.1f}" for seconds in s.medians),
          f"{s.ratio:.3f}"] for s in found))
    return "\n\n".join(["**Step difficulties**", difficulties, "**Schedule**", schedule, "**Training**", training_report(training)])


def step_counts(data: KpodData, questions: int) -> np.ndarray:
    """Draw the numbers of steps of `questions` questions from those of the data; all of them as they are if they are as many."""
    counts = data.samples.counts
    return counts if len(counts) == questions else np.random.default_rng(0).choice(counts, questions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="", help="folder with gsm8k.jsonl")
    parser.add_argument("--samples", type=int, default=256, help="samples whose difficulties are worked out")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=30, help="training steps of each turn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = open_data(options.root, Path(folder))
        difficulty = measure_difficulty(data, options.samples, options.rounds)
        found = [measure_schedule(step_counts(data, questions), options.rounds) for questions in (7_473, 100_000)]
        training = measure_training(data, options.root, Path(folder), options.steps, options.rounds)
    text = report(difficulty, found, training)
    print(text)
    write_section("kpod", text)


if __name__ == "__main__":
    main()
