"""AV-Odyssey's published files in the launcher: from parquet to the tables of a report, without a network."""

import csv
import json
from collections import Counter

import pytest
import stand_in_odyssey as published

from datamodules.av_synthetic import SyntheticQuestions
from datamodules.av_tasks import MIXES, TASKS
from datamodules.deaftest import DeafTest
from lightning_modules.av_odyssey import oracle

QUESTIONS = list(SyntheticQuestions(seed=4, each=2))


@pytest.fixture
def evaluate(here, tmp_path):
    def run(data, *words):
        done = here("evaluate", "method=av_odyssey", "module.adapter=oracle", "data.source=hub", f"data.root={data}",
                    f"data.cache={tmp_path / 'cache'}", f"run.root={tmp_path}", "run.name=run", "logger=csv", "trainer.accelerator=cpu",
                    "trainer.threads=1", *words)
        figures = dict(line.split() for line in done.stdout.splitlines() if line.startswith("val/"))
        return done, {name: float(value) for name, value in figures.items()}
    return run


def table(tmp_path, name):
    with (tmp_path / "run" / "tables" / f"{name}.csv").open() as file:
        return [*csv.DictReader(file)]


@pytest.mark.parametrize("write", [published.write_hub, published.write_index])
def test_all_tasks_and_mixes_are_examined_and_who_cannot_answer_gets_what_always_a_gets(write, evaluate, tmp_path, caplog):
    """The oracle knows DeafTest only, and the official rule reads an A where there is no reply."""
    done, figures = evaluate(write(tmp_path / "data", QUESTIONS))
    assert done.returncode == 0, done.stderr
    assert [record.getMessage().count("not the published 4555 questions but 52: task 1 has 2 questions of 200") for record in caplog.records
            if record.name == "datamodules.av_odyssey"] == [1]
    assert figures["val/accuracy"] == pytest.approx(sum(question.answer == "A" for question in QUESTIONS) / len(QUESTIONS), abs=1e-4)
    assert figures["val/damaged_rate"] == 0
    answers = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    assert Counter(answer["task_id"] for answer in answers) == dict.fromkeys(TASKS, 2)
    assert {answer["mix"] for answer in answers} == set(MIXES)
    assert [(answer["id"], answer["gold"]) for answer in answers] == [(question.id, question.answer) for question in QUESTIONS]


def test_deaftest_from_its_file_is_answered_by_whoever_hears(evaluate, tmp_path):
    done, figures = evaluate(published.write_deaftest(tmp_path / "data", DeafTest(1, "test", 5, "hard")))
    assert done.returncode == 0, done.stderr
    assert figures["val/accuracy"] == 1.0
    assert figures["val/invalid_rate"] == 0
    ours, gemini = table(tmp_path, "published_deaftest")[:2]  # the published questions are what the published figures are of
    assert (ours["model"], {ours[task] for task in ("count", "loudness", "pitch", "duration")}) == ("ours", {"100.0"})
    assert (gemini["model"], gemini["duration"]) == ("Gemini 1.5 Flash", "89.0")


def damaged(folder):
    """Twenty questions of DeafTest, two of which cannot be asked; return their answers."""
    questions = list(DeafTest(1, "test", 5, "hard"))
    published.write_deaftest(folder, questions)
    rows = [published.cells(question) | {"question_type_id": "31"} for question in questions]
    rows[3]["audio_2"], rows[6]["audio_1"] = rows[3]["audio_2"][:9000], None
    published.write(folder / "deaftest.parquet", rows)
    return [questions[3], questions[6]]


@pytest.mark.parametrize("policy", ["official", "wrong", "left_out"])
def test_damaged_media_count_as_the_policy_says_and_are_listed(policy, evaluate, tmp_path):
    lost = damaged(tmp_path / "data")
    done, figures = evaluate(tmp_path / "data", f"data.damaged={policy}")
    assert done.returncode == 0, done.stderr
    right = {"official": 18 / 20 + sum(question.answer == "A" for question in lost) / 20, "wrong": 18 / 20, "left_out": 1.0}
    assert figures["val/accuracy"] == pytest.approx(right[policy], abs=1e-4)
    assert figures["val/damaged_rate"] == pytest.approx(0.1)
    listed = table(tmp_path, "damaged")
    assert [row["id"] for row in listed] == [question.id for question in lost]
    assert listed[0]["reason"].startswith("audio2: is cut off (8956 of ")
    assert listed[1]["reason"] == "audio1: is not there"
    assert {row["counted"] for row in listed} == {policy}
    assert len(table(tmp_path, "answers")) == (18 if policy == "left_out" else 20)


