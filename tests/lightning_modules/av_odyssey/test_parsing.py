import random
import re

import pytest

from lightning_modules.av_odyssey.parsing import letter_of_logits, official, refuses, strict, vlmevalkit

OPTIONS = ("the first image", "the second image", "the third image", "the fourth image")
BASED = "Based on the audio, the answer is C"
LONG = "I think it is the third image in the list"
TABLE = [  # reply, the benchmark's rule and lmms-eval's, VLMEvalKit's rule, ours
    ("C", "C", "C", "C"), ("C.", "C", "C", "C"), ("(C)", "C", "C", "C"), ("C: the third image", "C", "C", "C"),
    ("c", "A", None, "C"),
    ("Answer: C", "A", "C", "C"),
    ("The Answer is C", "A", "C", "C"), ("As an AI model, C", "A", "C", "C"),
    (BASED, "B", "C", "C"),
    ("the third image", "A", "C", None), ("It is the third image", "A", "C", None),
    (LONG, "C", "C", None),
    ("(C) is right, (A) is wrong", "A", None, None),
    ("C, not A", "A", None, "C"), ("A or C? C", "A", None, "C"),
    ("C. The audio sounds like a Dog", "C", None, "C"),
    ("Cat", "C", None, None),
    ("", "A", None, None), ("error!", "A", None, None), ("I cannot listen to audio.", "A", None, None),
]


@pytest.mark.parametrize(("reply", "benchmark", "kit", "ours"), TABLE)
def test_replies_are_read_as_each_rule_reads_them(reply, benchmark, kit, ours):
    assert official(reply, OPTIONS) == benchmark
    assert vlmevalkit(reply, OPTIONS) == kit
    assert strict(reply, OPTIONS) == ours


def rederived(reply, options):
    """Follow the seven written steps of the rule one by one, with searches where the code under test compares strings."""
    for sign in [r",", r"\.", r"!", r"\?", r";", r":", r"'"]:
        reply = re.sub(rf"\A(?:{sign})+|(?:{sign})+\Z", "", reply)
    reply = " " + reply + " "
    by_letter = dict(zip("ABCD", options))
    candidates = sorted(set(re.findall("[A-D]", reply)) & set(by_letter))
    by_content = False
    if not candidates and len(re.findall(r"\S+", reply)) > 5:
        candidates, by_content = [x for x, option in by_letter.items() if re.search(re.escape(option.lower()), reply.lower())], True
    if not candidates:
        return "A"
    places = []
    for letter in candidates:
        sought = re.escape(by_letter[letter].lower()) if by_content else rf"\({letter}\)"
        hits = [match.start() for match in re.finditer(f"(?={sought})", reply.lower() if by_content else reply)]
        places.append(hits[-1] if hits else -1)
    return candidates[places.index(max(places))]


PIECES = ["A", "B", "C", "D", "(A)", "(B)", "(C)", "(D)", "a", "answer is", "Answer:", "the first image", "the Second image", "the third",
          "image", "dog", "sound", "I", "think", ",", ".", "!", "?", ";", ":", "'", " ", "\n", "It", "not", "violin and cello", "cello"]
SETS = [OPTIONS, ("violin", "violin and cello", "cello", "drum"), ("3", "4"), ("dog", "a dog", "the dog", "dog ")]


def fuzzed(seed, count):
    draw = random.Random(seed)
    for _ in range(count):
        joined = draw.choice(["", " "]).join(draw.choices(PIECES, k=draw.randint(0, 12)))
        yield joined, draw.choice(SETS)


def test_twenty_thousand_replies_are_read_as_by_the_rules_written_steps():
    seen = set()
    for reply, options in fuzzed(7, 20_000):
        letter = official(reply, options)
        seen.add(letter)
        assert letter == rederived(reply, options), (reply, options)
    assert seen == set("ABCD")


@pytest.mark.parametrize(("reply", "letter"), [
    ("second B", "B"), ("B) 440 Hz", "B"), ("**B**", "B"), ("The correct answer is **B**.", "B"), (r"so \boxed{B}", "B"),
    ("<answer>B</answer>", "B"), ("answer is A. No: the answer is B", "B"), ("Option B is correct, not A", "B"), ("B - the dog", "B"),
    ("A dog barks", None), ("Both", None), ("The answer is Drum", None), ("Answer: E", None), ("ABCD", None), ("B or D", None),
    ("(B), not (D)", None), ("It is a B-flat", None), ("I'd say\nB", "B"), ("The answer is: (B) the second image", "B"),
])
def test_the_strict_rule_takes_what_is_said_on_purpose(reply, letter):
    assert strict(reply, OPTIONS) == letter


def test_letters_beyond_the_options_are_no_answers():
    two = ("first", "second")
    assert strict("C", two) is None
    assert vlmevalkit("C", two) is None
    assert official("C", two) == "A"
    assert strict("B", two) == "B"


def test_logits_give_the_letter_of_the_highest_and_the_first_of_equals():
    assert letter_of_logits((0.1, 2.0, -1.0)) == "B"
    assert letter_of_logits((1.0, 3.0, 3.0, 2.0)) == "B"


@pytest.mark.parametrize(("reply", "refused"), [
    ("I cannot listen to audio.", True), ("I'm sorry, but I can't process this file.", True),
    ("As a text model I am unable to hear it", True),
    ("B. I cannot hear more", False), ("The answer is B, sorry for the delay", False), ("the third image", False), ("", False),
    ("The dog cannot bark", False),
])
def test_refusals_are_told_from_answers(reply, refused):
    assert refuses(reply, OPTIONS) is refused
