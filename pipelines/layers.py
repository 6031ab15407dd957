"""From words to layers: which YAML files a run is made of, in order of precedence, and what each of them says."""

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.catalog import choices_of, label_of, path_of
from pipelines.errors import ConfigError, ConfigWarning, hint, refuse_choice
from pipelines.schema import COMPONENTS, GROUPS, SECTIONS
from pipelines.words import Words
from pipelines.yamltext import parse

BUILT_IN = {"strategy": "single", "trainer": "default", "logger": "wandb", "cluster": "local"}
SECTION_NAMES = (*COMPONENTS, *SECTIONS)


@dataclass
class Layer:
    """What one file says: the choices it proposes, and values by section."""

    origin: str  # shown as the place a value comes from
    file: str  # named in errors
    defaults: dict[str, str] = field(default_factory=dict)
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The end of an error about this file."""
        return f" (in {self.file})"


@dataclass
class Stack:
    """The layers of a run, lowest first, and the choices that led to them."""

    method: str
    experiment: str | None
    choices: dict[str, str]
    layers: list[Layer]
    words: Words


def stack(words: Words) -> Stack:
    """Choose the files of a run and read them: command line over `config=FILE` over experiment over method over built-in."""
    top = read_file(words.file) if words.file else Layer("", "")
    experiment = words.choices.get("experiment") or top.defaults.get("experiment")
    named = _group_file("experiment", experiment, _where("experiment", words, top)) if experiment else Layer("", "")
    own = named.defaults.get("method")
    if experiment and not own:
        raise ConfigError(f"defaults.method: an experiment must name its method{named.where}")
    method = words.choices.get("method") or top.defaults.get("method") or own
    if not method:
        raise ConfigError(f"method: none given. Write method=NAME, one of: {', '.join(choices_of('method'))}")
    base = _group_file("method", method, _where("method", words, top, named))
    for layer in (named, top):
        if (other := layer.defaults.get("method", method)) != method:
            raise ConfigError(f"method={method}: {layer.origin} is a setting of method {other}. Leave one of the two out")
    for group in words.choices.keys() & SECTIONS.keys():  # strategy=ddp means its name as well, whatever a saved run says
        for layer in (named, top):
            layer.sections.get(group, {}).pop("name", None)
    proposers = [base, named, top, Layer("command line", "", defaults=words.choices)]
    choices, groups = {"method": method, **({"experiment": experiment} if experiment else {})}, []
    for group in GROUPS:
        if group not in ("method", "experiment"):
            choices[group], file = _choose(group, proposers)
            groups.append(file)
    return Stack(method, experiment, choices, [base, *groups, *[layer for layer in (named, top) if layer.file]], words)


def _choose(group: str, proposers: list[Layer]) -> tuple[str, Layer]:
    """Take the highest proposal for a group, and drop what lower files wrote for another kind."""
    proposals: list[tuple[Layer, str]] = []
    for layer in proposers:  # what each layer would have chosen, had none been above it
        below = proposals[-1][1] if proposals else BUILT_IN.get(group, "")
        proposals.append((layer, layer.defaults.get(group, below)))
    choice = proposals[-1][1]
    if not choice:
        raise ConfigError(f"{group}: none given. Write {group}=NAME, one of: {', '.join(choices_of(group))}")
    proposer = next((layer for layer, _ in reversed(proposals) if group in layer.defaults), None)
    chosen = _group_file(group, choice, proposer.where if proposer and proposer.file else "")
    for layer, other in proposals:
        if other and other != choice:
            _drop_foreign(layer, group, other, chosen)
    return choice, chosen


def _drop_foreign(layer: Layer, group: str, other: str, chosen: Layer) -> None:
    """Remove a section that was written for another class or name: its numbers were tuned for that one, its keys may not exist here."""
    section = layer.sections.get(group)
    if not section:
        return
    kind = "_target_" if group in COMPONENTS else "name"
    written_for = section.get(kind) or _group_file(group, other, layer.where).sections[group].get(kind)
    if written_for != chosen.sections[group].get(kind):
        del layer.sections[group]
        keys = ", ".join(key for key in section if key != kind)
        if keys:
            text = f"{group}: the values of {layer.origin} were set for {group}={other} and are not used ({keys})"
            warnings.warn(ConfigWarning(text), stacklevel=2)


def _where(group: str, words: Words, *layers: Layer) -> str:
    """Name the file that proposed a choice, if it was not the command line."""
    return "" if group in words.choices else next((layer.where for layer in layers if group in layer.defaults), "")


def _group_file(group: str, choice: str, where: str) -> Layer:
    """Read `configs/<group>/<choice>.yaml`; `where` names the file that asked for it."""
    if choice not in (known := choices_of(group)):
        raise refuse_choice(group, choice, known, where)
    label = label_of(group, choice)
    content = _mapping(path_of(group, choice), label)
    if group == "method":
        return _layer(content, label, label, [g for g in GROUPS if g not in ("method", "experiment")])
    if group == "experiment":
        return _layer(content, f"experiment {choice}", label, [g for g in GROUPS if g != "experiment"])
    return Layer(label, label, sections={group: content})


def read_file(name: str) -> Layer:
    """Read the file of `config=FILE`."""
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        raise ConfigError(f"config: {name} is a folder. Write config={path / 'config.yaml'}")
    if not os.path.isfile(path):
        raise ConfigError(f"config: no such file {name}. Write config=FILE with its path from {Path.cwd()}")
    return _layer(_mapping(path, name), f"config={name}", name, list(GROUPS))


def _mapping(path: Path, label: str) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"), label)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{label}: is not a text file in UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{label}: cannot be read: {error.strerror}") from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{label}: must hold keys and values, not {type(content).__name__}")
    return content or {}


def _layer(content: dict[str, Any], origin: str, file: str, groups: list[str]) -> Layer:
    """Check the outline of a file with sections: `defaults`, which chooses from `groups`, and known sections, each a mapping."""
    layer = Layer(origin, file)
    for name, value in content.items():
        if name != "defaults" and name not in SECTION_NAMES:
            raise ConfigError(f"{name}: no such section.{hint(name, ('defaults', *SECTION_NAMES))}{layer.where}")
        if value is not None and not isinstance(value, dict):
            raise ConfigError(f"{name}: must hold keys and values, not '{value}'{layer.where}")
        if name != "defaults":
            layer.sections[name] = value or {}
    for group, choice in (content.get("defaults") or {}).items():
        if group not in groups:
            raise ConfigError(f"defaults.{group}: no such group here.{hint(group, groups)} Groups: {', '.join(groups)}{layer.where}")
        if choice is not None:
            layer.defaults[group] = str(choice)
    return layer
