"""Finished runs as evidence: which belong together, what sets the others apart, and means with intervals and paired differences."""

import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

from pipelines.errors import ConfigError, hint
from pipelines.pictures import curve
from pipelines.runs import SETTINGS, read_record

LEVEL = 0.95
CHOICE = "defaults."  # before the group of a chosen file
BRINGS = {"method": ("module", "data", "optim", "trainer"), "experiment": ("module", "data", "optim", "trainer", "strategy", "checkpoint")}
SILENT = ("run.", "logger.", "cluster.", "checkpoint.", "data.cache", "trainer.threads", "trainer.log_every_n_steps")  # set no run apart


Curve = tuple[list[int], list[float]]  # optimizer steps done when a metric was measured, and its values


@dataclass(frozen=True)
class Run:
    """One run, wherever it is kept."""

    place: str  # its folder, or its address
    settings: dict[str, Any]  # dotted key -> value
    record: dict[str, Any]  # what run.json holds
    curve: Callable[[str], Curve]  # the course of a metric
    pictures: tuple[Path, ...] = ()

    @property
    def seed(self) -> int:
        return int(self.record.get("seed", 1))

    @property
    def method(self) -> str:
        return str(self.record.get("method"))

    @property
    def results(self) -> dict[str, float]:
        return {key: value for key, value in self.record.get("results", {}).items() if isinstance(value, int | float)}


@dataclass(frozen=True)
class Contender:
    """Runs that differ in their seeds only."""

    name: str
    runs: tuple[Run, ...]  # by seed

    def values(self, metric: str) -> dict[int, float]:
        """Return the figure of each seed that has one."""
        return {run.seed: run.results[metric] for run in self.runs if metric in run.results}


@dataclass(frozen=True)
class Summary:
    """Mean of n figures, and half the width of Student's 95 % interval; NaN where one figure has none."""

    mean: float
    half: float
    n: int


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Lay a tree of settings out as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises ConfigError for any other folder."""
    if not (folder / SETTINGS).is_file() or not read_record(folder):
        raise ConfigError(f"report: {folder} is no run folder: it needs {SETTINGS} and run.json")
    return Run(str(folder), flat(yaml.safe_load((folder / SETTINGS).read_text())), read_record(folder),
               partial(curve, folder / "metrics.csv"), tuple(sorted(folder.glob("*.png"))))


def finished_runs(roots: Iterable[Path]) -> list[Run]:
    """Read the finished runs in some folders, which hold runs or are one; evaluations that lack answers are named and left out."""
    folders = [folder for root in roots for folder in ([root] if (root / SETTINGS).is_file() else sorted(root.glob("*/")))]
    ended = [(folder, read_record(folder).get("status")) for folder in folders if (folder / SETTINGS).is_file()]
    if lacking := [folder.name for folder, status in ended if status == "incomplete"]:
        print(f"warning: {', '.join(lacking)}: left out, because the evaluation is incomplete; run.resume=auto goes on with it",
              file=sys.stderr)
    return [read_run(folder) for folder, status in ended if status == "finished"]


def with_settings(runs: Sequence[Run], wanted: Mapping[str, str]) -> list[Run]:
    """Keep the runs whose settings are those `wanted`, by dotted key. Raises ConfigError for a key that no run has."""
    for key in wanted:
        if runs and not any(key in run.settings for run in runs):
            raise ConfigError(f"{key}: no run has such a key.{hint(key, sorted({k for run in runs for k in run.settings}))}")
    return [run for run in runs if all(_as_written(run.settings.get(key)) == _as_written(value) for key, value in wanted.items())]


def _as_written(value: Any) -> str:
    """Write a value in one way: W&B keeps 1.0 as 1, and a word of the command line is a text."""
    if isinstance(value, list):
        return f"[{','.join(map(_as_written, value))}]"
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(number)) if number.is_integer() else str(number)


def contenders(runs: Sequence[Run]) -> list[Contender]:
    """Put runs together that differ in nothing but the seed; a contender is named after what sets it apart. The newest of a seed counts."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if not key.startswith(SILENT))
    apart = [key for key in keys if len({_as_written(run.settings.get(key)) for run in runs}) > 1]
    by_settings: dict[str, dict[int, Run]] = {}
    for run in sorted(runs, key=lambda run: run.record["started"][-1]["time"]):
        by_settings.setdefault(repr([_as_written(run.settings.get(key)) for key in apart]), {})[run.seed] = run
    found = [tuple(run for _, run in sorted(seeds.items())) for seeds in by_settings.values()]
    return [Contender(name, runs) for name, runs in sorted(zip(_names(found, apart), found, strict=True), key=lambda pair: pair[0])]


