"""The benchmark side of AV-Odyssey's method in the launcher: saved replies, omni models, and what stands beside the report."""

import json

import pytest

from datamodules.av_synthetic import SyntheticQuestions

QUESTIONS = list(SyntheticQuestions(seed=1, each=1))
BEGINNING = ["evaluate", "method=av_odyssey", "data.source=synthetic", "data.questions=1", "logger=csv", "trainer.accelerator=cpu",
             "trainer.threads=1"]


def replies(path, reply_of, leave_out=()):
    path.write_text("".join(json.dumps({"id": q.id, "reply": reply_of(q)}) + "\n" for q in QUESTIONS if q.id not in leave_out))
    return path


def figures(done):
    return {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("val/")}


def test_saved_replies_are_scored_by_all_rules_side_by_side_and_so_is_the_file_that_comes_of_it(here, tmp_path):
    path = replies(tmp_path / "chatty.jsonl", lambda q: f"Answer: {q.answer}")  # holds a capital A, which the official rule takes
    words = [*BEGINNING, "module.adapter=replay", f"run.root={tmp_path}"]
    done = here(*words, f"data.replies={path}", "run.name=first")
    assert done.returncode == 0, done.stderr
    found, always_a = figures(done), sum(q.answer == "A" for q in QUESTIONS) / 26
    assert (found["val/strict"], found["val/vlmevalkit"]) == (1, 1)
    assert found["val/official"] == found["val/accuracy"] == pytest.approx(always_a, abs=1e-5)
    again = here(*words, f"data.replies={tmp_path}/first/answers.jsonl", "run.name=second")
    assert figures(again) == found


def test_a_reply_too_many_and_one_too_few_give_one_line_with_file_and_row(here, tmp_path):
    words = [*BEGINNING, "module.adapter=replay", f"run.root={tmp_path}"]
    path = replies(tmp_path / "few.jsonl", lambda q: "B", leave_out={"13_1"})
    done = here(*words, f"data.replies={path}", "run.name=few")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{path} row 26: the file ends without a reply to question 13_1" in done.stderr
    path.write_text(path.read_text() + json.dumps({"id": "13_1", "reply": "A"}) + "\n" + json.dumps({"id": "13_2", "reply": "A"}) + "\n")
    done = here(*words, f"data.replies={path}", "run.name=many")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{path} row 27: question 13_2 is none of the 26 that are asked, such as 13_1" in done.stderr


def test_replay_without_a_file_is_refused_in_one_line(here, tmp_path):
    done = here(*BEGINNING, "module.adapter=replay", f"run.root={tmp_path}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "data.replies: must name the file of replies that module.adapter=replay scores" in done.stderr
