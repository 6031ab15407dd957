"""fivefold report: tables of several runs, with intervals and paired tests over seeds; and what sets two runs apart."""

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines import describe, overview
from pipelines.config import ConfigError, split_flags

FLAGS = ("--help",)
ROOT = "~/fivefold-runs"
HELP = """fivefold report [FOLDER …] [wandb=ENTITY/PROJECT] [group=NAME] [section.key=value …] [metric=NAME,…] [against=NAME] [to=FOLDER]
fivefold report diff RUN RUN

Gathers the finished runs in each FOLDER (default ~/fivefold-runs), or in a project of W&B; those of a group and with the settings that
are named; puts runs together that differ in their seeds only; prints means with Student's 95 % intervals, and paired differences from
the contender whose name holds the text of `against` (default: the first), with the p-values of the paired t and Wilcoxon's test.
report.md, report.html and curves.png go to the folder `to` (default: the current one). Of runs of several methods, which share no scale,
the page has a section a method instead, with figures, pictures and folders; metric= or against= compares them all the same. diff tells in
what two runs differ."""


def run(argv: list[str]) -> int:
    """Report as the words say."""
    flags, words = split_flags(argv, FLAGS)
    if "--help" in flags:
        print(HELP)
        return 0
    return differences(words[1:]) if words[:1] == ["diff"] else gather(words)


def gather(words: list[str]) -> int:
    """Print and write the report of many runs."""
    from pipelines.evidence import contenders, finished_runs, shared_metrics, with_settings

    keys = [word.partition("=")[0] for word in words if "=" in word]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ConfigError(f"{twice[0]}: written twice, and a run has only one; leave it out and name the folders of the runs")
    own = {key: text for key, _, text in (word.partition("=") for word in words if "=" in word)}
    metrics = [name for name in own.pop("metric", "").split(",") if name]
    against, to = own.pop("against", ""), Path(own.pop("to", ".")).expanduser().absolute()
    project = own.pop("wandb", None)
    roots = [Path(word).expanduser().absolute() for word in words if "=" not in word]
    roots += [Path(ROOT).expanduser()] if not roots and project is None else []
    for root in roots:
        if not root.is_dir():
            raise ConfigError(f"report: {root} is no folder")
    wanted = {("logger.group" if key == "group" else key): value for key, value in own.items()}
    runs = with_settings(finished_runs(roots) + _from_wandb(project, wanted), wanted)
    if not runs:
        places = [*map(str, roots), *([f"W&B's project {project}"] if project else [])]
        raise ConfigError(f"report: no finished run in {', '.join(places)}" + (f" with {wanted}" if wanted else ""))
    if len({run.method for run in runs}) > 1 and not metrics and not against:
        return overview.write(runs, to)
    found = contenders(runs)
    metrics = shared_metrics(found, metrics)
    if not metrics:
        raise ConfigError("metric: these runs share no figure; name those that you want: metric=val/loss,val/accuracy")
    base = _base(found, against)
    tables = [(metric, *rows(found, base, metric)) for metric in metrics]
    describe.report_tables(tables)
    write(tables, found, metrics, to)
    return 0


def _from_wandb(project: str | None, wanted: dict[str, str]) -> list[Any]:
    """Read the finished runs of W&B's project that is named, if one is."""
    if project is None:
        return []
    from pipelines.tracked import tracked_runs

    return tracked_runs(project, wanted.get("logger.group"))


def _base(found: Sequence[Any], against: str) -> Any:
    """Return the contender that others are compared with."""
    named = [contender for contender in found if against in contender.name]
    if len(named) != 1 and against:
        raise ConfigError(f"against: {against} names {len(named)} contenders; there are: {'; '.join(c.name for c in found)}")
    return named[0]


def rows(found: Sequence[Any], base: Any, metric: str) -> tuple[list[str], list[list[str]]]:
    """Lay out one metric: header and a row a contender."""
    from pipelines.evidence import difference, summary

    header = ["contender", "seeds", "mean", "95 % interval", f"minus {base.name}, paired", "95 % interval", "p (t)", "p (Wilcoxon)"]
    table = []
    for contender in found:
        told = summary(contender.values(metric).values())
        apart = None if contender is base else difference(contender, base, metric)
        cells = ["", "", "", ""] if apart is None else [f"{apart.summary.mean:+.5g} ({apart.summary.n})", _half(apart.summary.half),
                                                      _number(apart.t_test, ".3g"), _number(apart.wilcoxon, ".3g")]
        table.append([contender.name, str(told.n), _number(told.mean, ".6g"), _half(told.half), *cells])
    own = len(header) if len(found) > 1 else 4  # one contender has nothing to be compared with
    return header[:own], [row[:own] for row in table]


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


def _half(value: float) -> str:
    return "" if math.isnan(value) else f"± {value:.3g}"


def write(tables: list[tuple[str, list[str], list[list[str]]]], found: Sequence[Any], metrics: Sequence[str], folder: Path) -> None:
    """Write report.md, report.html and curves.png."""
    from pipelines.evidence import mean_curve
    from pipelines.pictures import draw_curves

    folder.mkdir(parents=True, exist_ok=True)
    curves = {metric: {c.name: mean_curve(c, metric) for c in found} for metric in metrics}
    drawn = draw_curves({metric: {name: one for name, one in by.items() if len(one[0]) > 1} for metric, by in curves.items()},
                        folder / "curves.png")
    runs = [f"{contender.name}: {', '.join(run.place for run in contender.runs)}" for contender in found]
    page = "\n\n".join([*(f"## {metric}\n\n{overview.markdown(header, body)}" for metric, header, body in tables),
                        *(["![curves](curves.png)"] if drawn else []), "## Runs", *(f"- {line}" for line in runs)])
    (folder / "report.md").write_text(f"# Report\n\n{page}\n", encoding="utf-8")
    parts = [f"<h2>{html.escape(metric)}</h2>{overview.table(header, body)}" for metric, header, body in tables]
    picture = "<img src='curves.png' alt='curves'>" if drawn else ""
    listed = "".join(f"<li>{html.escape(c.name)}: {', '.join(map(overview.place, c.runs))}</li>" for c in found)
    (folder / "report.html").write_text("<!doctype html><meta charset='utf-8'><title>Report</title>"
                                        f"{overview.STYLE}<h1>Report</h1>{''.join(parts)}{picture}"
                                        f"<h2>Runs</h2><ul>{listed}</ul>\n", encoding="utf-8")
    print(f"written: {folder / 'report.md'}, report.html" + (", curves.png" if drawn else ""))


def differences(words: list[str]) -> int:
    """Tell in what two runs differ: settings, code, versions and figures."""
    from pipelines.evidence import differing, read_run

    if len(words) != 2:
        raise ConfigError("report: diff needs two run folders: fivefold report diff RUN RUN")
    one, other = (read_run(Path(word).expanduser().absolute()) for word in words)
    last = [run.record["started"][-1] for run in (one, other)]
    code = [{key: start.get(key) for key in ("git_commit", "git_dirty", "python", "host")} for start in last]
    for title, changes in (("settings", differing(one.settings, other.settings)), ("code and machine", differing(*code)),
                           ("packages", differing(last[0].get("packages", {}), last[1].get("packages", {}))),
                           ("figures", differing(one.results, other.results))):
        describe.changes_table(title, (Path(one.place).name, Path(other.place).name), changes)
    return 0