def _names(found: Sequence[Sequence[Run]], apart: Sequence[str]) -> list[str]:
    """Name contenders by their choices of files and by the values that those do not bring, or by their groups if that leaves some alike."""
    chosen = [key for key in apart if key.startswith(CHOICE)]
    brought = tuple(f"{section}." for key in chosen for section in BRINGS.get(key.removeprefix(CHOICE), (key.removeprefix(CHOICE),)))
    told = [*chosen, *(key for key in apart if not key.startswith((CHOICE, *brought)))]
    names = [" ".join(f"{key.removeprefix(CHOICE)}={_as_written(runs[0].settings.get(key))}" for key in told) for runs in found]
    if len(set(names)) == len(names):
        return [name or str(runs[0].record.get("method")) for name, runs in zip(names, found, strict=True)]
    groups = [str(runs[0].settings.get("logger.group")) for runs in found]
    if len(set(groups)) == len(groups):
        return groups
    return [" ".join(f"{key}={_as_written(runs[0].settings.get(key))}" for key in apart) for runs in found]


def summary(values: Iterable[float]) -> Summary:
    """Average figures; their interval is that of Student's t, where all are finite."""
    known = list(values)
    if not known:
        return Summary(math.nan, math.nan, 0)
    if len(known) == 1 or not all(map(math.isfinite, known)):
        return Summary(sum(known) / len(known), math.nan, len(known))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(known) - 1)) * statistics.stdev(known) / math.sqrt(len(known))
    return Summary(statistics.mean(known), half, len(known))


@dataclass(frozen=True)
class Difference:
    """A contender's figures less those of another on the same seeds, with the p-values of the paired t and Wilcoxon's test."""

    summary: Summary
    t_test: float
    wilcoxon: float


def difference(one: Contender, other: Contender, metric: str) -> Difference | None:
    """Compare two contenders seed by seed; None where they share no seed."""
    mine, theirs = one.values(metric), other.values(metric)
    gains = np.array([mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())])
    if not len(gains):
        return None
    if len(gains) < 2 or np.ptp(gains) == 0:
        return Difference(summary(gains.tolist()), math.nan, math.nan)
    return Difference(summary(gains.tolist()), float(stats.ttest_1samp(gains, 0).pvalue), float(stats.wilcoxon(gains).pvalue))


def shared_metrics(found: Sequence[Contender], asked: Sequence[str]) -> list[str]:
    """Return the metrics that are asked for, or those that every contender has. Raises ConfigError for one that nobody has."""
    known = [set(run.results) for contender in found for run in contender.runs]
    for metric in asked:
        if not any(metric in names for names in known):
            raise ConfigError(f"metric: no run has {metric}.{hint(metric, sorted(set().union(*known)))}")
    common = set.intersection(*known) - {"step", "seconds"}
    return list(asked) or sorted(name for name in common if name.startswith(("val/", "test/")))


def mean_curve(contender: Contender, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the steps that all seeds have measured, the mean over seeds there, and half the width of its interval (NaN with one seed)."""
    curves = [dict(zip(*run.curve(metric), strict=True)) for run in contender.runs]
    steps = sorted(set.intersection(*(set(one) for one in curves))) if curves else []
    points = [summary(one[step] for one in curves) for step in steps]
    return np.array(steps), np.array([p.mean for p in points]), np.array([p.half for p in points])


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """List the keys whose values differ, with both values."""
    return [(key, one.get(key), other.get(key)) for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]
