"""YAML as people mean it: `1e-3` is a number, `off` is text, `None` is null, and a key given twice is an error.

Tags (`!x`) and aliases (`&x`, `*x`) are refused: a configuration is plain values, each written where it is used.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from pipelines.errors import ConfigError

NULLS = ("null", "Null", "NULL", "None", "~")


class Loader(yaml.SafeLoader):
    """Safe YAML with the plain scalars of YAML 1.2, so that dates, octals and yes/no stay text."""

    yaml_implicit_resolvers: dict = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Read one node; tags and aliases raise."""
        event = self.peek_event()
        if getattr(event, "tag", None) or getattr(event, "anchor", None):
            problem = "tags (!x) and aliases (&x, *x) are not used; put text in quotes"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping with keys of text; a repeated key raises, because YAML would silently keep the last one."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be one word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key.value}' is given twice", key.start_mark)
            seen.add(key.value)
            key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


DIGITS = "-+.0123456789"
PLAIN = (  # tag, pattern, characters it may begin with
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", DIGITS),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+", DIGITS),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", DIGITS),
    ("null", r"~|null|Null|NULL|None|", ["~", "n", "N", ""]),
)
for tag, pattern, first in PLAIN:
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))


def parse(text: str, label: str) -> Any:
    """Read YAML text; `label` opens the error, which names the line if there are several."""
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark and "\n" in text else ""
        raise ConfigError(f"{label}{line}: cannot be read as YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{label}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{label}: cannot be read as YAML: too deeply nested") from error


def dump(value: Any) -> str:
    """Write plain mappings, lists and scalars as block YAML that `parse` reads back to the same values."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


class Dumper(yaml.SafeDumper):
    """Quotes exactly the text that Loader would take for something else."""

    yaml_implicit_resolvers = Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        """Write a shared value out each time: `&id001` in a saved run is noise."""
        return True
