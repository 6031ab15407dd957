"""A page of results that any browser shows without a server: scores by rule, bars beside published models, tasks, checks, questions."""

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_modules.av_odyssey import published
from lightning_modules.av_odyssey.adapter import CHECK_COLUMNS, Check
from lightning_modules.av_odyssey.averages import Share
from lightning_modules.av_odyssey.comparison import OURS, Beside, by_attributes, by_hearing, by_tasks
from lightning_modules.av_odyssey.report import Report

NAME = "report.html"
SHOWN = 500  # questions on the page; all are in tables/answers.csv
RIVALS = 4  # published models beside ours in each group of bars, the best first
PRINTED = ("Of the paper's models, “printed” is its average over all questions, and what stands before it is rebuilt from its tables by "
           "task. The others have prompts, orders of media and rules of their own: the same model is printed with 24.4 and 29.8.")
STYLE = """body{font:15px/1.4 sans-serif;margin:2em auto;max-width:70em;padding:0 1em}table{border-collapse:collapse;margin:.5em 0}
td,th{padding:.15em .6em;text-align:right;border-bottom:1px solid #ddd;vertical-align:top}td:first-child,th:first-child{text-align:left}
.bar{display:flex;align-items:center;height:1.3em}.bar span:first-child{width:15em;overflow:hidden;white-space:nowrap}
.track{position:relative;flex:1;height:.9em;background:#eee}.track i{position:absolute;top:0;bottom:0;left:0;background:#9ab}
.ours .track i{background:#c50}.track u{position:absolute;top:40%;height:20%;background:#000}.track b{position:absolute;top:0;bottom:0;
width:1px;background:#000}.bar span:last-child{width:9em;text-align:right}.wide{overflow-x:auto}
img{max-width:100%}.note{background:#fe9;padding:.4em}"""


@dataclass(frozen=True)
class Page:
    """What the page is made of; `note` says what a reader must know before comparing."""

    report: Report
    rule: str
    title: str
    facts: dict[str, str]
    checks: Sequence[Check] = ()
    note: str = ""
    pictures: Sequence[Path] = ()
    compared: bool = True  # with published models
    comparisons: list[tuple[str, Beside]] = field(init=False)

    def __post_init__(self) -> None:
        made = {"Attributes beside published models": by_attributes, "Tasks beside published models": by_tasks,
                "DeafTest beside published models": by_hearing}
        found = [(title, make(self.report, self.rule)) for title, make in made.items() if self.compared]
        object.__setattr__(self, "comparisons", [(title, beside) for title, beside in found if beside])

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The figures of the report."""
        return self.report.metrics()

    def text(self) -> str:
        """Write the page."""
        parts = [f"<h1>{_e(self.title)}</h1>", table(("", ""), self.facts.items()), self._scores()]
        if self.note:
            parts.append(f"<p class='note'>{_e(self.note)}</p>")
        for title, beside in self.comparisons:
            parts += [f"<h2>{title}</h2>", f"<p>Percent right by the rule “{_e(self.rule)}”; the thin line is the 95 % interval of ours, "
                      f"the upright one what guessing gets.</p>", *(self._bars(beside, name) for name in beside.names),
                      f"<details><summary>all {len(beside.models)} models</summary><div class='wide'>"
                      f"{table(beside.columns, beside.rows())}</div></details>"]
        if self.comparisons and self.comparisons[0][0].startswith("Attributes"):
            parts.append(f"<details><summary>published averages, as printed and as they follow from their tables</summary><p>{PRINTED}</p>"
                         f"<div class='wide'>{table(published.COLUMNS, published.rows())}</div></details>")
        parts += [f"<h2>Tasks</h2>{self._tasks()}"]
        if self.checks:
            parts.append(f"<h2>Checks before the first question</h2>{table(CHECK_COLUMNS, (check.row for check in self.checks))}")
        parts += [f"<figure><img alt='{_e(one.stem)}' src='data:image/png;base64,{base64.b64encode(one.read_bytes()).decode()}'></figure>"
                  for one in self.pictures]
        parts.append(self._questions())
        return (f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{_e(self.title)}</title><style>{STYLE}</style>"
                f"{''.join(parts)}</html>\n")

    def _scores(self) -> str:
        found, statuses = self.metrics, self.report.statuses
        rows = []
        for rule in self.report.rules:
            shares = {name: share for (kind, name), share in self.report.shares(rule).items() if kind == "average"}
            invalid = found.get(f"{rule}/invalid_rate")
            rows.append((rule, *map(interval, shares.values()), "" if invalid is None else f"{100 * invalid:.1f}"))
        names = [name for kind, name in self.report.shares("official") if kind == "average"]
        guess = f"Always A gets {100 * found['always_a']:.1f} %, guessing {100 * found['random']:.1f} %. "
        ended = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
        return f"<h2>Scores by rule</h2>{table(('rule', *names, 'invalid %'), rows)}<p>{guess}Answers: {_e(ended)}.</p>"

    def _bars(self, beside: Beside, name: str) -> str:
        rivals = sorted(((model, values[name]) for model, values in beside.models.items()), key=lambda one: -one[1])[:RIVALS]
        ours, chance = beside.ours[name], 100 * self.metrics["random"]
        lines = [bar(OURS, 100 * ours.value, chance, ours), *(bar(model, percent, chance) for model, percent in rivals)]
        missing = self.report.note(name) or self.report.attribute_note(name)
        return f"<h3>{_e(name)} ({ours.count} questions{'; ' + _e(missing) if missing else ''})</h3>{''.join(lines)}"

    def _tasks(self) -> str:
        rows = [(name, share.count, interval(share), self.report.note(task)) for name, task, share in self.report.parts(self.rule)]
        return table(("task", "questions", "percent right", "note"), rows)

    def _questions(self) -> str:
        graded = self.report.graded
        rows = [(a.id, a.task, a.mix, a.gold, *(one.letters.get(rule) or "" for rule in self.report.rules), a.reply[:300], a.status, a.note)
                for one in graded[:SHOWN] for a in [one.answer]]
        more = f"the first {SHOWN} of {len(graded)} questions; " if len(graded) > SHOWN else ""
        header = ("id", "task", "media", "right", *self.report.rules, "reply", "status", "note")
        return f"<h2>Questions</h2><p>{more}all are in tables/answers.csv</p><div class='wide'>{table(header, rows)}</div>"


def interval(share: Share) -> str:
    """Write a share in percent with its interval."""
    return f"{100 * share.value:.1f} ({100 * share.low:.1f} to {100 * share.high:.1f})"


def bar(name: str, percent: float, chance: float, share: Share | None = None) -> str:
    """Draw a bar of so many percent; `share` is ours, whose interval is drawn."""
    line = f"<u style='left:{100 * share.low:.2f}%;width:{100 * (share.high - share.low):.2f}%'></u>" if share else ""
    said = interval(share) if share else f"{percent:.1f}"
    return (f"<div class='bar{' ours' if share else ''}'><span>{_e(name)}</span><span class='track'><i style='width:{percent:.2f}%'></i>"
            f"{line}<b style='left:{chance:.2f}%'></b></span><span>{said}</span></div>")


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Write a table; every cell is text, whatever signs it holds."""
    head = "".join(f"<th>{_e(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{_e(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if any(header) else ''}{body}</table>"


def _e(value: Any) -> str:
    return html.escape(str(value))
