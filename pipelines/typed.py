"""From values to typed dataclasses: which keys exist, what each may hold, and what to say when something does not fit."""

import dataclasses
import re
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipelines.errors import ConfigError, hint

NAMES = {int: "integer", float: "number", bool: "true or false", str: "text", type(None): "null"}


@dataclass(frozen=True)
class Value:
    """A value on its way to a key; `text` is the word as typed, None for values from files."""

    key: str  # dotted, section first
    value: Any
    origin: str
    where: str = ""  # ends an error: the file, if any
    text: str | None = None


def type_text(hint: Any) -> str:
    """Say in words what a key holds: `integer or null`, `list of text`, `a | b`."""
    kind, inside = typing.get_origin(hint), typing.get_args(hint)
    if kind is Literal:
        return " | ".join(str(choice) for choice in inside)
    if kind in (typing.Union, types.UnionType):
        return " or ".join(type_text(part) for part in inside)
    if kind is list:
        return f"list of {type_text(inside[0])}"
    if kind is dict:
        return f"mapping of {type_text(inside[0])} to {type_text(inside[1])}"
    return NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def leaves(schema: type, prefix: str = "") -> dict[str, Any]:
    """Map each dotted key of a dataclass, nested ones followed, to its type."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        kind = hints[field.name]
        found.update(leaves(kind, f"{prefix}{field.name}.") if dataclasses.is_dataclass(kind) else {prefix + field.name: kind})
    return found


class Keys:
    """All keys of a run: the dataclass of each section, and each dotted key's type."""

    def __init__(self, schemas: dict[str, type], targets: tuple[str, ...]) -> None:
        self.schemas = schemas
        self.types = {f"{section}.{key}": kind for section, schema in schemas.items() for key, kind in leaves(schema).items()}
        self.types.update({f"{section}._target_": str for section in targets})

    def spread(self, value: Value) -> list[Value]:
        """Split a mapping given for a nested dataclass into its keys; refuse keys that do not exist."""
        if value.key in self.types or self._dict_above(value.key):
            return [value]
        if not any(known.startswith(value.key + ".") for known in self.types):
            raise self.unknown(value)
        if not isinstance(value.value, dict):
            inner = ", ".join(k.removeprefix(value.key + ".") for k in self.types if k.startswith(value.key + "."))
            raise ConfigError(f"{value.key}: holds keys ({inner}), not {_shown(value)}. Write {value.key}.KEY=VALUE{value.where}")
        found: list[Value] = []
        for key, inner_value in value.value.items():
            found += self.spread(dataclasses.replace(value, key=f"{value.key}.{key}", value=inner_value, text=None))
        return found

    def _dict_above(self, key: str) -> str | None:
        """Return the key of the dict field that `key` is an entry of, if there is one."""
        parts = key.split(".")
        above = (".".join(parts[:n]) for n in range(2, len(parts)))
        return next((k for k in above if typing.get_origin(self.types.get(k)) is dict), None)

    def field_of(self, key: str) -> str:
        """Return the dotted field that a key sets: the dict field for one of its entries, else the key itself."""
        return self._dict_above(key) or key

    def unknown(self, value: Value) -> ConfigError:
        """Explain a key that does not exist: a slip in the section or in the key, or a key of another section."""
        section, _, rest = value.key.partition(".")
        if section not in self.schemas:
            known = list(self.schemas)
            return ConfigError(f"{value.key}: no such section '{section}'.{hint(section, known)} Sections: {', '.join(known)}{value.where}")
        above, leaf = value.key.rpartition(".")[::2]
        if above in self.types:
            kind = type_text(self.types[above])
            return ConfigError(f"{value.key}: no such key, because {above} is one value ({kind}). Write {above}=VALUE{value.where}")
        return ConfigError(f"{value.key}: no such key.{self._suggest(above, section, rest, leaf)}{value.where}")

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
        return f" Keys: {', '.join(k for k in beside if k != '_target_')}" if beside else ""


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
    key = keys.field_of(value.key)
    kind = keys.types[key]
    path = key.removeprefix(section + ".")
    given = _as_typed(value, kind)
    if key != value.key:  # one entry of a dict field: keep the others
        given = {**OmegaConf.to_container(OmegaConf.select(node, path)), value.key.removeprefix(key + "."): given}  # type: ignore[dict-item]
    if not _sensible(given, kind):
        raise _misfit(value, kind)
    try:
        OmegaConf.update(node, path, given, merge=False)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise _misfit(value, kind if key == value.key else typing.get_args(kind)[1]) from error


def _as_typed(value: Value, kind: Any) -> Any:
    """Take the word as typed for a key that holds text, so that `run.name=007` stays 007."""
    wants_text = kind is str or str in typing.get_args(kind) and typing.get_origin(kind) in (typing.Union, types.UnionType)
    plain = isinstance(value.value, int | float) and value.text is not None
    return value.text if wants_text and plain else value.value


def _sensible(value: Any, kind: Any) -> bool:
    """Refuse what OmegaConf would accept and nobody means: 5 for true, nan for a number, `${...}` in a text."""
    if isinstance(value, dict | list):
        inner = typing.get_args(kind)[-1] if typing.get_args(kind) else None
        return all(_sensible(v, inner) for v in (value.values() if isinstance(value, dict) else value))
    if kind is bool:
        return value in (0, 1) or str(value).lower() in ("true", "false", "yes", "no", "on", "off")
    if isinstance(value, str) and "${" in value:
        return False
    return float not in (kind, *typing.get_args(kind)) or str(value).lower() != "nan"


def _misfit(value: Value, kind: Any) -> ConfigError:
    """Say what a key expects and what it got; for closed lists, the nearest choice and the list."""
    options = [kind, *typing.get_args(kind)]
    choices = [str(c) for option in options if typing.get_origin(option) is Literal for c in typing.get_args(option)]
    if choices and not isinstance(value.value, dict | list):
        choices += ["null"] if type(None) in options else []
        near = hint(str(value.value), choices)
        return ConfigError(f"{value.key}: no such choice '{value.value}'.{near} Choices: {', '.join(choices)}{value.where}")
    advice = ""
    if isinstance(value.value, str) and "${" in value.value:
        advice = ". A value cannot refer to another key"
    elif isinstance(value.value, float) and value.value.is_integer() and int in options:
        advice = f". Write {value.key}={int(value.value)}"
    elif typing.get_origin(kind) is list and isinstance(value.value, str | int | float):
        advice = f". Write {value.key}=[{value.value}]"
    return ConfigError(f"{value.key}: expected {type_text(kind)}, got {_shown(value)}{advice}{value.where}")


def _shown(value: Value) -> str:
    if isinstance(value.value, str):
        return f"'{value.value}'"
    return "null" if value.value is None else value.text or str(value.value)


def _make(schema: type, plain: dict[str, Any], path: str, origins: dict[str, Value]) -> Any:
    """Construct a dataclass from the inside out; a ValueError of its own checks gets the section and the file in front and behind."""
    hints = typing.get_type_hints(schema)
    ready = {name: _make(hints[name], inner, f"{path}.{name}", origins) if dataclasses.is_dataclass(hints[name]) else inner
             for name, inner in plain.items()}
    try:
        return schema(**ready)
    except ValueError as error:
        named = re.match(r"([\w.]+): ", str(error))
        known = named is not None and named[1].partition(".")[0] in ready
        source = origins.get(f"{path}.{named[1]}") if named and known else None
        raise ConfigError(f"{path}{'.' if known else ': '}{error}{source.where if source else ''}") from error