def test_damaged_media_are_counted_by_the_validations_of_a_training_too(here, tmp_path):
    damaged(tmp_path / "data")
    done = here("train", "method=av_odyssey", "module.adapter=qwen2_5_omni", "data.source=hub", f"data.root={tmp_path / 'data'}",
                f"data.cache={tmp_path / 'cache'}", "data.items=1", "data.profile=paper", "data.batch_size=1", "module.omni.new_tokens=1",
                "trainer.max_steps=1", f"run.root={tmp_path}", "run.name=run", "logger=csv", "trainer.accelerator=cpu", "trainer.threads=1")
    assert done.returncode == 0, done.stderr
    assert "val/damaged_rate" in done.stdout
    assert json.loads((tmp_path / "run" / "run.json").read_text())["results"]["val/damaged_rate"] == pytest.approx(0.1)
    assert len(table(tmp_path, "damaged")) == 2


def test_damaged_media_may_be_refused(evaluate, tmp_path):
    damaged(tmp_path / "data")
    done, _ = evaluate(tmp_path / "data", "data.damaged=refuse")
    assert done.returncode == 2
    assert "data.damaged=refuse: 2 of 20 questions cannot be asked, the first, 30_1, because audio2: is cut off" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("words", "message"), [
    (["data.frames=0"], "data.frames: must be 1 or above, not 0"),
    (["data.frames_a_second=0"], "data.frames_a_second: must be above 0, not 0"),
    (["data.damaged=maybe"], "data.damaged: "),
])
def test_files_that_cannot_be_asked_for_are_refused_in_one_line(words, message, evaluate, tmp_path):
    done, _ = evaluate(tmp_path, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("root", "message"), [
    ("null", "data.root: must name the folder of the parquet files where source=hub, not be empty"),
    ("nowhere", "nowhere is no folder; it is the one with AV-Odyssey's or DeafTest's parquet files"),
    (".", "holds no parquet file; download AV-Odyssey/AV_Odyssey_Bench or Deaftest_dataset into it"),
])
def test_a_folder_without_the_files_is_refused_in_one_line(root, message, evaluate):
    done, _ = evaluate(root)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("policy", "score"), [("official", None), ("wrong", 18 / 20), ("left_out", 1.0)])
def test_questions_that_failed_count_as_the_policy_says_and_are_asked_again_when_the_evaluation_goes_on(
        policy, score, evaluate, tmp_path, monkeypatch):
    questions = list(DeafTest(1, "test", 5, "hard"))
    published.write_deaftest(tmp_path / "data", questions)
    lost, letter = [questions[3], questions[6]], oracle._letter

    def fails(question):
        if question.id in [one.id for one in lost]:
            raise RuntimeError("out of memory")
        return letter(question)

    monkeypatch.setattr(oracle, "_letter", fails)
    done, figures = evaluate(tmp_path / "data", f"module.unanswered={policy}")
    assert done.returncode == 0, done.stderr
    score = score or 18 / 20 + sum(question.answer == "A" for question in lost) / 20
    assert (figures["val/accuracy"], figures["val/error_rate"]) == (pytest.approx(score, abs=1e-4), pytest.approx(0.1))
    assert ("incomplete: 2 questions have an error instead of an answer (tables/answers.csv); the same command with run.name=run "
            "run.resume=auto asks them again") in done.stdout
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "incomplete"
    asked = []
    monkeypatch.setattr(oracle, "_letter", lambda question: (asked.append(question.id), letter(question))[1])
    done, figures = evaluate(tmp_path / "data", f"module.unanswered={policy}", "run.resume=auto")
    assert done.returncode == 0, done.stderr
    assert (figures["val/accuracy"], figures["val/error_rate"], sorted(asked)) == (1, 0, sorted(one.id for one in lost))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


def test_media_that_are_read_ahead_give_the_same_answers(evaluate, tmp_path):
    published.write_deaftest(tmp_path / "data", list(DeafTest(1, "test", 5, "hard")))
    alone, figures = evaluate(tmp_path / "data")
    answers = (tmp_path / "run" / "answers.jsonl").read_bytes()
    (tmp_path / "run").rename(tmp_path / "alone")
    ahead, again = evaluate(tmp_path / "data", "data.workers=2", "data.eval_batch_size=3")
    assert alone.returncode == ahead.returncode == 0, alone.stderr + ahead.stderr
    assert (tmp_path / "run" / "answers.jsonl").read_bytes() == answers
    assert again == figures


def test_pictures_join_deaftest_under_names_of_their_own(here, tmp_path):
    done = here("evaluate", "method=av_odyssey", "module.adapter=oracle", "data.source=deaftest_seen", "data.questions=2", "run.name=run",
                f"run.root={tmp_path}", "logger=csv", "trainer.accelerator=cpu", "trainer.threads=1")
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    assert [answer["id"] for answer in answers] == [f"{profile}_{task}_{number}" for profile in ("paper", "hard") for number in (1, 2)
                                                    for task in (31, 32, 33)]
    assert Counter(answer["mix"] for answer in answers) == {"4 img + 1 audio": 6, "1 img + 4 audio": 6}
    official = [row for row in table(tmp_path, "scores") if (row["rule"], row["kind"]) == ("official", "task")]
    scores = {row["name"]: float(row["percent"]) for row in official}
    assert scores == {"seen_count": 100, "seen_duration": 100, "seen_pitch": 100}
