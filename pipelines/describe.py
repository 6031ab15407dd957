"""What a person reads before and after a run: tables of keys, the tree of a configuration, results. No import of torch."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from pipelines.catalog import choices_of, summary_of
from pipelines.config import compose, to_mapping
from pipelines.kinds import defaults, leaves, shown, type_text
from pipelines.schema import COMPONENTS, GROUPS, SECTIONS, RunConfig
from pipelines.sources import docs_of, read_class

Row = tuple[str, str, str, str]  # what HEADINGS say
HEADINGS = ("key", "type", "value (default, if another)", "meaning")

USAGE = """fivefold train method=NAME [experiment=NAME] [group=choice …] [section.key=value …]
  --cfg      show every value of the run and where it comes from
  --dry-run  build everything, show the model and its memory, train nothing
  --help     this text; with method=NAME or experiment=NAME also the keys and values of that run"""


def answer(flags: set[str], words: list[str]) -> bool:
    """Print what --help or --cfg asks for; False when no flag asks for information only."""
    if "--help" in flags:
        _print(help_table(words))
    elif "--cfg" in flags:
        _print(config_tree(compose(words, "show")))
    else:
        return False
    return True


def help_table(words: list[str]) -> RenderableType:
    """List the groups and, by section, each key's type, value and meaning; all sections if the words name a run."""
    parts: list[RenderableType] = [Text(USAGE), Text(), _groups()]
    named = any(word.startswith(("method=", "experiment=", "config=")) for word in words)
    rows = _rows(compose(words, "show")) if named else _rows_without_method()
    for section, listed in rows.items():
        parts += [Text(), Text(section, style="bold"), Padding(_table(listed, header=section == next(iter(rows))), (0, 0, 0, 2))]
    if not named:
        parts += [Text(), Text("module, data and optim depend on the method: fivefold train method=NAME --help")]
    return Group(*parts)


def _rows(config: RunConfig) -> dict[str, list[Row]]:
    """Describe every key of a composed run by section."""
    mapping = to_mapping(config)
    components = {name: _section(name, type(getattr(config, name).config), mapping[name]) for name in COMPONENTS}
    return components | {name: _section(name, _with_docs(schema), mapping[name]) for name, schema in SECTIONS.items()}


def _rows_without_method() -> dict[str, list[Row]]:
    """Describe the keys that every run has by section."""
    return {name: _section(name, _with_docs(schema), defaults(schema)) for name, schema in SECTIONS.items()}


def _with_docs(schema: type) -> type:
    return read_class(schema.__module__, schema.__name__)


def _section(name: str, schema: type, values: Mapping[str, Any]) -> list[Row]:
    """Describe each key of a dataclass that was read from source; a value other than the default has the default beside it."""
    docs, default = docs_of(schema), defaults(schema)
    rows: list[Row] = []
    for key, kind in leaves(schema).items():
        value, usual = shown(_at(values, key)), shown(_at(default, key))
        rows.append((f"{name}.{key}", type_text(kind), value if value == usual else f"{value} (default {usual})", docs.get(key, "")))
    return rows


def _at(mapping: Mapping[str, Any], key: str) -> Any:
    value: Any = mapping
    for part in key.split("."):
        value = value[part]
    return value


def _groups() -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("group", "choice", "for"):
        table.add_column(column, overflow="fold")
    for group in GROUPS:
        for i, choice in enumerate(choices_of(group)):
            table.add_row(Text(group if i == 0 else ""), Text(choice), Text(summary_of(group, choice)))
    return table


def _table(rows: list[Row], header: bool) -> Table:
    table = Table(box=None, pad_edge=False, show_header=header, header_style="dim")
    for heading, style, ratio in zip(HEADINGS, ("cyan", "dim", "green", ""), (3, 3, 2, 6)):
        table.add_column(heading, style=style, overflow="fold", ratio=ratio)
    table.expand = True
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def config_tree(config: RunConfig) -> Tree:
    """Draw a configuration as a tree: each value, and in brackets where it comes from."""
    title = Text(f"method {config.method}" + (f", experiment {config.experiment}" if config.experiment else ""), style="bold")
    title.append(f"  {' '.join(f'{group}={choice}' for group, choice in config.choices.items())}", style="dim not bold")
    tree = Tree(title)
    for section, values in to_mapping(config).items():
        _branch(tree.add(Text(section, style="bold")), values, section, config.origins)
    return tree


def _branch(tree: Tree, values: Mapping[str, Any], prefix: str, origins: Mapping[str, str]) -> None:
    for key, value in values.items():
        dotted = f"{prefix}.{key}"
        if isinstance(value, dict) and dotted not in origins:
            _branch(tree.add(Text(key)), value, dotted, origins)
            continue
        origin = origins[dotted]
        line = Text(f"{key}: ").append(shown(value), style="green")
        line.append(f"  ({origin})", style="dim" if origin == "default" else "yellow")
        tree.add(line)


def results_table(results: Mapping[str, float], folder: Path, status: str) -> None:
    """Print the last figures of a run, its state and its folder."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="cyan")
    table.add_column(justify="right")
    for name, value in results.items():
        table.add_row(Text(name), Text(f"{value:.6g}" if isinstance(value, float) else str(value)))
    _print(Group(Text(status, style="bold"), table, Text(f"run folder: {folder}")))


def report_tables(tables: list[tuple[str, list[str], list[list[str]]]]) -> None:
    """Print a table for each metric of several runs."""
    for metric, header, rows in tables:
        table = Table(box=None, pad_edge=False, title=Text(metric, style="bold"), title_justify="left")
        for name in header:
            table.add_column(Text(name), justify="left" if name == "contender" else "right")
        for row in rows:
            table.add_row(*map(Text, row))
        _print(table)


def printed_tables(tables: Mapping[str, Any]) -> None:
    """Print those of a module's tables that are meant for the terminal, numbers to the right."""
    for one in tables.values():
        if one.printed:
            table = Table(box=None, pad_edge=False)
            for place, name in enumerate(one.columns):
                numbers = all(isinstance(row[place], int | float) for row in one.rows)
                table.add_column(Text(name), justify="right" if numbers else "left")
            for row in one.rows:
                table.add_row(*(Text(str(cell)) for cell in row))
            _print(table)


def changes_table(title: str, names: tuple[str, str], changes: list[tuple[str, Any, Any]]) -> None:
    """Print what differs between two runs, or that nothing does."""
    if not changes:
        _print(Text(f"{title}: the same", style="bold"))
        return
    table = Table(box=None, pad_edge=False, title=Text(title, style="bold"), title_justify="left")
    for name in ("", *names):
        table.add_column(Text(name))
    for key, one, other in changes:
        table.add_row(Text(key, style="cyan"), Text(str(one)), Text(str(other)))
    _print(table)


def sweep_table(columns: list[str], rows: list[list[Any]], folder: Path) -> None:
    """Print the trials of a sweep."""
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(Text(name), style="cyan" if name == "trial" else None)
    for row in rows:
        table.add_row(*(Text("" if cell is None else f"{cell:.6g}" if isinstance(cell, float) else str(cell)) for cell in row))
    _print(Group(table, Text(f"sweep folder: {folder}")))


def _print(what: RenderableType) -> None:
    """Print to the terminal, or in wide lines to a file or pipe."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(what)
