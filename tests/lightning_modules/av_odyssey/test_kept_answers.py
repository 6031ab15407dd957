import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest

from datamodules.av_exam import Exam
from datamodules.av_media import Damaged
from datamodules.av_plan import item_of, plan
from datamodules.av_synthetic import SyntheticQuestions
from lightning_modules.av_odyssey.adapter import Reply
from lightning_modules.av_odyssey.answers import Answer, AnswerFile, best, kept
from lightning_modules.av_odyssey.examination import Examination

QUESTIONS = list(SyntheticQuestions(seed=1, each=1))
ITEMS = [item_of(index, question, "synthetic") for index, question in enumerate(QUESTIONS)]


class Counting:
    """Adds up what `truth` says, right or wrong by the question's number; fails where it is told to."""

    cannot, identity, together = {}, "counting", None

    def __init__(self, fails=()):
        self.fails, self.asked = fails, []

    def replies(self, questions):
        self.asked += [question.id for question in questions]
        if any(question.id in self.fails for question in questions):
            raise RuntimeError("out of\nmemory")
        return [Reply(question.answer if question.task_id % 2 else "I cannot hear\n\"ü\"", letter_logits=(0.1, 1 / 3, 0.0, 2.0))
                for question in questions]


def asked(folder, adapter, stop=None, size=4):
    """Examine in one process; `stop` ends before that batch, as a kill would."""
    exam = Examination(folder, adapter.identity)
    (mine,) = plan(ITEMS, exam.begin(ITEMS), 1, size)
    for batch in mine[:stop]:
        exam.ask(adapter, batch, [QUESTIONS[item.index] for item in batch])
    if stop is not None:
        exam.file.close()
        return None
    return exam.finish(ITEMS, {}, first=True)


def test_a_line_comes_back_as_it_was():
    answer = Answer.of(QUESTIONS[3], Reply("C \u2028 \"x\"\n", "truncated", (0.1, 1 / 3, -1e-30, 2.0), "cut"), "k", 0.25)
    assert Answer.read(answer.line()) == answer
    assert answer.line().count("\n") == 1
    assert "seconds" not in json.loads(answer.line(timed=False))


def test_an_examination_that_was_cut_off_asks_only_what_is_missing_and_merges_to_the_same_file(tmp_path):
    whole = asked(tmp_path / "whole", Counting())
    asked(tmp_path / "cut", Counting(), stop=3, size=4)
    before, second = {answer.id for answer in kept(tmp_path / "cut/parts")}, Counting()
    merged = asked(tmp_path / "cut", second, size=7)
    assert 0 < len(before) < len(ITEMS)
    assert sorted([*before, *second.asked]) == sorted(question.id for question in QUESTIONS)
    assert (tmp_path / "cut/answers.jsonl").read_bytes() == (tmp_path / "whole/answers.jsonl").read_bytes()
    assert [answer.id for answer in merged] == [question.id for question in QUESTIONS] == [answer.id for answer in whole]


def test_answers_of_another_model_are_not_taken(tmp_path):
    asked(tmp_path, Counting(), stop=3)
    other = Counting()
    other.identity = "another"
    asked(tmp_path, other)
    assert len(other.asked) == len(ITEMS)


def test_a_torn_line_is_never_written_and_its_question_is_asked_again(tmp_path):
    asked(tmp_path, Counting(), stop=3)
    part = tmp_path / "parts/000.jsonl"
    torn = part.read_bytes()
    part.write_bytes(torn[:-30])
    left = torn.count(b"\n") - 1
    assert len(list(kept(tmp_path / "parts"))) == left
    again = Counting()
    merged = asked(tmp_path, again)
    assert len(again.asked) == len(ITEMS) - left
    assert len(merged) == len({answer.key for answer in merged}) == len(ITEMS)


def test_a_question_that_fails_is_an_error_with_its_reason_and_is_asked_again_when_the_examination_goes_on(tmp_path):
    bad = QUESTIONS[5].id
    merged = asked(tmp_path, Counting(fails={bad}))
    (failed,) = [answer for answer in merged if answer.status == "error"]
    assert (failed.id, failed.reply, failed.note) == (bad, "", "RuntimeError: out of memory")
    healed = Counting()
    merged = asked(tmp_path, healed)
    assert healed.asked == [bad]  # the others of its batch had been answered one by one
    assert all(answer.status == "ok" for answer in merged)


def test_a_missing_answer_ends_an_examination_with_its_number(tmp_path):
    exam = Examination(tmp_path, "model")
    exam.begin(ITEMS)
    with pytest.raises(RuntimeError, match="26 of 26 questions have no answer"):
        exam.finish(ITEMS, {}, first=True)


