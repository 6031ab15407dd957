"""Answers in generated rationales: what a text says, and whether that is right.

The figure to go by is `accuracy`: numbers are compared as numbers, letters as letters, and a text without an answer is wrong. Beside it
stand the three exact matches that lm-evaluation-harness computes on GSM8K. They look for other templates, so they may be 0 where every
answer is right: its strict filter wants `#### 72`, its chain-of-thought filter `The answer is 72.`, and its flexible one takes the last
thing that looks like a number, be it `...`.
"""

import math
import re

MARKER = re.compile(r"answer is|####", re.IGNORECASE)
NUMBER = re.compile(r"(?:(?<![\w.)\]])-\$?|\$-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\.)\.\d+)")
LETTERS = "ABCDE"
OPTION = re.compile(rf"^\s*\(?([{LETTERS}])[.):]\s*(.+?)\s*$", re.MULTILINE)
LETTER = re.compile(rf"\W*?(?:(?i:option|choice)\s+)?(?:\(([{LETTERS}{LETTERS.lower()}])\)|([{LETTERS}])(?!['’]?\w))")

INVALID = "[invalid]"  # what lm-evaluation-harness extracts where a pattern is not found
PATTERNS = {  # name of the metric -> pattern, and which of its matches counts
    "lm_eval_strict": (re.compile(r"#### (\-?[0-9\.\,]+)"), 0),
    "lm_eval_flexible": (re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)"), -1),
    "lm_eval_cot_strict": (re.compile(r"The answer is (\-?[0-9\.\,]+)."), 0),
}
IGNORED = tuple(map(re.compile, (",", r"\$", r"(?s).*#### ", r"\.$")))  # taken out of both sides before they are compared


def said(text: str) -> str | None:
    """Return what follows the last `answer is` or `####`; None if neither is there."""
    parts = MARKER.split(text)
    return parts[-1] if len(parts) > 1 else None


def numeric(text: str) -> float | None:
    """Return the first number after the last marker, or the last number of a text without a marker; None if there is none."""
    tail = said(text)
    found = NUMBER.findall((text if tail is None else tail).replace("−", "-"))
    if not found:
        return None
    return float(found[-1 if tail is None else 0].replace("$", "").replace(",", ""))


def letter(text: str, question: str) -> str | None:
    """Return the letter of the option named after the last marker: as `C`, `(C)`, `C.` or by its text; None if none is.

    `question` has its options on lines of their own, such as `A. ignore`. Their texts are tried before letters, so that `A race track` is
    not taken for A.
    """
    tail = said(text)
    if tail is None:
        return None
    words = _without_article(tail)
    options = sorted(((_without_article(option), name) for name, option in OPTION.findall(question)), key=lambda pair: -len(pair[0]))
    for option, name in options:  # the longest first, since one may begin with another
        if re.match(rf"{re.escape(option)}(?!\w)", words):
            return name
    found = LETTER.match(tail)
    return (found[1] or found[2]).upper() if found else None


def _without_article(text: str) -> str:
    return re.sub(r"^\W*(?:(?:an?|the)\s+)?", "", text.casefold())


def number_of(gold: str) -> float | None:
    """Return the value of a gold answer that is one number, with or without a unit; None for other answers."""
    found = NUMBER.match(gold.strip())
    if found is None or re.search(r"\d", gold.strip()[found.end():]):
        return None
    return numeric(gold)


def judge(text: str, question: str, gold: str) -> tuple[str | None, bool]:
    """Return the answer that `text` gives, None if it gives none, and whether it is the gold one.

    Gold letters are compared as options, gold numbers as numbers up to 1e-6, and other gold answers by their words.
    """
    if len(gold) == 1 and gold in LETTERS:
        choice = letter(text, question)
        return choice, choice == gold
    value = number_of(gold)
    if value is not None:
        number = numeric(text)
        shown = None if number is None or not math.isfinite(number) else f"{number:.12g}"
        return shown, shown is not None and abs(number - value) <= 1e-6  # type: ignore[operator]
    words = (said(text) or "").strip(" \t\n.:").casefold()
    return words or None, words == gold.strip(" .").casefold()


def lm_eval_answer(text: str, metric: str) -> str:
    """Extract as the filter of lm-evaluation-harness behind `metric` does."""
    pattern, which = PATTERNS[metric]
    found = pattern.findall(text)
    if not found:
        return INVALID
    match = found[which]
    return (match if isinstance(match, str) else next(filter(None, match))).strip()


def lm_eval_right(text: str, gold: str, metric: str) -> bool:
    """Tell whether lm-evaluation-harness counts `text` as right: an exact match of strings without commas, dollars and a last period."""
    return _plain(lm_eval_answer(text, metric)) == _plain(gold)


def _plain(text: str) -> str:
    for pattern in IGNORED:
        text = pattern.sub("", text)
    return text.lower()
