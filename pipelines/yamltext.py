"""YAML as people mean it: `1e-3` is a number, `off` is text, `None` is null, and a key given twice is an error."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from pipelines.errors import ConfigError


class Loader(yaml.SafeLoader):
    """Safe YAML with the plain scalars of YAML 1.2, so that dates, octals and yes/no stay text."""

    yaml_implicit_resolvers: dict = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping; a repeated key raises, because YAML would silently keep the last one."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key.value}' is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


PLAIN = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
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


def dump(value: Any) -> str:
    """Write plain mappings, lists and scalars as block YAML that `parse` reads back to the same values."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


class Dumper(yaml.SafeDumper):
    """Quotes exactly the text that Loader would take for something else."""

    yaml_implicit_resolvers = Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        """Write a shared value out each time: `&id001` in a saved run is noise."""
        return True
