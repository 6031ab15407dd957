"""The words of a command line: flags, `group=choice`, `config=FILE`, `section.key=value`, and `data=NAME` in short."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipelines.catalog import choices_of
from pipelines.errors import ConfigError, hint
from pipelines.schema import COMPONENTS, GROUPS, SECTIONS


@dataclass(frozen=True)
class Words:
    """A command line taken apart; nothing is checked against a schema yet."""

    choices: dict[str, str] = field(default_factory=dict)  # group -> choice
    settings: dict[str, str] = field(default_factory=dict)  # section.key -> value as typed
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
    choices = {key: given.pop(key) for key in GROUPS if key in given}
    file = given.pop("config", None)
    for key, text in given.items():
        if "." not in key:
            _refuse_slip(key, text)
    return Words(choices, given, file)


def _halves(word: str) -> tuple[str, str]:
    key, equals, text = word.partition("=")
    if not _is_utf8(word):
        raise ConfigError(f"{word!r}: is not UTF-8 text. Write it in the encoding of your terminal")
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


def _refuse_slip(key: str, text: str) -> None:
    """Explain a section without its key and a misspelt group; any other word may be a key without its section, told apart later."""
    if key == "data":  # short for the first of SHORT that the method's data have, told apart later
        return
    if key in SECTIONS or key in COMPONENTS:
        raise ConfigError(f"{key}: is a section, not a group. Write {key}.KEY={text}")
    groups = ("config", *GROUPS)
    if found := hint(key, groups):
        raise ConfigError(f"{key}: no such group.{found} Groups: {', '.join(groups)}")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
