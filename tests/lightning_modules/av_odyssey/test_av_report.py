import numpy as np
import pytest

from datamodules.av_synthetic import SyntheticQuestions
from lightning_modules.av_odyssey.adapter import Reply
from lightning_modules.av_odyssey.answers import Answer
from lightning_modules.av_odyssey.report import QUESTION_COLUMNS, SCORE_COLUMNS, Report

QUESTIONS = list(SyntheticQuestions(seed=5, each=4))


def answered(reply_of, logits=None):
    return [Answer.of(question, reply_of(question), f"k{index}") for index, question in enumerate(QUESTIONS)]


def by_hand(answers, letter_of):
    return np.mean([letter_of(answer) == answer.gold for answer in answers])


def test_rules_stand_side_by_side_and_chatty_replies_differ():
    report = Report.of(answered(lambda question: Reply(f"Answer: {question.answer}")))
    found = report.metrics()
    assert found["strict/micro"] == found["vlmevalkit/micro"] == 1.0
    assert found["official/micro"] == pytest.approx(by_hand(answered(lambda q: Reply("")), lambda answer: "A"))  # "Answer" holds an A
    assert found["always_a"] == found["official/micro"]
    assert found["random"] == 0.25


def test_replies_that_are_no_plain_answers_are_counted():
    words = ["C", "I cannot listen to audio.", "Hmm", "", "B and so on and"]
    status = ["ok", "ok", "ok", "error", "truncated"]
    answers = [Answer.of(question, Reply(words[i % 5], status[i % 5]), f"k{i}") for i, question in enumerate(QUESTIONS)]
    count = len(answers)
    found = Report.of(answers).metrics()
    share = [sum(i % 5 == kind for i in range(count)) / count for kind in range(5)]
    assert found["refused_rate"] == share[1]
    assert found["error_rate"] == share[3]
    assert found["truncated_rate"] == share[4]
    assert found["strict/invalid_rate"] == pytest.approx(sum(share[1:]))
    left_out = Report.of(answers, "left_out")
    assert left_out.metrics()["error_rate"] == share[3]  # of all questions, whatever is scored
    assert dict(left_out.rate_rows())["of all questions: error"] == pytest.approx(100 * share[3], abs=0.005)


def test_what_was_never_answered_counts_as_the_policy_says():
    answers = answered(lambda question: Reply("", "error") if question.task_id == 1 else Reply(question.answer))
    never = [answer.gold for answer in answers if answer.status == "error"]
    rest = len(answers) - len(never)
    official, wrong, left_out = (Report.of(answers, policy).metrics()["official/micro"] for policy in ("official", "wrong", "left_out"))
    assert official == pytest.approx((rest + never.count("A")) / len(answers))
    assert wrong == pytest.approx(rest / len(answers))
    assert left_out == 1.0
    assert len(Report.of(answers, "left_out").graded) == rest


def test_nothing_left_to_score_is_said():
    answers = [Answer.of(QUESTIONS[0], Reply("", "error", note="audio1: is silent"), "k")]
    with pytest.raises(ValueError, match="left_out where no question has an answer; the first says: audio1: is silent"):
        Report.of(answers, "left_out")


def test_logits_are_a_rule_of_their_own_where_every_answer_has_them():
    place = {letter: tuple(float(letter == other) for other in "ABCD") for letter in "ABCD"}
    answers = answered(lambda question: Reply("A", letter_logits=place[question.answer]))
    assert Report.of(answers).metrics()["letter_logits/micro"] == 1.0
    some = [*answers[1:], Answer.of(QUESTIONS[0], Reply("A"), "k0")]
    assert "letter_logits/micro" not in Report.of(some).metrics()


@pytest.mark.parametrize("status", ["error", "damaged"])
def test_what_was_never_answered_is_wrong_by_letters_logits_and_leaves_the_others_their_score(status):
    place = {letter: tuple(float(letter == other) for other in "ABCD") for letter in "ABCD"}
    answers = answered(lambda question: Reply("A", letter_logits=place[question.answer]))
    answers[3] = Answer.of(QUESTIONS[3], Reply("", status), "k3")
    assert Report.of(answers).metrics()["letter_logits/micro"] == pytest.approx(1 - 1 / len(answers))
    assert Report.of(answers, "left_out", "left_out").metrics()["letter_logits/micro"] == 1


def test_an_attribute_measures_nothing_where_none_of_its_tasks_does():
    tasks = sorted({question.task for question in QUESTIONS if question.attribute == "Space"})
    one, both = (Report.of(answered(lambda q: Reply("B")), cannot=dict.fromkeys(some, "mono")) for some in (tasks[:1], tasks))
    marked = [{row[2] for row in report.score_rows() if row[1] == "attribute" and row[-1]} for report in (one, both)]
    assert marked == [set(), {"Space"}]


def test_rows_fit_their_columns_and_scores_add_up():
    report = Report.of(answered(lambda question: Reply("B")))
    assert all(len(row) == len(QUESTION_COLUMNS) for row in report.question_rows())
    rows = [dict(zip(SCORE_COLUMNS, row, strict=True)) for row in report.score_rows()]
    official = {(row["kind"], row["name"]): row for row in rows if row["rule"] == "official"}
    assert sum(row["right"] for (kind, _), row in official.items() if kind == "task") == official["average", "micro"]["right"]
    assert {name for kind, name in official if kind == "average"} == {"micro", "macro_26", "macro_7"}
    assert official["average", "micro"]["percent"] == pytest.approx(100 * np.mean([q.answer == "B" for q in QUESTIONS]), abs=1e-4)
