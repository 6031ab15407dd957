"""Arithmetic word problems with step-by-step rationales, made on the spot: data of a known kind for a run without any file."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from datamodules.rationales import Rationale
from datamodules.rows import DataError

VERSION = 1  # part of every key: raise it when the same seed gives other problems

NAMES = ("Tom", "Ann", "Ben", "Eva", "Max", "Zoe")
THINGS = ("apples", "books", "coins", "eggs", "pens", "cards")
DISTRACTORS = ("{name} is {n} years old.", "The bus has {n} seats.", "It is day {n} of the month.")
LARGEST = 99  # no number in a problem is above
ATTEMPTS = 1000  # to find one more problem that was not there before


@dataclass
class _Story:
    """A problem in the making: its sentences and the steps that solve it."""

    sentences: list[str]
    steps: list[str]

    def compute(self, left: int, operation: str, right: int, words: str) -> int:
        """Add the step `words` with the equation in it, and return its result."""
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[operation]
        self.steps.append(words.format(f"{left} {operation} {right} = {result}"))
        return result


def problems(counts: dict[str, int], max_steps: int, seed: int) -> list[Rationale]:
    """Make `counts[split]` problems of each split, each with 1 to `max_steps` steps; no question occurs twice."""
    chance = random.Random(seed)
    seen: set[str] = set()
    rows = []
    for split, count in counts.items():
        for number in range(count):
            row = _new(chance, max_steps, seen, f"problem-{split}-{number:05}", split)
            seen.add(row.question)
            rows.append(row)
    return rows


def _new(chance: random.Random, max_steps: int, seen: set[str], name: str, split: str) -> Rationale:
    for _ in range(ATTEMPTS):
        kind = chance.choice(KINDS)
        question, steps, answer = kind(chance, chance.randint(1, max_steps))
        if question not in seen and len(steps) <= max_steps and 0 <= answer <= LARGEST:
            return Rationale(name, question, tuple(steps), str(answer), split, "problems", True)
    raise DataError(f"data.problems: {len(seen)} different problems of at most {max_steps} steps were found, and no more; "
                    "lower it, or raise data.problem_steps")


def _changes(chance: random.Random, steps: int) -> tuple[str, list[str], int]:
    """Somebody's things become more and fewer."""
    name, thing = chance.choice(NAMES), chance.choice(THINGS)
    value = chance.randint(2, 20)
    story = _Story([f"{name} has {value} {thing}."], [])
    for _ in range(steps):
        value = _change(chance, story, name, value)
    _distract(chance, story, name)
    return f"{' '.join(story.sentences)} How many {thing} does {name} have now?", story.steps, value


def _change(chance: random.Random, story: _Story, name: str, value: int) -> int:
    amount = chance.randint(1, 9)
    options = [("buys", "+")] if value + amount <= LARGEST else []
    options += [("loses", "-")] if value > amount else []
    options += [("doubles", "*")] if 2 <= value <= 40 else []
    verb, operation = chance.choice(options)
    if operation == "*":
        story.sentences.append("Then the number doubles.")
        return story.compute(value, "*", 2, "The double is {}.")
    story.sentences.append(f"{name} {verb} {amount}.")
    return story.compute(value, operation, amount, f"{'With' if operation == '+' else 'Without'} {amount} it is {{}}.")


def _comparison(chance: random.Random, steps: int) -> tuple[str, list[str], int]:
    """A chain of people, each of whom has more or fewer than the one before."""
    names, thing = chance.sample(NAMES, min(steps, len(NAMES) - 1) + 1), chance.choice(THINGS)
    value = chance.randint(5, 20)
    story = _Story([f"{names[0]} has {value} {thing}."], [])
    for before, name in pairwise(names):
        amount = chance.randint(1, 4)
        words, operation = chance.choice((("more", "+"), ("fewer", "-"))) if value > amount else ("more", "+")
        story.sentences.append(f"{name} has {amount} {words} than {before}.")
        value = story.compute(value, operation, amount, f"{name} has {{}}.")
    _distract(chance, story, names[0])
    return f"{' '.join(story.sentences)} How many {thing} does {names[len(story.steps)]} have?", story.steps, value


def _groups(chance: random.Random, steps: int) -> tuple[str, list[str], int]:
    """Boxes with equally many things each, put together, and the rest taken away or shared."""
    name, thing = chance.choice(NAMES), chance.choice(THINGS)
    story = _Story([], [])
    total = 0
    for number in range(max(1, (steps + 1) // 2)):
        boxes, each = chance.randint(2, 5), chance.randint(2, 6)
        story.sentences.append(f"{name} {'has' if not number else 'gets'} {boxes} boxes with {each} {thing} each.")
        part = story.compute(boxes, "*", each, "The boxes hold {}.")
        total = story.compute(total, "+", part, "Together it is {}.") if number else part
    if len(story.steps) < steps:
        taken = chance.randint(1, min(9, total - 1))
        story.sentences.append(f"{name} loses {taken}.")
        total = story.compute(total, "-", taken, f"Without {taken} it is {{}}.")
    _distract(chance, story, name)
    return f"{' '.join(story.sentences)} How many {thing} does {name} have now?", story.steps, total


def _distract(chance: random.Random, story: _Story, name: str) -> None:
    """Put a sentence with a number that does not matter somewhere after the first, one time in three."""
    if chance.random() < 1 / 3:
        sentence = chance.choice(DISTRACTORS).format(name=name, n=chance.randint(5, 30))
        story.sentences.insert(chance.randint(1, len(story.sentences)), sentence)


KINDS: tuple[Callable[[random.Random, int], tuple[str, list[str], int]], ...] = (_changes, _comparison, _groups)
