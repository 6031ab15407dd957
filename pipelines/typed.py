"""From values to typed dataclasses: which keys exist, what each may hold, and what to say when something does not fit."""

import dataclasses
import re
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipelines.errors import ConfigError, hint, refuse_choice
from pipelines.kinds import choices, defaults, leaves, parts, shown, type_text
from pipelines.schema import GROUPS
from pipelines.sources import ALLOWED
from pipelines.yamltext import NULLS, parse


@dataclass(frozen=True)
class Value:
    """A value on its way to a key; `text` is what stands on the command line, None for values from files."""

    key: str  # dotted, section first
    value: Any
    origin: str
    where: str = ""  # ends an error: the file, if any
    text: str | None = None


class Keys:
    """All keys of a run: the dataclass of each section, and each dotted key's type."""

    def __init__(self, schemas: dict[str, type], targets: Iterable[str]) -> None:
        self.schemas = schemas
        self.types = {f"{section}.{key}": kind for section, schema in schemas.items() for key, kind in leaves(schema).items()}
        self.types.update({f"{section}._target_": str for section in targets})

    def spread(self, value: Value) -> list[Value]:
        """Split a mapping given for a nested dataclass into its keys, and read words; refuse keys that do not exist."""
        if value.key in self.types or self._dict_above(value.key):
            return [read(value, self.kind_of(value.key))]
        if not any(known.startswith(value.key + ".") for known in self.types):
            raise self.unknown(value)
        value = read(value, dict)
        if not isinstance(value.value, dict):
            inner = ", ".join(k.removeprefix(value.key + ".") for k in self.types if k.startswith(value.key + "."))
            raise ConfigError(f"{value.key}: holds keys ({inner}), not {_shown(value)}. Write {value.key}.KEY=VALUE{value.where}")
        found: list[Value] = []
        for key, inner_value in value.value.items():
            found += self.spread(dataclasses.replace(value, key=f"{value.key}.{key}", value=inner_value, text=None))
        return found

    def _dict_above(self, key: str) -> str | None:
        """Return the key of the dict field that `key` is an entry of, if there is one."""
        words = key.split(".")
        above = (".".join(words[:n]) for n in range(2, len(words)))
        return next((k for k in above if typing.get_origin(self.types.get(k)) is dict), None)

    def field_of(self, key: str) -> str:
        """Return the dotted field that a key sets: the dict field for one of its entries, else the key itself."""
        return self._dict_above(key) or key

    def kind_of(self, key: str) -> Any:
        """Return the type of a key, or of one entry of a dict field."""
        return self.types[key] if key in self.types else typing.get_args(self.types[self.field_of(key)])[1]

    def unknown(self, value: Value) -> ConfigError:
        """Explain a key that does not exist: a slip in the section or in the key, or a key of another section or of none."""
        section, dot, rest = value.key.partition(".")
        if not dot:
            return self._no_section(value)
        if section not in self.schemas:
            known = list(self.schemas)
            return ConfigError(f"{value.key}: no such section '{section}'.{hint(section, known)} Sections: {', '.join(known)}{value.where}")
        above, leaf = value.key.rpartition(".")[::2]
        if above in self.types:
            kind = type_text(self.types[above])
            return ConfigError(f"{value.key}: no such key, because {above} is one value ({kind}). Write {above}=VALUE{value.where}")
        while not any(k.startswith(above + ".") for k in self.types):  # the nearest part that exists
            above = above.rpartition(".")[0]
        return ConfigError(f"{value.key}: no such key.{self._suggest(above, section, rest, leaf)}{value.where}")

    def _no_section(self, value: Value) -> ConfigError:
        found = [f"'{k}={value.value}'" for k in self.types if k.rpartition(".")[2] == value.key]
        if found:
            return ConfigError(f"{value.key}: no section. Did you mean {' or '.join(found)}?")
        return ConfigError(f"{value.key}: no such group. Groups: config, {', '.join(GROUPS)}. Keys are written section.key=value")

    def _suggest(self, above: str, section: str, rest: str, leaf: str) -> str:
        beside = sorted({k.removeprefix(above + ".").partition(".")[0] for k in self.types if k.startswith(above + ".")})
        same_leaf = [k for k in self.types if k.rpartition(".")[2] == leaf]
        mine = [k for k in same_leaf if k.startswith(section + ".")]
        if mine or same_leaf:
            return f" Did you mean '{(mine or same_leaf)[0]}'?"
        if found := hint(leaf, beside) or hint(leaf, [k.rpartition(".")[2] for k in self.types if k.startswith(section + ".")]):
            return found
        if found := hint(f"{section}.{rest}", [k for k in self.types if not k.startswith(section + ".")]):
            return found
        return f" Keys: {', '.join(k for k in beside if k != '_target_')}"


def read(value: Value, kind: Any) -> Value:
    """Read a word of the command line as YAML, but keep it as typed where the key holds text: `run.name=007`, `run.notes=a #1`."""
    text = value.text
    if text is None:
        return value
    holds_text = str in parts(kind) and {*parts(kind)} <= {str, type(None)}
    if not holds_text or (text in NULLS and kind is not str) or (text[0] in "\"'" and text[-1] == text[0] and len(text) > 1):
        return dataclasses.replace(value, value=parse(text, value.key))
    return dataclasses.replace(value, value=text)


