"""Cut a rationale into reasoning steps: sentences and lines, or literally at every full stop as the KPOD paper writes."""

import re
from collections.abc import Iterator
from typing import Literal

VERSION = 1  # part of the key of everything made from steps: raise it when the same text is cut otherwise

Splitter = Literal["sentence", "dot"]

_OPENING, _CLOSING = r"[\"'“‘(\[]*", r"[\"'”’)\]]*"
_END = re.compile(rf"[.!?]+{_CLOSING}\s+(?={_OPENING}[A-ZÀ-Þ0-9$€£])")
_MARKER = re.compile(r"[(*\-\s]*(?:step\s+)?(?:\d+|[a-z])", re.IGNORECASE)  # what stands before the "." of "1." or "Step 2."
_ABBREVIATIONS = frozenset(("mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "e.g", "i.e", "approx", "ave", "fig", "eq"))
_PLAIN = str.maketrans({"×": "*", "÷": "/", "−": "-"})


def split_steps(rationale: str, splitter: Splitter = "sentence", max_steps: int | None = None) -> tuple[str, ...]:
    """Return the steps of a rationale, without the space around them; empty if no letter or digit is in it.

    "sentence" ends a step at the end of a line, and at [.!?] before a capital, a digit or a currency sign; not inside a number, after
    an abbreviation, or after a list marker. "dot" ends it at every ".", inside numbers too. A piece without letters and digits belongs
    to the step before it, or to the first one. More than `max_steps` steps are merged, the shortest neighbours first.
    """
    pieces = _at_dots(rationale) if splitter == "dot" else (piece for line in rationale.splitlines() for piece in _sentences(line))
    return tuple(_merged(_readable([" ".join(piece.split()) for piece in pieces], "" if splitter == "dot" else " "), max_steps))


def plain_symbols(text: str) -> str:
    """Write × ÷ − as * / -, for vocabularies that lack them (T5's does)."""
    return text.translate(_PLAIN)


def _sentences(line: str) -> Iterator[str]:
    start = 0
    for match in _END.finditer(line):
        before = line[start : match.start()]
        if not _continues(before, line[match.start()], line[match.end()]):
            yield line[start : match.end()]
            start = match.end()
    yield line[start:]


def _continues(before: str, mark: str, following: str) -> bool:
    """Tell whether the "." after `before` ends no sentence: it closes a list marker or an abbreviation."""
    if mark != ".":
        return False
    word = before.split()[-1].lstrip("(\"'").lower() if before.split() else ""
    return bool(_MARKER.fullmatch(before)) or word in _ABBREVIATIONS or (word == "no" and following.isdigit())


def _at_dots(rationale: str) -> Iterator[str]:
    *closed, rest = rationale.split(".")
    yield from (piece + "." for piece in closed)
    yield rest


def _readable(pieces: list[str], space: str) -> list[str]:
    """Join pieces without letters and digits to those that have some."""
    steps: list[str] = []
    opening = ""  # what stands before the first step
    for piece in filter(None, pieces):
        if any(character.isalnum() for character in piece):
            steps.append(f"{opening} {piece}".strip())
            opening = ""
        elif steps:
            steps[-1] += space + piece
        else:
            opening = f"{opening} {piece}"
    return steps


def _merged(steps: list[str], max_steps: int | None) -> list[str]:
    while max_steps is not None and len(steps) > max_steps:
        shortest = min(range(len(steps) - 1), key=lambda place: len(steps[place]) + len(steps[place + 1]))
        steps[shortest : shortest + 2] = [f"{steps[shortest]} {steps[shortest + 1]}"]
    return steps
