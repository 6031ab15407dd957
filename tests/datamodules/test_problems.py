import re
from collections import Counter

import pytest

from datamodules.problems import LARGEST, problems
from datamodules.rows import DataError
from datamodules.steps import split_steps

COUNTS = {"train": 1500, "valid": 150, "test": 150}
ROWS = problems(COUNTS, 6, seed=1)


def test_no_question_is_in_two_splits_or_twice_in_one():
    assert Counter(row.split for row in ROWS) == COUNTS
    assert len({row.question for row in ROWS}) == len({row.id for row in ROWS}) == len(ROWS)


def test_every_equation_of_a_rationale_is_true_and_the_last_one_gives_the_answer():
    for row in ROWS:
        results = []
        for step in row.steps:
            ((left, operation, right, result),) = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)\.$", step)
            left, right = int(left), int(right)
            assert int(result) == {"+": left + right, "-": left - right, "*": left * right}[operation]
            results.append(result)
        assert results[-1] == row.answer


def solve(question):
    """Solve a problem from its question alone, reading one sentence after the other."""
    held, asked = {}, re.search(r"does (\w+) have", question).group(1)
    for sentence in re.split(r"(?<=\.) ", question):
        if found := re.match(r"(\w+) (?:has|gets) (\d+) boxes with (\d+) \w+ each", sentence):
            held[found[1]] = held.get(found[1], 0) + int(found[2]) * int(found[3])
        elif found := re.match(r"(\w+) has (\d+) (more|fewer) than (\w+)\.", sentence):
            held[found[1]] = held[found[4]] + int(found[2]) * (1 if found[3] == "more" else -1)
        elif found := re.match(r"(\w+) (has|buys|loses) (\d+)", sentence):
            held[found[1]] = int(found[3]) if found[2] == "has" else held[found[1]] + int(found[3]) * (1 if found[2] == "buys" else -1)
        elif sentence == "Then the number doubles.":
            held[asked] *= 2
    return held[asked]


def test_the_answer_is_what_a_reader_of_the_question_finds():
    assert [solve(row.question) for row in ROWS] == [int(row.answer) for row in ROWS]


def test_steps_and_numbers_stay_in_their_ranges_and_some_problems_have_each_length():
    assert set(Counter(len(row.steps) for row in ROWS)) == {1, 2, 3, 4, 5, 6}
    assert max(len(row.steps) for row in problems({"train": 200}, 3, 0)) == 3
    numbers = [int(number) for row in ROWS for number in re.findall(r"\d+", " ".join([row.question, *row.steps]))]
    assert max(numbers) <= LARGEST
    assert all(split_steps("\n".join(row.steps)) == row.steps for row in ROWS)


def test_some_problems_hold_a_number_that_does_not_matter():
    distracted = [row for row in ROWS if re.search(r"years old|seats|day \d", row.question)]
    assert 0.25 < len(distracted) / len(ROWS) < 0.42


def test_the_same_seed_makes_the_same_problems_and_another_does_not():
    assert problems(COUNTS, 6, seed=1) == ROWS
    assert {row.question for row in problems({"train": 50}, 6, seed=2)[:5]} != {row.question for row in ROWS[:5]}


def test_the_vocabulary_is_small():
    assert len({word for row in ROWS for word in re.findall(r"[A-Za-z]+", " ".join([row.question, *row.steps]))}) < 60


def test_more_problems_than_there_are_is_refused(monkeypatch):
    monkeypatch.setattr("datamodules.problems.ATTEMPTS", 1)
    with pytest.raises(DataError, match=r"^data.problems: \d+ different problems of at most 1 steps were found, and no more; lower it"):
        problems({"train": 20_000}, 1, 0)
