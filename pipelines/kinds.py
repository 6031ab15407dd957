"""What the keys of a dataclass may hold: their types, also in words, their closed choices and their defaults."""

import dataclasses
import types
import typing
from typing import Any, Literal

from omegaconf import OmegaConf

NAMES = {int: "integer", float: "number", bool: "true or false", str: "text", type(None): "null"}


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


def shown(value: Any) -> str:
    """Write a value as a command line would take it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(shown(v) for v in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k}: {shown(v)}' for k, v in value.items())}}}"
    return "''" if value == "" else str(value)


def parts(kind: Any) -> tuple[Any, ...]:
    """Return the types that a union joins; any other type stands alone."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def choices(kind: Any) -> list[str]:
    """List the closed choices of a key, null among them; empty for any other key."""
    listed = [str(c) for part in parts(kind) if typing.get_origin(part) is Literal for c in typing.get_args(part)]
    return listed + ["null"] * (bool(listed) and type(None) in parts(kind))


def leaves(schema: type, prefix: str = "") -> dict[str, Any]:
    """Map each dotted key of a dataclass, nested ones followed, to its type."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        kind = hints[field.name]
        nested = dataclasses.is_dataclass(kind)
        found |= leaves(typing.cast(type, kind), f"{prefix}{field.name}.") if nested else {prefix + field.name: kind}
    return found


def defaults(schema: type) -> dict[str, Any]:
    """Return the defaults of a dataclass, nested ones as nested dicts; `???` where there is none."""
    return typing.cast(dict, OmegaConf.to_container(OmegaConf.structured(schema)))
