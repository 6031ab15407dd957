import csv
import re
from html.parser import HTMLParser
from importlib import resources
from statistics import median

import numpy as np
import pytest

from datamodules.av_synthetic import SyntheticQuestions
from datamodules.av_tasks import TASKS
from datamodules.deaftest import DeafTest
from lightning_modules.av_odyssey.adapter import Check, Reply
from lightning_modules.av_odyssey.answers import Answer
from lightning_modules.av_odyssey.averages import share
from lightning_modules.av_odyssey.comparison import SUMMARY, by_attributes, by_hearing, by_tasks, same_tasks
from lightning_modules.av_odyssey.page import Page, bar, interval, table
from lightning_modules.av_odyssey.report import Report

QUESTIONS = list(SyntheticQuestions(seed=3, each=2))
PRINTED = list(csv.DictReader(resources.files("lightning_modules.av_odyssey").joinpath("published.csv").read_text().splitlines()))


def report_of(questions, reply="B", **more):
    return Report.of([Answer.of(q, Reply(reply), f"k{index}") for index, q in enumerate(questions)], **more)


def printed(model, task):
    (row,) = [row for row in PRINTED if row["model"] == model and int(row["task_id"]) == task]
    return float(row["accuracy_percent"])


def test_tasks_stand_beside_what_the_paper_prints_of_the_same_tasks():
    some = [q for q in QUESTIONS if q.task_id in (3, 19, 26)]
    beside = by_tasks(report_of(some), "official")
    assert beside.names == ("Gunshot Recognition", "Audio 3D Angle Estimation", "Action Tracing")
    assert beside.models["OneLLM"] == {TASKS[task].name: printed("OneLLM", task) for task in (3, 19, 26)}
    assert len(beside.models) == 18
    assert beside.ours["Gunshot Recognition"].right == sum(q.answer == "B" for q in some if q.task_id == 3)


def test_attributes_are_rebuilt_from_the_tasks_that_are_in_both():
    some = [q for q in QUESTIONS if q.task_id in (1, 9, 13)]  # two of Timbre's eleven tasks, and one of Tone's two
    beside = by_attributes(report_of(some), "official")
    assert beside.names == ("micro", "macro_tasks", "macro_attributes", "Timbre", "Tone")
    model, values = "GPT-4o audio caption", [printed("GPT-4o audio caption", task) for task in (1, 9, 13)]
    found = beside.models[model]
    assert found["Timbre"] == pytest.approx(np.average(values[:2], weights=[200, 108]), abs=0.2)  # of whole questions
    assert found["Tone"] == pytest.approx(values[2], abs=0.01)
    assert found["micro"] == pytest.approx(np.average(values, weights=[200, 108, 20]), abs=0.2)
    assert found["macro_tasks"] == pytest.approx(np.mean(values), abs=0.2)
    assert found["macro_attributes"] == pytest.approx((found["Timbre"] + found["Tone"]) / 2, abs=1e-9)
    assert beside.ours["Timbre"].count == 4


def test_over_all_tasks_the_papers_models_have_their_rebuilt_averages():
    beside = by_attributes(report_of(QUESTIONS), "official")
    assert beside.models["OneLLM"]["micro"] == pytest.approx(26.10, abs=0.0051)  # of the specification's table
    assert beside.models["Gemini 1.5 Pro"]["micro"] == pytest.approx(30.16, abs=0.0051)
    assert beside.names[3:] == ("Timbre", "Tone", "Melody", "Space", "Time", "Hallucination", "Intricacy")


def test_a_summary_names_the_best_published_model_and_the_middle_one():
    beside = by_tasks(report_of([q for q in QUESTIONS if q.task_id == 10]), "official")
    (row,) = [dict(zip(SUMMARY, row, strict=True)) for row in beside.summary()]
    percents = {line["model"]: float(line["accuracy_percent"]) for line in PRINTED if line["task_id"] == "10"}
    assert (row["best"], row["of"]) == (67.3, max(percents, key=percents.get))
    assert row["median"] == pytest.approx(median(percents.values()), abs=0.051)
    assert [one[0] for one in beside.rows()] == ["ours", *percents]