def test_what_could_not_be_asked_is_damaged_and_has_its_reason(tmp_path):
    exam = Examination(None, "model")
    assert exam.begin(ITEMS) == set()
    for item in ITEMS[1:]:
        exam.ask(Counting(), [item], [QUESTIONS[item.index]])
    merged = exam.finish(ITEMS, {ITEMS[0].key: (QUESTIONS[0], "audio1: is silent")}, first=True)
    assert (merged[0].status, merged[0].note) == ("damaged", "audio1: is silent")


def test_two_processes_never_write_into_one_file(tmp_path):
    mine = AnswerFile(tmp_path)
    code = f"""
        from pathlib import Path
        from lightning_modules.av_odyssey.answers import AnswerFile
        print(AnswerFile(Path({str(tmp_path)!r})).path.name)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env={**os.environ}, check=True)
    assert (mine.path.name, done.stdout.strip()) == ("000.jsonl", "001.jsonl")


def test_an_answer_is_preferred_to_an_error_and_the_first_to_the_second():
    ok, other = (Answer.of(QUESTIONS[0], Reply(text), "k") for text in ("A", "B"))
    error = Answer.of(QUESTIONS[0], Reply("", "error"), "k")
    assert best([error, ok, other])["k"] is ok
    assert best([ok, error])["k"] is ok


def test_answers_are_on_disk_before_the_next_pass_is_made(tmp_path):
    exam, adapter, known = Examination(tmp_path, "counting"), Counting(), []
    adapter.together = 2
    replies = adapter.replies
    adapter.replies = lambda questions: (known.append(len(list(kept(tmp_path / "parts")))), replies(questions))[1]
    exam.begin(ITEMS)
    exam.ask(adapter, ITEMS[:5], QUESTIONS[:5])
    assert known == [0, 2, 4]


def test_a_process_with_fewer_questions_makes_as_many_passes_as_the_others(monkeypatch):
    exam, adapter, passes, asked = Examination(None, "counting"), Counting(), [], []
    adapter.together = 2
    replies = adapter.replies
    adapter.replies = lambda questions: (asked.append(len(questions)), replies(questions))[1]
    monkeypatch.setattr("lightning_modules.av_odyssey.examination.from_all", lambda own: [passes.append(own), own, 4][1:])
    exam.ask(adapter, ITEMS[:3], QUESTIONS[:3])
    assert (asked, passes) == ([2, 1], [])
    asked.clear()
    exam.ask(adapter, ITEMS[:3], QUESTIONS[:3], in_step=True)
    exam.ask(adapter, ITEMS[:3], QUESTIONS[:3], in_step=True, spare=True)
    assert (asked, passes) == ([2, 1, 1, 1, 1, 1, 1, 1], [2, 0])
    assert len(exam.answers) == 6  # the others are forgotten


class Gone(dict):
    """Media of which one cannot be read."""

    def __init__(self, media, error):
        super().__init__(media)
        self.error = error
        self.digests, self.tokens = dict.fromkeys(media, "known"), dict.fromkeys(media, 1.0)  # as of files

    def __getitem__(self, tag):
        raise self.error


@pytest.mark.parametrize(("error", "status", "note"), [(Damaged("is torn"), "damaged", "is torn"),
                                                       (OSError("the disk\nis away"), "error", "OSError: the disk is away")])
@pytest.mark.parametrize("in_step", [False, True])
def test_media_that_cannot_be_read_when_they_are_asked_for_cost_their_own_question_alone(in_step, error, status, note, tmp_path):
    questions = list(QUESTIONS)
    questions[5] = replace(questions[5], media=Gone(questions[5].media, error))
    exam, adapter = Examination(tmp_path, "counting"), Counting()
    paper = Exam(questions, "synthetic")
    for batch in paper.loader(exam.begin(paper.items), 0, 1, 4, in_step):
        exam.ask(adapter, batch.items, batch.questions, in_step, batch.unread)
    merged = exam.finish(paper.items, {}, first=True)
    (lost,) = [answer for answer in merged if answer.status != "ok"]
    assert (lost.id, lost.reply, lost.status, lost.note) == (questions[5].id, "", status, note)
    assert len(adapter.asked) == 26 if in_step else sorted(adapter.asked) == sorted(q.id for q in questions if q is not questions[5])


def test_what_is_asked_in_place_of_media_that_cannot_be_read_has_their_kinds():
    questions = [replace(question, media=Gone(question.media, OSError("away"))) for question in QUESTIONS]
    for batch in Exam(questions, "synthetic").loader([], 0, 1, 4, in_step=True):
        assert sorted(batch.unread) == list(range(len(batch.questions)))
        for item, stand_in in zip(batch.items, batch.questions, strict=True):
            whole = QUESTIONS[item.index]
            assert {tag: type(medium) for tag, medium in stand_in.media.items()} == {tag: type(whole.media[tag]) for tag in whole.media}
