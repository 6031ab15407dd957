"""The words of a command line: flags, `group=choice`, `config=FILE` and `section.key=value`."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pipelines.catalog import choices_of
from pipelines.errors import ConfigError, hint
from pipelines.schema import COMPONENTS, GROUPS, SECTIONS
from pipelines.yamltext import parse


@dataclass(frozen=True)
class Setting:
    """One `section.key=value`; `text` keeps the word as typed, for keys that hold text."""

    key: str
    text: str
    value: Any


@dataclass(frozen=True)
class Words:
    """A command line taken apart; nothing is checked against a schema yet."""

    choices: dict[str, str] = field(default_factory=dict)  # group -> choice
    settings: list[Setting] = field(default_factory=list)
    file: str | None = None  # of config=FILE


def split_flags(argv: list[str], allowed: Iterable[str]) -> tuple[set[str], list[str]]:
    """Part the flags (words with a leading dash) from the other words; a flag outside `allowed` raises ConfigError."""
    known = tuple(allowed)
    flags: set[str] = set()
    words: list[str] = []
    for word in argv:
        if not word.startswith("-"):
            words.append(word)
        elif (flag := "--help" if word == "-h" else word) in known:
            flags.add(flag)
        elif "=" in word:
            raise ConfigError(f"{word}: settings have no dashes. Write {word.lstrip('-')}")
        else:
            raise ConfigError(f"{word}: no such flag.{hint(word, known) or ' Flags: ' + ', '.join(known)}")
    return flags, words


def read_words(argv: list[str]) -> Words:
    """Take the words apart; a malformed or repeated one raises ConfigError with what to write instead."""
    given: dict[str, str] = {}
    for word in argv:
        key, text = _halves(word)
        if key in given:
            raise ConfigError(f"{key}: given twice, as '{given[key]}' and as '{text}'. Keep one")
        given[key] = text
    plain = {key: text for key, text in given.items() if "." not in key}
    for key in plain.keys() - {"config", *GROUPS}:
        raise _no_such_group(key, plain[key])
    settings = [Setting(key, text, parse(text, key)) for key, text in given.items() if "." in key]
    return Words({k: v for k, v in plain.items() if k != "config"}, settings, plain.get("config"))


def _halves(word: str) -> tuple[str, str]:
    key, equals, text = word.partition("=")
    if word.startswith("-"):
        raise ConfigError(f"{word}: flags are not settings. Write section.key=value")
    if not equals:
        raise _no_equals(word)
    if not key or not all(part and part == part.strip() for part in key.split(".")):
        raise ConfigError(f"{word}: not a setting. Write section.key=value or group=choice")
    if not text.strip():
        nothing = f", or {key}=null for no value" if "." in key else ""
        raise ConfigError(f"{word}: nothing after '='. Write {key}=VALUE{nothing}")
    return key, text


def _no_equals(word: str) -> ConfigError:
    """Explain a word without `=`: a choice without its group, a dot for an equals sign, or just a key."""
    group, dot, choice = word.partition(".")
    if dot and group in GROUPS and choice in choices_of(group):
        return ConfigError(f"{word}: no '='. Did you mean '{group}={choice}'?")
    for group in GROUPS:
        if not dot and word in choices_of(group):
            return ConfigError(f"{word}: no '='. Did you mean '{group}={word}'?")
    if word in GROUPS:
        return ConfigError(f"{word}: no '='. Write {word}=CHOICE, one of: {', '.join(choices_of(word))}")
    return ConfigError(f"{word}: no '='. Write {word}=VALUE" if dot else f"{word}: no '='. Write section.key=value or group=choice")


def _no_such_group(key: str, text: str) -> ConfigError:
    """Explain a word without a dot that is no group: a key without its section, a section, or a slip of the fingers."""
    for section, kind in SECTIONS.items():
        if key in kind.__dataclass_fields__ and key not in (*SECTIONS, *COMPONENTS):
            return ConfigError(f"{key}: no section. Did you mean '{section}.{key}={text}'?")
    if key in SECTIONS or key in COMPONENTS:
        return ConfigError(f"{key}: is a section, not a group. Write {key}.KEY={text}")
    groups = ("config", *GROUPS)
    return ConfigError(f"{key}: no such group.{hint(key, groups)} Groups: {', '.join(groups)}")
