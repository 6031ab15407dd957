import json
import random
import re

import pytest
from small_rationales import SHARED_RATIONALES, needs_shared_rationales

from datamodules.steps import plain_symbols, split_steps

# what the specification measured on the same files: mean steps, most steps, share with decimals, without any ".", cut otherwise at "."
MEASURED = {
    "gsm8k": (3.59, 11, 0.122, 0.221, 0.519),
    "gsm8k_gpt35_500": (8.79, 27, 0.216, 0.0, 0.590),
    "svamp": (6.20, 66, 0.048, 0.007, 0.689),
    "commonsenseqa": (1.99, 4, 0.0, 0.0, 0.007),
}


@pytest.mark.parametrize(("text", "steps"), [
    ("He has 3. She has 4.", ["He has 3.", "She has 4."]),
    ("First\nthen this\n\nthen that", ["First", "then this", "then that"]),
    ("It costs 3.50 dollars. So 3.5 x 2 = 7.0.", ["It costs 3.50 dollars.", "So 3.5 x 2 = 7.0."]),
    ("1. Add them. 2. Divide them.", ["1. Add them.", "2. Divide them."]),
    ("Step 1. Add them.\na. Then divide.", ["Step 1. Add them.", "a. Then divide."]),
    ("Mr. Smith met Dr. Jones, i.e. A and B. Then he left.", ["Mr. Smith met Dr. Jones, i.e. A and B.", "Then he left."]),
    ("Is it No. 5 then? Yes! \"It is.\" He said no. 5 are left.", ["Is it No. 5 then?", "Yes!", '"It is."', "He said no. 5 are left."]),
    ("They pay $5. $3 is left. (Or less.) “Good.”", ["They pay $5.", "$3 is left.", "(Or less.)", "“Good.”"]),
    ("it ends. here it goes on", ["it ends. here it goes on"]),
    ("x + 7 = 10 ... \n ----- \nx = 3\n...", ["x + 7 = 10 ... -----", "x = 3 ..."]),
    ("  spaces   and\ttabs.  \n", ["spaces and tabs."]),
    ("---\n{\nx = 3", ["--- { x = 3"]),
    ("...\n!", []),
    ("", []),
])
def test_a_step_ends_with_a_sentence_or_a_line(text, steps):
    assert list(split_steps(text)) == steps


def test_at_dots_the_paper_is_followed_to_the_letter():
    assert split_steps("It costs 3.50 dollars. So 7.0...", "dot") == ("It costs 3.", "50 dollars.", "So 7.", "0...")
    assert split_steps("no stop at all\nhere", "dot") == ("no stop at all here",)


@pytest.mark.parametrize("splitter", ["sentence", "dot"])
def test_nothing_of_a_rationale_is_lost_or_moved(splitter):
    chance = random.Random(1)
    for _ in range(300):
        text = "".join(chance.choices("aB1. .\n!?\"'$()-é", k=60)) + "A1"
        steps = split_steps(text, splitter, chance.choice([None, 1, 2, 5]))
        assert "".join("".join(steps).split()) == "".join(text.split())
        assert all(any(character.isalnum() for character in step) for step in steps)
        assert all(step == step.strip() and "\n" not in step for step in steps)


def test_too_many_steps_are_merged_where_they_are_shortest():
    lines = ["a long first step it is", "b", "c", "another long step", "d d d d d d d d d d d d"]
    assert split_steps("\n".join(lines), max_steps=4) == (lines[0], "b c", lines[3], lines[4])
    assert split_steps("\n".join(lines), max_steps=3) == (lines[0], "b c another long step", lines[4])
    assert split_steps("\n".join(lines), max_steps=1) == (" ".join(lines),)
    assert split_steps("\n".join(lines), max_steps=5) == tuple(lines)


def test_symbols_that_t5_lacks_become_plain_ones():
    assert plain_symbols("6 × 2 ÷ 3 − 1 = 3") == "6 * 2 / 3 - 1 = 3"


@needs_shared_rationales
@pytest.mark.parametrize(("name", "measured"), MEASURED.items())
def test_real_rationales_have_the_steps_that_the_specification_measured(name, measured):
    lines = (SHARED_RATIONALES / f"{name}.jsonl").read_text().splitlines()
    texts = [text for text in (json.loads(line)["rationale"] for line in lines) if text.strip()]
    steps = [split_steps(text) for text in texts]
    counts = [len(each) for each in steps]
    naive = [sum(any(c.isalnum() for c in piece) for piece in text.split(".")) for text in texts]

    def share(flags):
        return sum(flags) / len(texts)

    found = (sum(counts) / len(counts), max(counts), share(bool(re.search(r"\d\.\d", text)) for text in texts),
             share("." not in text for text in texts), share(a != b for a, b in zip(naive, counts)))
    for value, expected, slack in zip(found, measured, (0.05, 1, 0.0006, 0.0006, 0.01)):
        assert abs(value - expected) <= slack
