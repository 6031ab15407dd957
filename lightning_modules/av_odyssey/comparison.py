"""Our scores beside published ones: by attribute and by task, each of them rebuilt from exactly the tasks that we have, too."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from datamodules.av_tasks import TASKS
from datamodules.deaftest import TASKS as HEARING
from lightning_modules.av_odyssey.averages import ATTRIBUTES, Share, averages, by_attribute, by_task
from lightning_modules.av_odyssey.published import DEAFTEST, Published, paper, rebuilt
from lightning_modules.av_odyssey.report import Report

OURS = "ours"
SUMMARY = ("beside published", "questions", OURS, "low", "high", "best", "of", "median")
AVERAGES = ("micro", "macro_tasks", "macro_attributes")


@dataclass(frozen=True)
class Beside:
    """Percent right of each model by name of what was scored; the first model is ours, whose shares have intervals.

    `names` are attributes or tasks in the benchmark's order, and `averages` are over them: of questions, tasks and attributes.
    """

    names: tuple[str, ...]
    ours: dict[str, Share]
    models: dict[str, dict[str, float]]  # published only

    @property
    def columns(self) -> tuple[str, ...]:
        """Head a table of `rows`."""
        return ("model", *self.names)

    def rows(self) -> list[tuple[str | float, ...]]:
        """Return ours and then every published model, percents with two digits."""
        found: list[tuple[str | float, ...]] = [(OURS, *(round(100 * self.ours[name].value, 2) for name in self.names))]
        return found + [(model, *(round(values[name], 2) for name in self.names)) for model, values in self.models.items()]

    def summary(self) -> list[tuple[str | float, ...]]:
        """Return a row of SUMMARY a name: ours with its interval, and the best and the middle one of the published models."""
        found: list[tuple[str | float, ...]] = []
        for name in self.names:
            own, values = self.ours[name], [model[name] for model in self.models.values()]
            percents = (round(100 * value, 1) for value in (own.value, own.low, own.high))
            found.append((name, own.count, *percents, round(self.best(name)[1], 1), self.best(name)[0], round(median(values), 1)))
        return found

    def best(self, name: str) -> tuple[str, float]:
        """Return the published model that did best, and its percent."""
        model = max(self.models, key=lambda one: self.models[one][name])
        return model, self.models[model][name]


def same_tasks(report: Report) -> list[int]:
    """List the benchmark's tasks, by number, that the report has questions of, under the same number and name."""
    found = {(one.answer.task_id, one.answer.task) for one in report.graded}
    return sorted(number for number, task in found if number in TASKS and TASKS[number].name == task)


def by_attributes(report: Report, rule: str) -> Beside | None:
    """Compare attributes and averages over the tasks that are in both; None where no task is."""
    tasks = same_tasks(report)
    if not tasks:
        return None
    scores = [one.score(rule) for one in report.graded if one.answer.task_id in tasks]
    ours = {**_named(averages(scores), len(tasks), len({TASKS[task].attribute for task in tasks})), **by_attribute(scores)}
    names = tuple(name for name in (*AVERAGES, *ATTRIBUTES) if name in ours)
    return Beside(names, ours, {model.model: _rebuilt(model, tasks) for model in paper()})


def by_tasks(report: Report, rule: str) -> Beside | None:
    """Compare the tasks that are in both; None where no task is."""
    tasks = same_tasks(report)
    if not tasks:
        return None
    ours = {name: share for (number, name), share in by_task([one.score(rule) for one in report.graded]).items() if number in tasks}
    published = {model.model: {TASKS[task].name: model.tasks[task] for task in tasks} for model in paper()}
    return Beside(tuple(TASKS[task].name for task in tasks), ours, published)


def by_hearing(report: Report, rule: str) -> Beside | None:
    """Compare DeafTest's tasks on the paper's own questions, or on those made in its ranges; None where there are none of them."""
    scores = [one.score(rule) for one in report.graded if one.answer.attribute in ("DeafTest", "DeafTest paper")]
    ours = {name: share for (_, name), share in by_task(scores).items() if name in HEARING} if scores else {}
    names = tuple(name for name in HEARING if name in ours)
    published = {model: dict(zip(HEARING, map(float, values), strict=True)) for model, values in DEAFTEST.items()}
    return Beside(names, ours, published) if names else None


def _rebuilt(model: Published, tasks: Sequence[int]) -> dict[str, float]:
    found = rebuilt(Published(model.model, {task: model.tasks[task] for task in tasks}, model.printed))
    return _named(found, len(tasks), len({TASKS[task].attribute for task in tasks}))


def _named(found: dict[str, Any], tasks: int, attributes: int) -> dict[str, Any]:
    return found | {"macro_tasks": found[f"macro_{tasks}"], "macro_attributes": found[f"macro_{attributes}"]}
