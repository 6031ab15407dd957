"""Three rules that read a letter out of a reply, and one that reads it out of the letters' logits.

`official` is the benchmark's own rule, frozen, faults and all: any capital among the letters counts, wherever it stands, and a reply
without one is an A. `strict` takes only what the reply says on purpose, and `vlmevalkit` is that harness' rule without its judge.
"""

import re
from collections.abc import Sequence

from datamodules.av_questions import LETTERS

RULES = ("official", "strict", "vlmevalkit")
_STRIPPED = (",", ".", "!", "?", ";", ":", "'")  # from both ends, one after another
_BLANKED = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([A-D])", re.IGNORECASE)  # of VLMEvalKit
_EXPLICIT = re.compile(  # "the answer is (B)", "Answer: B", "option B is correct", "\boxed{B}", "<answer>B</answer>"
    r"(?i:\banswer\s*(?:is\b|[:=])|\boption|\bchoice|\\boxed\{|<answer>)\s*(?i:option\s+)?[:=]?\s*[*_(\[{]*([A-D])(?![\w'’-])")
_LEADING = re.compile(r"\W*([A-D])(?:[*_)\]]+|\s*[.:,;\n]|\s+[-–—]\s|\s*$)")
_TRAILING = re.compile(r"(?:^|(?<!\bor)(?<!\band)(?<!\bnot)[\s(\[*_\"'{])([A-D])[\s.!)\]*_\"'}]*$")
_BRACKETED = re.compile(r"\(([A-D])\)")
_REFUSAL = re.compile(
    r"(?i)\b(?:sorry|apologi[sz]e)\b|\b(?:can(?:no|')?t|can not|unable to|not able to|do(?:n't| not) have the ability to)"
    r"\s+(?:\w+\s+){0,2}?(?:listen|hear|process|analy[sz]e|play|access|see|view|watch|help|assist|answer|determine)")


def official(reply: str, options: Sequence[str]) -> str:
    """Read a letter as the benchmark's evaluation and lmms-eval do, bit for bit; there always is one."""
    for sign in _STRIPPED:
        reply = reply.strip(sign)
    letters = LETTERS[: len(options)]
    found = [letter for letter in letters if letter in reply]
    if found:
        return max(found, key=lambda letter: reply.rfind(f"({letter})"))  # the first of equals: A before B where there is no bracket
    if len(reply.split()) <= 5:
        return "A"
    padded = f" {reply} ".lower()
    named = [(padded.rfind(option.lower()), letter) for letter, option in zip(letters, options)]
    last, letter = max(named, key=lambda place: place[0])  # the first of equals
    return letter if last >= 0 else "A"


def strict(reply: str, options: Sequence[str]) -> str | None:
    """Read the letter that a reply gives on purpose; None if it gives none, or two that differ.

    The last "answer is X" (or Answer: X, option X, a box, an answer tag) wins. Else the letter stands at the reply's head, set off by
    a sign, or at its end; a reply of one small letter counts.
    """
    letters = LETTERS[: len(options)]
    said = _EXPLICIT.findall(reply)
    if said:
        return said[-1] if said[-1] in letters else None
    text = reply.strip()
    if len(text) == 1:
        text = text.upper()
    found = {match[1] for match in (_LEADING.match(text), _TRAILING.search(text)) if match} | set(_BRACKETED.findall(text))
    letter = found.pop() if len(found) == 1 else ""
    return letter if letter and letter in letters else None


def vlmevalkit(reply: str, options: Sequence[str]) -> str | None:
    """Read a letter by VLMEvalKit's rule, or None where that asks a judge.

    One letter stands alone among the words, first within the last four; else "answer is X"; else the one option that a reply of at most
    twice all options' length holds.
    """
    letters = LETTERS[: len(options)]
    words = reply.translate(_BLANKED).split()
    alone = [letter for letter in letters if letter in words]
    if len(alone) == 1 and words.index(alone[0]) > len(words) - 5:
        return alone[0]
    if (match := _ANSWER_IS.search(reply)) and match[1].upper() in letters:
        return match[1].upper()
    if len(reply) > 2 * sum(map(len, options)):
        return None
    held = [letter for letter, option in zip(letters, options) if option.lower() in reply.lower()]
    return held[0] if len(held) == 1 else None


def letter_of_logits(logits: Sequence[float]) -> str:
    """Return the letter with the highest logit, the first of equals: a metric of its own, not comparable with replies."""
    return LETTERS[max(range(len(logits)), key=lambda place: logits[place])]


def refuses(reply: str, options: Sequence[str]) -> bool:
    """Tell whether a reply declines to answer: no letter on purpose, and words such as "I cannot listen"."""
    return strict(reply, options) is None and _REFUSAL.search(reply) is not None
