"""One page over runs of several methods: a section a method, with its final figures, the pictures of its newest run, and its folders."""

import html
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipelines import describe

STYLE = ("<style>body{font-family:sans-serif;margin:2em}td,th{padding:.2em .8em;text-align:right}td:first-child{text-align:left}"
         "img{max-width:40em;display:block}</style>")


def write(runs: Sequence[Any], to: Path) -> int:
    """Print the figures of each method, and write report.md and report.html."""
    from pipelines.evidence import contenders

    sections = []
    for method in dict.fromkeys(run.method for run in sorted(runs, key=lambda run: run.record["started"][0]["time"])):
        found = contenders([run for run in runs if run.method == method])
        sections.append((method, *figures(found), [run for contender in found for run in contender.runs]))
    describe.report_tables([(method, header, body) for method, header, body, _ in sections])
    to.mkdir(parents=True, exist_ok=True)
    (to / "report.md").write_text("# Report\n\n" + "\n".join(_in_markdown(to, *section) for section in sections), encoding="utf-8")
    page = "".join(_in_html(to, *section) for section in sections)
    (to / "report.html").write_text(f"<!doctype html><meta charset='utf-8'><title>Report</title>{STYLE}<h1>Report</h1>{page}\n",
                                    encoding="utf-8")
    print(f"written: {to / 'report.md'}, report.html")
    return 0


def figures(found: Sequence[Any]) -> tuple[list[str], list[list[str]]]:
    """Lay out all final figures of a method: a row a figure, a column a contender, the mean over seeds with its 95 % interval."""
    from pipelines.evidence import summary

    names = dict.fromkeys(name for contender in found for run in contender.runs for name in run.results)
    told = [[summary(contender.values(name).values()) for contender in found] for name in names]
    return ["figure", *(c.name for c in found)], [[name, *map(_told, row)] for name, row in zip(names, told, strict=True)]


def _told(one: Any) -> str:
    return "" if not one.n else f"{one.mean:.6g}" + ("" if math.isnan(one.half) else f" ± {one.half:.3g}")


def _pictures(run: Any, to: Path) -> list[tuple[str, str]]:
    """Name the pictures of a run and where they lie as seen from the page."""
    return [(path.stem, quote(os.path.relpath(path, to))) for path in run.pictures]


def _in_markdown(to: Path, method: str, header: list[str], body: list[list[str]], runs: list[Any]) -> str:
    pictures = [f"![{name}]({link})" for name, link in _pictures(runs[-1], to)]
    return "\n\n".join([f"## {method}", markdown(header, body), *pictures, *(f"- {run.place}" for run in runs)]) + "\n"


def _in_html(to: Path, method: str, header: list[str], body: list[list[str]], runs: list[Any]) -> str:
    pictures = "".join(f"<img src='{link}' alt='{html.escape(name)}'>" for name, link in _pictures(runs[-1], to))
    listed = "".join(f"<li>{place(run)}</li>" for run in runs)
    return f"<h2>{html.escape(method)}</h2>{table(header, body)}{pictures}<ul>{listed}</ul>"


def place(run: Any) -> str:
    """Write where a run is kept, in HTML: a folder, or a link to a page of W&B."""
    text = html.escape(run.place)
    return f"<a href='{text}'>{text}</a>" if run.place.startswith(("http://", "https://")) else text


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *body))


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Write a table in HTML."""
    cells = [("th", header), *(("td", row) for row in body)]
    lines = ["".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) for tag, row in cells]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