def test_tasks_of_another_name_or_number_are_not_compared():
    hearing = report_of(DeafTest(1, "test", 3, "hard"))
    assert same_tasks(hearing) == []
    assert by_attributes(hearing, "official") is by_tasks(hearing, "official") is by_hearing(hearing, "official") is None
    assert same_tasks(report_of([type(q)(**{**vars(q), "task": "Something Else"}) for q in QUESTIONS[:2]])) == []


def test_deaftest_is_compared_on_the_papers_ranges():
    beside = by_hearing(report_of(DeafTest(1, "test", 3, "paper"), reply="A"), "official")
    assert beside.names == ("count", "loudness", "pitch", "duration")
    assert beside.models["Gemini 1.5 Pro"] == {"count": 81, "loudness": 60, "pitch": 52, "duration": 84}  # table 1 of the paper
    assert [beside.ours[name].count for name in beside.names] == [3, 3, 3, 3]


class Parsed(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.stack, self.links, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def page_of(report, **more):
    checks = (Check("batch equals single", 0.5, 1e-3, False, "one by one"),)
    return Page(report, "official", "<b>mine</b>", {"model": "a & b"}, checks, **more)


def test_the_page_is_whole_needs_nothing_else_and_shows_replies_as_text():
    text = page_of(report_of(QUESTIONS, reply="<script>alert('B')</script>"), note="made on the spot").text()
    parsed = Parsed(text)
    assert (parsed.stack, parsed.links) == ([], [])
    assert "<script" not in text
    words = " ".join(parsed.words)
    for shown in ("<b>mine</b>", "a & b", "made on the spot", "one by one", "<script>alert('B')</script>", "Always A gets",
                  "Timbre (22 questions)"):
        assert shown in words


def test_every_attribute_has_a_bar_of_ours_and_of_the_best_published_models():
    report = report_of(QUESTIONS, cannot={"Audio Distance Estimation": "mono"})
    text = page_of(report).text()
    assert text.count("class='bar ours'") == 3 + 7 + 26
    assert text.count("class='bar'") == 4 * text.count("class='bar ours'")
    timbre = text[text.index("<h3>Timbre"): text.index("<h3>Tone")]
    widths = [float(width) for width in re.findall(r"<i style='width:([\d.]+)%'", timbre)]
    right = sum(q.answer == "B" for q in QUESTIONS if q.attribute == "Timbre")
    assert widths == pytest.approx([100 * right / 22, 38.6, 37.4, 30.8, 27.2], abs=0.06)  # table 4 of the paper, the best four
    assert "Audio Distance Estimation (2 questions; not measurable: mono)" in text


def test_a_page_of_other_questions_has_scores_and_no_comparison():
    text = page_of(report_of(DeafTest(1, "test", 3, "hard"))).text()
    assert "class='bar" not in text
    assert "<h2>Tasks</h2>" in text


def test_a_bar_has_its_percents_and_ours_its_interval():
    assert "width:25.00%'></i><b style='left:50.00%" in bar("x", 25, 50)
    ours = share(1, 4)
    assert f"left:{100 * ours.low:.2f}%;width:{100 * (ours.high - ours.low):.2f}%" in bar("x", 25, 50, ours)
    assert interval(ours) == "25.0 (4.6 to 69.9)"  # Wilson's interval of one in four


def test_a_table_writes_all_cells_as_text():
    assert table(("a", "b"), [("<i>", 1.5)]) == "<table><tr><th>a</th><th>b</th></tr><tr><td>&lt;i&gt;</td><td>1.5</td></tr></table>"


def test_each_profile_has_its_own_rows():
    questions = [*DeafTest(1, "test", 3, "paper"), *DeafTest(1, "test", 3, "hard")]
    report = report_of(questions)
    rows = {row[2]: row[3:5] for row in report.score_rows() if row[:2] == ("official", "attribute and task")}
    assert len(rows) == 8
    right = sum(q.answer == "B" for q in questions if (q.attribute, q.task) == ("DeafTest hard", "pitch"))
    assert rows["DeafTest hard: pitch"] == (right, 3)
    assert "<td>DeafTest hard: pitch</td><td>3</td>" in page_of(report).text()
    assert not [row for row in report_of(QUESTIONS).score_rows() if row[1] == "attribute and task"]
