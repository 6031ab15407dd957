"""What a generated text answers: by our rules, and by those of lm-evaluation-harness."""

import json
import random
from pathlib import Path

import pytest

from lightning_modules.intervals import wilson
from lightning_modules.kpod.accuracy import Accuracy
from lightning_modules.kpod.answers import PATTERNS, judge, letter, lm_eval_answer, lm_eval_right, numeric

RATIONALES = Path(__file__).resolve().parents[4] / "shared" / "data" / "rationales"
needs_rationales = pytest.mark.skipif(not RATIONALES.is_dir(), reason="the folder shared/data/rationales beside the repository is missing")

# template -> percent of GSM8K's 1,319 test questions that each rule counts as right when the gold answer is in it: strict, flexible,
# chain-of-thought strict, ours (1.5: the gold answers that are 7)
PARITY = {
    "{r}\n#### {a}": (100, 100, 0, 100),
    "{r} Therefore, the answer is {a}": (0, 100, 0, 100),
    "{r} Therefore, the answer is {a}.": (0, 100, 0, 100),
    "{r} The answer is {a}.": (0, 100, 100, 100),
    "{r} Therefore, the answer is {a}.00": (0, 0, 0, 100),
    "{r} Therefore, the answer is ${a:,}": (0, 100, 0, 100),
    "{r} Therefore, the answer is {a} apples...": (0, 0, 0, 100),
    "{r} Therefore, the answer is {a}, found in 7 steps": (0, 1.5, 0, 100),
}

NUMBERS = {
    "3 + 4 = 7. Therefore, the answer is 7": 7, "He pays 10-3": 3, "It is 10 - 3": 3, "Therefore, the answer is $1,234.50, not 9": 1234.5,
    "the answer is -5": -5, "the answer is $-5": -5, "the answer is -$5.5": -5.5, "a half is .5": 0.5, "the answer is...5": 5,
    "#### 72": 72, "the answer is 1. So the ANSWER IS 2": 2, "the answer is 40%": 40, "2,5": 5, "the answer is −4": -4,
    "the answer is": None, "the answer is seven": None, "3 + 4. Therefore, the answer is": None, "no number": None, "": None,
}

QUESTION = "Where do crabs live? Answer Choices:\nA. ignore\nB. race track\nC. the desert\nD. desert island\nE. 12 seas"
CHOICES = {
    "Therefore, the answer is (C)": "C", "the answer is C.": "C", "the answer is D": "D", "the answer is (b) race track": "B",
    "the answer is option E": "E", "the answer is: **B**": "B", "the answer is A. Not B": "A", "not B, so the answer is A": "A",
    "the answer is A race track": "B", "the answer is the desert": "C", "the answer is Desert": "C", "the answer is a desert island": "D",
    "the answer is 12 seas.": "E", "the answer is A because": "A", "the answer is ignored": None, "the answer is a crab": None,
    "the answer is Apple": None, "the answer is E's": None, "It is B": None, "the answer is": None,
}


def gold_answers():
    rows = map(json.loads, (RATIONALES / "gsm8k.jsonl").read_text().splitlines())
    return [(row["rationale"], row["answer"]) for row in rows if row["split"] == "test"]


def percent(rights):
    return 100 * sum(rights) / len(rights)


def parity(template, rows):
    """Share of right answers by each rule."""
    texts = [template.format(r=rationale, a=int(gold) if ":," in template else gold) for rationale, gold in rows]
    golds = [gold for _, gold in rows]
    found = {metric: percent([lm_eval_right(text, gold, metric) for text, gold in zip(texts, golds)]) for metric in PATTERNS}
    return (found["lm_eval_strict"], found["lm_eval_flexible"], found["lm_eval_cot_strict"],
            percent([judge(text, "", gold)[1] for text, gold in zip(texts, golds)]))


@needs_rationales
@pytest.mark.parametrize("template", PARITY)
def test_rules_agree_on_gold_answers_only_where_they_look_for_the_template(template):
    rows = gold_answers()
    assert len(rows) == 1319
    assert parity(template, rows) == pytest.approx(PARITY[template], abs=0.05)


@needs_rationales
@pytest.mark.parametrize("template", PARITY)
def test_no_rule_accepts_an_answer_that_is_off_by_one(template):
    texts = [(template.format(r=rationale, a=int(gold) + 1), gold) for rationale, gold in gold_answers()]
    others = {metric: sum(lm_eval_right(text, gold, metric) for text, gold in texts) for metric in ("lm_eval_strict", "lm_eval_cot_strict")}
    assert not any(judge(text, "", gold)[1] for text, gold in texts)
    assert set(others.values()) == {0}


