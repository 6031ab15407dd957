import json

import pytest

from datamodules.av_synthetic import SyntheticQuestions
from datamodules.rows import DataError
from lightning_modules.av_odyssey.adapter import Reply
from lightning_modules.av_odyssey.answers import Answer
from lightning_modules.av_odyssey.replay import Replay

QUESTIONS = list(SyntheticQuestions(seed=2, each=1))


def file_of(tmp_path, *lines):
    path = tmp_path / "replies.jsonl"
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_saved_replies_come_back_in_the_order_of_the_questions(tmp_path):
    path = file_of(tmp_path, *({"id": q.id, "reply": f"it is {q.answer}"} for q in reversed(QUESTIONS)))
    assert Replay(path).replies(QUESTIONS[3:6]) == [Reply(f"it is {q.answer}") for q in QUESTIONS[3:6]]


def test_our_own_answer_file_is_a_file_of_replies(tmp_path):
    replies = [Reply("C", "truncated", (0.5, 1 / 3, 0.0, -2.0), "cut"),
               Reply("I cannot \u2028 hear"), Reply("", "error", note="out of memory")]
    path = file_of(tmp_path, *(Answer.of(q, reply, "k").line() for q, reply in zip(QUESTIONS, replies)))
    found = Replay(path)
    found.check({q.id: 4 for q in QUESTIONS[:3]})
    assert found.replies(QUESTIONS[:3]) == replies


def test_ids_may_be_numbers_or_called_question_id(tmp_path):
    path = file_of(tmp_path, {"question_id": QUESTIONS[0].id, "reply": "B"}, {"question_id": 7, "reply": "D"})
    assert Replay(path).rows == {QUESTIONS[0].id: (1, Reply("B")), "7": (2, Reply("D"))}


def test_replies_of_other_content_have_another_identity(tmp_path):
    one = Replay(file_of(tmp_path, {"id": "1_1", "reply": "B"})).identity
    assert one == Replay(file_of(tmp_path, {"id": "1_1", "reply": "B"})).identity
    assert one != Replay(file_of(tmp_path, {"id": "1_1", "reply": "C"})).identity


GOOD = {"id": "1_1", "reply": "B"}


@pytest.mark.parametrize(("lines", "message"), [
    ([GOOD, "no json\n"], r"replies.jsonl row 2: is no JSON"),
    ([GOOD, "\n", [1]], r"replies.jsonl row 3: a list instead of an object"),
    ([{"reply": "B"}], r"row 1: no question's id"),
    ([{"id": True, "reply": "B"}], r"row 1: no question's id"),
    ([{"id": "1_1"}], r"row 1: reply: must be text, not none"),
    ([{"id": "1_1", "reply": 3}], r"row 1: reply: must be text, not int"),
    ([{**GOOD, "status": "lost"}], r"row 1: status: must be one of ok, error, refused, truncated, damaged, not lost"),
    ([{**GOOD, "letter_logits": ["x"]}], r"row 1: letter_logits: must be a finite number for each letter"),
    ([{**GOOD, "letter_logits": [float("nan"), 1.0]}], r"row 1: letter_logits: must be a finite number for each letter"),
    ([GOOD, {"id": "2_1", "reply": "B"}, GOOD], r"row 3: question 1_1 has a reply in row 1 already"),
])
def test_a_row_that_cannot_be_used_is_named(tmp_path, lines, message):
    with pytest.raises(DataError, match=message) as caught:
        Replay(file_of(tmp_path, *lines))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named_with_its_key(tmp_path):
    with pytest.raises(DataError, match=r"data.replies: .*nowhere.jsonl: No such file"):
        Replay(tmp_path / "nowhere.jsonl")


def test_a_reply_to_an_unknown_question_names_file_row_and_a_near_one(tmp_path):
    found = Replay(file_of(tmp_path, GOOD, {"id": "9_77", "reply": "A"}))
    with pytest.raises(DataError, match=r"replies.jsonl row 2: question 9_77 is none of the 2 that are asked, such as 9_7;"):
        found.check({"1_1": 4, "9_7": 4})


def test_a_question_without_a_reply_is_named_with_the_row_where_it_should_stand(tmp_path):
    found = Replay(file_of(tmp_path, GOOD))
    with pytest.raises(DataError, match=r"replies.jsonl row 2: the file ends without a reply to question 2_1 and 1 more"):
        found.check({"1_1": 4, "2_1": 4, "3_1": 4})
    found.check({"1_1": 4})


@pytest.mark.parametrize("count", [1, 3, 5])
def test_logits_of_another_number_of_letters_are_refused_with_their_row(count, tmp_path):
    found = Replay(file_of(tmp_path, GOOD, {"id": "2_1", "reply": "A", "letter_logits": [0.5] * count}))
    with pytest.raises(DataError, match=rf"row 2: letter_logits: must be 4 numbers, one for each letter of question 2_1, not {count}"):
        found.check({"1_1": 4, "2_1": 4})
