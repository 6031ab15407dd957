import hashlib
import json
from collections import defaultdict

import pyarrow.parquet as pq
import pytest

from datamodules.av_questions import Audio, Picture
from datamodules.av_synthetic import SyntheticQuestions
from lightning_modules.av_odyssey.adapter import Reply
from lightning_modules.av_odyssey.answers import Answer
from lightning_modules.av_odyssey.examples import EXAMPLE_COLUMNS, examples_of
from lightning_modules.av_odyssey.exports import numbered, records, sample, whole, write_answers, write_samples
from lightning_modules.av_odyssey.report import Report

QUESTIONS = {question.id: question for question in SyntheticQuestions(seed=6, each=2)}
WORDS = ["B", "Answer: {}", "I cannot hear, \u2028 \"sorry\"", "{}.", "(D)"]


def report_of(questions=tuple(QUESTIONS.values())):  # noqa: B008
    answers = [Answer.of(q, Reply(WORDS[i % 5].format(q.answer), letter_logits=None if i % 3 else (0.1, 1 / 3, 0.0, -2.0)), f"k{i}", 0.5)
               for i, q in enumerate(questions)]
    return Report.of(answers)


def test_parquet_and_json_hold_the_same_answers_and_their_scores_are_the_reports(tmp_path):
    report = report_of()
    write_answers(tmp_path, report)
    rows = pq.read_table(tmp_path / "answers.parquet").to_pylist()
    assert rows == [dict(row) for row in json.loads((tmp_path / "answers.json").read_text())] == records(report)
    assert [row["reply"] for row in rows] == [one.answer.reply for one in report.graded]
    for rule in ("official", "strict", "vlmevalkit"):
        assert sum(row[f"right_{rule}"] for row in rows) / len(rows) == pytest.approx(report.metrics()[f"{rule}/micro"], abs=1e-12)
        assert all((row[f"letter_{rule}"] == row["gold"]) == row[f"right_{rule}"] for row in rows)
    assert {path.name for path in tmp_path.iterdir()} == {"answers.parquet", "answers.json"}


def aggregated(lines):
    """Average as lmms-eval's task does: the first score of each question, by category and over all, in percent."""
    found = defaultdict(dict)
    for line in lines:
        score = line["av_odyssey_score"]
        found[score["category"]].setdefault(score["question_id"], score["score"])
    everything = [score for by_id in found.values() for score in by_id.values()]
    return {name: 100 * sum(by_id.values()) / len(by_id) for name, by_id in found.items()}, 100 * sum(everything) / len(everything)


def test_lmms_evals_aggregation_of_the_log_gives_our_micro_average_and_attributes(tmp_path):
    report = report_of()
    write_samples(tmp_path, report, QUESTIONS.__getitem__)
    lines = [json.loads(line) for line in (tmp_path / "samples_av_odyssey.jsonl").read_text().split("\n")[:-1]]
    attributes, micro = aggregated(lines)
    shares = report.shares("official")
    assert micro == pytest.approx(100 * shares["average", "micro"].value, abs=1e-9)
    assert attributes == pytest.approx({name: 100 * share.value for (kind, name), share in shares.items() if kind == "attribute"}, abs=1e-9)


def test_a_line_of_the_log_has_lmms_evals_keys_and_its_documents_letters():
    question = QUESTIONS["1_2"]  # four pictures, one sound
    (one,) = report_of([question]).graded
    line = sample(7, one, question)
    assert set(line) == {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "doc_hash", "prompt_hash", "target_hash",
                         "av_odyssey_score"}
    assert [option[3:] for option in line["doc"]["options"]] == list(question.options)  # its scorer strips three signs
    assert [option[0] for option in line["doc"]["options"]] == list("ABCD")
    assert (line["doc_id"], line["target"], line["resps"], line["filtered_resps"]) == (7, question.answer, [["B"]], ["B"])
    assert line["target_hash"] == hashlib.sha256(question.answer.encode()).hexdigest()
    assert line["arguments"][0].startswith("Hear <media_0>. Which image has as many dots as there are sounds: <media_1>, <media_2>,")
    assert (line["doc"]["data_type"], line["doc"]["subfield"]) == ("image", "Timbre")


def test_media_are_numbered_by_where_they_stand_and_one_that_stands_twice_has_two_numbers():
    assert numbered("[audio1] or [img2] and [audio1] but not [sic]") == "<media_0> or <media_1> and <media_2> but not [sic]"


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(part):
        part.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        whole(path, fail)
    assert path.read_text() == "old"


def test_examples_are_wrong_ones_first_with_their_media_and_no_more_than_asked_for():
    report = report_of()
    rows = [dict(zip(EXAMPLE_COLUMNS, row, strict=True)) for row in examples_of(report, "strict", QUESTIONS.__getitem__, 1000)]
    wrong = sum(not one.right("strict") for one in report.graded)
    assert [row["right"] for row in rows] == [False] * wrong + [True] * (len(rows) - wrong)
    assert 0 < wrong < len(rows) == len(QUESTIONS)
    one = next(row for row in rows if row["id"] == "1_2")
    assert [type(one[tag]) for tag in ("img1", "img4", "audio1")] == [Picture, Picture, Audio]
    assert one["video1"] is one["audio2"] is None
    assert len(examples_of(report, "strict", QUESTIONS.__getitem__, 5)) == 5
    assert examples_of(report, "strict", QUESTIONS.__getitem__, 0) == []


def test_a_medium_that_cannot_be_read_is_left_empty():
    class Broken(dict):
        def __getitem__(self, tag):
            raise OSError("cut off")

        def get(self, tag, default=None):
            return self[tag]

    question = QUESTIONS["1_2"]
    broken = type(question)(**{**vars(question), "media": Broken(question.media)})
    (row,) = examples_of(report_of([question]), "strict", lambda name: broken, 1)
    assert set(row[7:]) == {None}