def texts_of_all_kinds():
    """Templates around random numbers, numbers in odd shapes, and random characters that the patterns look for."""
    draw = random.Random(0)
    golds = [str(draw.randint(-20, 3000)) for _ in range(300)]
    texts = [draw.choice([*PARITY]).format(r="So 3 + 4.5.", a=int(gold) + draw.choice([0, 0, 1])) for gold in golds]
    texts += ["".join(draw.choice("0129.,$- #A") for _ in range(draw.randint(0, 12))) for _ in range(300)]
    return [*texts, *NUMBERS, *CHOICES], [*golds, *golds, *["7"] * (len(NUMBERS) + len(CHOICES))]


@pytest.mark.parametrize("metric", PATTERNS)
def test_our_exact_match_is_the_harness_own(metric):
    extraction = pytest.importorskip("lm_eval.filters.extraction", reason="lm-eval is not installed; it comes with the extra dev")
    from lm_eval.api.metrics import exact_match_fn

    pattern, which = PATTERNS[metric]
    texts, golds = texts_of_all_kinds()
    theirs = [answer for (answer,) in extraction.RegexFilter(pattern.pattern, which).apply([[text] for text in texts], [{}] * len(texts))]
    assert [lm_eval_answer(text, metric) for text in texts] == theirs
    ignored = [",", "\\$", "(?s).*#### ", "\\.$"]
    rights = [exact_match_fn(predictions=[answer], references=[gold], regexes_to_ignore=ignored, ignore_case=True)["exact_match"]
              for answer, gold in zip(theirs, golds)]
    assert [lm_eval_right(text, gold, metric) for text, gold in zip(texts, golds)] == [bool(right) for right in rights]
    assert 0 < sum(rights) < len(rights)


def test_our_patterns_are_those_of_the_harness_tasks():
    tasks = pytest.importorskip("lm_eval.tasks", reason="lm-eval is not installed; it comes with the extra dev")
    import yaml

    found = {}
    for task, metrics in (("gsm8k", ("lm_eval_strict", "lm_eval_flexible")), ("gsm8k-cot", ("lm_eval_cot_strict", "lm_eval_flexible"))):
        filters = yaml.safe_load((Path(tasks.__file__).parent / "gsm8k" / f"{task}.yaml").read_text())["filter_list"]
        found |= {metric: (f["filter"][0]["regex_pattern"], f["filter"][0].get("group_select", 0)) for metric, f in zip(metrics, filters)}
    assert found == {metric: (pattern.pattern, which) for metric, (pattern, which) in PATTERNS.items()}


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_is_the_first_after_the_last_marker_else_the_last_of_the_text(text):
    assert numeric(text) == NUMBERS[text]


@pytest.mark.parametrize("text", CHOICES)
def test_a_choice_is_a_letter_or_the_words_of_an_option_after_the_marker(text):
    assert letter(text, QUESTION) == CHOICES[text]


def test_gold_answers_that_are_no_number_are_compared_by_their_words():
    assert judge("Therefore, the answer is 3:2.", "", "3:2") == ("3:2", True)
    assert judge("Therefore, the answer is 3:4", "", "3:2") == ("3:4", False)
    assert judge("Therefore, the answer is 9", "", "9 (apples)") == ("9", True)
    assert judge("the answer is " + "9" * 400, "", "9") == (None, False)


def test_a_text_without_an_answer_is_a_miss_and_wrong_and_a_question_counts_once():
    accuracy = Accuracy()
    for index, text in ((2, "the answer is 7"), (0, "the answer is 8"), (1, "I do not know"), (2, "the answer is 7"), (3, "7")):
        accuracy.add(index, text, f"question {index}", "7")
    found = accuracy.metrics()
    assert found["accuracy"] == 0.5
    assert found["miss_rate"] == 0.25
    assert found["lm_eval_flexible"] == 0.5
    assert found["lm_eval_strict"] == 0
    assert accuracy.rows()[1] == ("question 1", "7", "I do not know", "", False)
    assert [row[0][-1] for row in accuracy.rows()] == ["0", "1", "2", "3"]


def test_choices_have_no_harness_metric_because_the_harness_asks_for_likelihoods():
    accuracy = Accuracy()
    accuracy.add(0, "the answer is (C)", QUESTION, "C")
    assert set(accuracy.metrics()) == {"accuracy", "accuracy_low", "accuracy_high", "miss_rate"}


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (3, 10), (308, 659), (1, 1)])
def test_the_interval_is_wilsons(right, count):
    from scipy.stats import binomtest

    interval = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson(right, count) == pytest.approx((interval.low, interval.high), abs=1e-12)
