"""What users are told when their words are wrong, and the search for what they meant."""

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(Exception):
    """A setting that cannot be used; the text is made one line, printed after `error:`."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))


class ConfigWarning(UserWarning):
    """A setting that has no effect; the text is one line, printed after `warning:`."""


def key_named_in(text: str) -> bool:
    """Tell whether an error opens with `section.key: `, as those do that a component raises while it is built."""
    from pipelines.schema import COMPONENTS, SECTIONS

    section, dot, rest = text.partition(": ")[0].partition(".")
    return bool(dot) and section in (*COMPONENTS, *SECTIONS) and rest.replace(".", "_").isidentifier()


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Find the choice that looks most like `word`, or else begins with it, whatever the case; None if nothing is close."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    found = found or [choice for choice in by_lower if len(word) > 1 and choice.startswith(word.lower())]
    return by_lower[found[0]] if found else None


def hint(word: str, choices: Iterable[str]) -> str:
    """Phrase the nearest choice as a question to append to an error; empty if nothing is close."""
    found = nearest(word, choices)
    return f" Did you mean '{found}'?" if found else ""


def refuse_choice(label: str, word: object, choices: Iterable[str], where: str = "") -> ConfigError:
    """Build the error for a value outside a closed list: the nearest choice, then the whole list."""
    listed = list(choices)
    return ConfigError(f"{label}: no such choice '{word}'.{hint(str(word), listed)} Choices: {', '.join(listed) or 'none'}{where}")
