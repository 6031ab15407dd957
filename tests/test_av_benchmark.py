"""The benchmark side of AV-Odyssey's method in the launcher: saved replies, omni models, and what stands beside the report."""

import csv
import json
import os
import shutil
import signal
import time

import pyarrow.parquet as pq
import pytest

from datamodules.av_synthetic import SyntheticQuestions
from tests.exactness import figures, kept, latest

QUESTIONS = list(SyntheticQuestions(seed=1, each=1))
BEGINNING = ["evaluate", "method=av_odyssey", "data.source=synthetic", "data.questions=1", "logger=csv", "trainer.accelerator=cpu",
             "trainer.threads=1"]


def replies(path, reply_of, leave_out=()):
    path.write_text("".join(json.dumps({"id": q.id, "reply": reply_of(q)}) + "\n" for q in QUESTIONS if q.id not in leave_out))
    return path


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


def test_beside_the_report_lie_a_page_and_exports_and_the_terminal_shows_published_models(here, tmp_path):
    path = replies(tmp_path / "b.jsonl", lambda q: "B")
    done = here(*BEGINNING, "module.adapter=replay", f"run.root={tmp_path}", f"data.replies={path}", "run.name=b")
    assert done.returncode == 0, done.stderr
    folder, right = tmp_path / "b", sum(q.answer == "B" for q in QUESTIONS)
    assert {row["id"] for row in pq.read_table(folder / "answers.parquet").to_pylist() if row["right_official"]} == {
        q.id for q in QUESTIONS if q.answer == "B"}
    samples = [json.loads(line) for line in (folder / "samples_av_odyssey.jsonl").read_text().splitlines()]
    assert sum(line["av_odyssey_score"]["score"] for line in samples) == right
    page = (folder / "report.html").read_text()
    assert page.count("class='bar ours'") == 3 + 7 + 26
    assert "the two do not compare" in page  # what was asked is made on the spot
    assert f"page of results: {folder}/report.html" in done.stdout
    micro = next(line.split() for line in done.stdout.splitlines() if line.startswith("micro"))
    assert [micro[1], *micro[5:9]] == ["26", "33.8", "GPT-4o", "audio", "caption"]
    assert float(micro[2]) == pytest.approx(100 * right / 26, abs=0.051)
    with (folder / "tables/published_attributes.csv").open() as file:
        assert [row["model"] for row in csv.DictReader(file)][:3] == ["ours", "Unified-IO-2 L", "Unified-IO-2 XL"]
    with (folder / "tables/published.csv").open() as file:
        listed = {row["model"]: (row["printed"], row["micro"]) for row in csv.DictReader(file)}
    assert (listed["PandaGPT"], listed["OpenOmni 7B"]) == (("26.7", "24.74"), ("", "26.4"))  # printed and rebuilt, section 1.8
    assert "<td>PandaGPT</td><td>paper</td><td>24.74</td>" in page
    with (folder / "tables/rates.csv").open() as file:
        rates = {row["rate"]: float(row["percent"]) for row in csv.DictReader(file)}
    always_a = 100 * sum(q.answer == "A" for q in QUESTIONS) / 26
    assert rates["of scored questions: right, if the answer were always A"] == pytest.approx(always_a, abs=0.005)
    found = figures(done)
    assert found["val/macro_26"] == found["val/official"] == pytest.approx(right / 26, abs=1e-5)  # one question a task
    by_attribute = {q.attribute: [r.answer == "B" for r in QUESTIONS if r.attribute == q.attribute] for q in QUESTIONS}
    assert found["val/macro_7"] == pytest.approx(sum(sum(right) / len(right) for right in by_attribute.values()) / 7, abs=1e-5)


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


OMNI = [*BEGINNING, "module.adapter=qwen2_5_omni", "module.size=tiny", "module.omni.new_tokens=4", "data.eval_batch_size=1"]


