"""Rows of a table as text: the value under one key, or a template filled with several."""

import difflib
from dataclasses import dataclass
from functools import cached_property
from string import Formatter
from typing import Any


class DataError(ValueError):
    """Data that the user has to mend; the message is one line and says how."""


@dataclass(frozen=True)
class RowFormat:
    """How a row becomes a document.

    A template names keys in braces, as "Question: {question}\\nAnswer: {answer}"; text and numbers may fill it.
    Double braces are literal ones.
    """

    text_key: str = "text"
    template: str | None = None

    def __post_init__(self) -> None:
        if self.template is None:
            return
        try:
            fields = [part[1:] for part in Formatter().parse(self.template) if part[1] is not None]
        except ValueError as error:
            raise ValueError(f"template: must name keys in braces and double any other brace ({error}), not {self.template!r}") from None
        if not fields:
            raise ValueError(f"template: must name at least one key in braces, such as {{output}}, not {self.template!r}")
        for name, specification, conversion in fields:
            if not name or specification or conversion or set(name) & set(".[]"):
                raise ValueError(f"template: takes plain keys in braces, such as {{output}}, not {{{name or ''}}} in {self.template!r}")

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The keys that a row must have, without repetition."""
        if self.template is None:
            return (self.text_key,)
        return tuple(dict.fromkeys(name for _, name, _, _ in Formatter().parse(self.template) if name))

    def text(self, row: Any, where: str) -> str:
        """Turn a row into text; `where` names the row in the message of a DataError."""
        if not isinstance(row, dict):
            raise DataError(f"{where}: a {type(row).__name__} instead of an object; write one object a line, such as {self.example}")
        for key in self.keys:
            if key not in row:
                raise DataError(f"{where}: {self.missing(key, list(row))}")
        text = row[self.text_key] if self.template is None else self.template.format_map(_fillings(row, self.keys, where))
        if not isinstance(text, str):
            raise DataError(f"{where}: '{self.text_key}' is {_kind(text)} instead of a string; "
                            "write the text in quotes, or leave the row out")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: the text has half of a surrogate pair at character {error.start}; "
                            "write the character itself in UTF-8") from None
        return text

    @property
    def example(self) -> str:
        """One row as it should be."""
        return "{" + ", ".join(f'"{key}": "..."' for key in self.keys) + "}"

    def missing(self, key: str, found: list[str]) -> str:
        """Say which key to ask for instead of one that rows do not have."""
        listed = ", ".join(sorted(found)) or "(no keys)"
        if self.template is not None:
            return f"no key '{key}', which data.template names; the row has: {listed}"
        near = difflib.get_close_matches(key, found, n=1, cutoff=0.5) or (found if len(found) == 1 else [])
        return f"no key '{key}'; " + (f"set data.text_key={near[0]}" if near else f"set data.text_key to one of: {listed}")


def _fillings(row: dict[str, Any], keys: tuple[str, ...], where: str) -> dict[str, str]:
    for key in keys:
        if not isinstance(row[key], str | int | float):
            raise DataError(f"{where}: '{key}' is {_kind(row[key])} instead of text or a number; "
                            "leave it out of data.template, or mend the row")
    return {key: str(row[key]) for key in keys}


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