def fill(section: str, schema: type, values: list[Value], keys: Keys) -> Any:
    """Build the dataclass of one section from its defaults and `values`, the later ones winning."""
    node = OmegaConf.structured(schema)
    _unlock(node, schema)
    for value in values:
        _put(node, section, value, keys)
    origins = {keys.field_of(v.key): v for v in values}
    return _make(schema, typing.cast(dict, OmegaConf.to_container(node)), section, origins)


def _unlock(node: DictConfig, schema: type) -> None:
    """Make the node of a frozen dataclass writable while it is filled."""
    OmegaConf.set_readonly(node, False)
    for name, kind in typing.get_type_hints(schema).items():
        if dataclasses.is_dataclass(kind):
            _unlock(node[name], typing.cast(type, kind))


def _put(node: DictConfig, section: str, value: Value, keys: Keys) -> None:
    key, kind = keys.field_of(value.key), keys.kind_of(value.key)
    path = key.removeprefix(section + ".")
    given = None if _means_null(value.value, kind) else value.value
    if not _sensible(given, kind):
        raise _misfit(value, kind)
    if key != value.key:  # one entry of a dict field: keep the others
        given = {**OmegaConf.to_container(OmegaConf.select(node, path)), value.key.removeprefix(key + "."): given}  # type: ignore[dict-item]
    try:
        OmegaConf.update(node, path, given, merge=False)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise _misfit(value, kind) from error


def _means_null(value: Any, kind: Any) -> bool:
    """Take `off` and `none` for null where null is allowed and the word could mean nothing else."""
    word = str(value).lower()
    return word in ("off", "none") and type(None) in parts(kind) and not {str, bool} & {*parts(kind)} and word not in choices(kind)


def _sensible(value: Any, kind: Any) -> bool:
    """Refuse what OmegaConf would accept and nobody means: 5 for true, nan for a number, 1.50 for a text, `${...}` anywhere."""
    if isinstance(value, dict | list):
        inner = typing.get_args(kind)[-1] if typing.get_args(kind) else None
        return all(_sensible(v, inner) for v in (value.values() if isinstance(value, dict) else value))
    if kind is bool:
        return value in (0, 1) or str(value).lower() in ("true", "false", "yes", "no", "on", "off")
    if isinstance(value, str) and ("${" in value or value == "???"):  # what OmegaConf takes for a reference and for a missing value
        return False
    if isinstance(value, bool | float) and {*parts(kind)} <= {str, type(None)}:
        return False  # YAML has lost how it was written
    return float not in parts(kind) or str(value).lower().lstrip("+-.") not in ("nan", "inf", "infinity")


def _misfit(value: Value, kind: Any) -> ConfigError:
    """Say what a key expects and what it got; for closed lists, the nearest choice and the list."""
    given, listed = value.value, choices(kind)
    if listed and not isinstance(given, dict | list):
        return refuse_choice(value.key, _shown(value).strip("'"), listed, value.where)
    advice = ""
    if "${" in str(given):
        advice = ". A value cannot refer to another key"
    elif isinstance(given, float) and given.is_integer() and int in parts(kind):
        advice = f". Write {value.key}={int(given)}"
    elif typing.get_origin(kind) is list and isinstance(given, str | int | float):
        advice = f". Write {value.key}=[{given}]"
    elif any(isinstance(v, bool | float) for v in (given if isinstance(given, list) else [given])) and "text" in type_text(kind):
        advice = ". Put text that looks like a number or a truth value in quotes"
    return ConfigError(f"{value.key}: expected {type_text(kind)}, got {_shown(value)}{advice}{value.where}")


def _shown(value: Value) -> str:
    return f"'{value.value}'" if isinstance(value.value, str) else value.text or shown(value.value)


def idle(config: Any, path: str) -> dict[str, tuple[str, Any]]:
    """Map the keys that have no effect in a filled dataclass, nested ones included, to the reason and the key's default."""
    reasons: dict[str, str] = config.without_effect() if hasattr(config, "without_effect") else {}
    default = defaults(type(config)) if reasons else {}
    found = {f"{path}.{key}": (reason, default[key]) for key, reason in reasons.items()}
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(inner := getattr(config, field.name)):
            found |= idle(inner, f"{path}.{field.name}")
    return found


def _make(schema: type, plain: dict[str, Any], path: str, origins: dict[str, Value]) -> Any:
    """Construct a dataclass from the inside out; a ValueError of its own checks gets the section and the file in front and behind."""
    if unset := [name for name, inner in plain.items() if inner == "???"]:
        raise ConfigError(f"{path}.{unset[0]}: not set. Write {path}.{unset[0]}=VALUE")
    hints = typing.get_type_hints(schema)
    ready = {name: _make(hints[name], inner, f"{path}.{name}", origins) if dataclasses.is_dataclass(hints[name]) else inner
             for name, inner in plain.items()}
    try:
        return schema(**ready)
    except NameError as error:  # only those names exist that sources.py could read
        raise ConfigError(f"{path}: {schema.__name__}: {error}; {ALLOWED}") from error
    except ValueError as error:
        named = re.match(r"([\w.]+): ", str(error))
        known = named is not None and named[1].partition(".")[0] in ready
        source = origins.get(f"{path}.{named[1]}") if named and known else None
        raise ConfigError(f"{path}{'.' if known else ': '}{error}{source.where if source else ''}") from error