@pytest.mark.slow
def test_an_omni_model_killed_on_two_processes_goes_on_with_one_and_with_three_to_the_same_file(fivefold_in, here, tmp_path):
    whole = here(*OMNI, f"run.root={tmp_path}", "run.name=whole")
    assert whole.returncode == 0, whole.stderr
    folder, end = tmp_path / "cut", time.monotonic() + 240
    begun = fivefold_in(tmp_path, *OMNI, f"run.root={tmp_path}", "run.name=cut", "trainer.devices=2", wait=False)
    while not (folder / "parts").is_dir() or len(kept(folder)) < 4:
        assert time.monotonic() < end
        time.sleep(0.01)
    os.killpg(begun.pid, signal.SIGKILL)  # both processes at once
    begun.wait()
    before = kept(folder)
    assert 4 <= len(before) < 26
    shutil.copytree(folder, tmp_path / "three")
    one = here(*OMNI, f"run.root={tmp_path}", "run.name=cut", "run.resume=auto")
    three = fivefold_in(tmp_path, *OMNI, f"run.root={tmp_path}", "run.name=three", "run.resume=auto", "trainer.devices=3")
    for done, name in ((one, "cut"), (three, "three")):
        assert done.returncode == 0, done.stderr
        assert (tmp_path / name / "answers.jsonl").read_bytes() == (tmp_path / "whole/answers.jsonl").read_bytes()
        assert (tmp_path / name / "tables/scores.csv").read_bytes() == (tmp_path / "whole/tables/scores.csv").read_bytes()
        assert sorted(kept(tmp_path / name)) == sorted(q.id for q in QUESTIONS)  # each asked once
        assert figures(done) == figures(whole)


@pytest.mark.parametrize(("adapter", "equal"), [("qwen2_5_omni", "True"), ("qwen3_omni", "False"), ("gemma4", "True")])
def test_an_omni_models_letters_are_a_metric_of_their_own_and_spatial_tasks_are_marked(adapter, equal, here, tmp_path, caplog):
    done = here(*latest([*OMNI, f"module.adapter={adapter}", "module.omni.frames=4", f"run.root={tmp_path}", "run.name=one"]))
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in (tmp_path / "one/answers.jsonl").read_text().splitlines()]
    right = ["ABCD"[max(range(4), key=answer["letter_logits"].__getitem__)] == answer["gold"] for answer in answers]
    assert figures(done)["val/letter_logits"] == pytest.approx(sum(right) / 26, abs=1e-5)
    with (tmp_path / "one/tables/scores.csv").open() as file:
        marked = {row["name"] for row in csv.DictReader(file) if row["note"].startswith("not measurable: the model hears one channel")}
    assert marked == {"Audio 3D Angle Estimation", "Audio Distance Estimation", "Space"}
    assert "task Audio 3D Angle Estimation: the model hears one channel" in caplog.text
    with (tmp_path / "one/tables/checks.csv").open() as file:
        assert {row["check"]: row["holds"] for row in csv.DictReader(file)} == {
            "batch equals single": equal, "front end keeps loudness": "True"}


def test_what_was_killed_between_its_last_answer_and_its_report_is_still_reported(here, tmp_path):
    words = ["evaluate", "method=av_odyssey", "module.adapter=oracle", "data.questions=2", "data.profiles=[hard]", "logger=csv",
             "trainer.accelerator=cpu", f"run.root={tmp_path}", "run.name=run"]
    whole = here(*words)
    assert whole.returncode == 0, whole.stderr
    (tmp_path / "run/report.html").unlink()
    shutil.rmtree(tmp_path / "run/tables", ignore_errors=True)
    record = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps({**record, "status": "running", "results": {}}))
    again = here(*words, "run.resume=auto")
    assert again.returncode == 0, again.stderr
    assert figures(again) == figures(whole)
    assert (tmp_path / "run/report.html").is_file()
    once_more = here(*words, "run.resume=auto")
    assert (once_more.returncode, once_more.stderr.count("\n")) == (2, 1)
    assert f"run.resume: run has finished, and all it found is in {tmp_path / 'run'}; give another run.name" in once_more.stderr
