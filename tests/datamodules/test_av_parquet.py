from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import stand_in_odyssey as published

from datamodules.av_parquet import parquet_files, row_of, rows_of
from datamodules.av_synthetic import SyntheticQuestions
from datamodules.deaftest import DeafTest
from datamodules.rows import DataError

QUESTIONS = list(SyntheticQuestions(seed=2, each=2))
HEARING = list(DeafTest(1, "test", 2, "paper"))


def read(folder):
    return [row for path in parquet_files(folder) for row in rows_of(path)]


def words(question):
    return question.id, question.task, question.task_id, question.attribute, question.text, question.options, question.answer


def test_six_files_give_back_every_question_with_its_bytes(tmp_path):
    found = read(published.write_hub(tmp_path, QUESTIONS))
    assert len(list(tmp_path.iterdir())) == 6
    assert [words(row.question) for row in found] == [words(question) for question in QUESTIONS]
    for row, question in zip(found, QUESTIONS):
        assert row.media == {tag: published.encode(medium) for tag, medium in question.media.items()}
    assert Counter(len(row.media) for row in found) == Counter(len(question.media) for question in QUESTIONS)
    assert found[-1].where == "av_odyssey_part6.parquet, row 7"  # 52 in parts of 9


def test_an_index_gives_the_same_questions_with_paths_and_without_letters(tmp_path):
    found = read(published.write_index(tmp_path, QUESTIONS))
    assert [words(row.question) for row in found] == [words(question) for question in QUESTIONS]
    for row, question in zip(found, QUESTIONS):
        assert {tag: (tmp_path / path).read_bytes() for tag, path in row.media.items()} == {
            tag: published.encode(medium) for tag, medium in question.media.items()}


def test_deaftest_is_told_by_its_words_and_gets_the_numbers_that_generated_items_have(tmp_path):
    found = [row.question for row in read(published.write_deaftest(tmp_path, HEARING))]
    assert [(q.task, q.task_id, q.options, q.answer) for q in found] == [(q.task, q.task_id, q.options, q.answer) for q in HEARING]


@pytest.mark.parametrize(("text", "task"), [  # as in the paper's figure
    ("How many sounds can you hear in [audio1]?", "count"),
    ("Which audio is louder? The first audio [audio1] or the second audio [audio2]?", "loudness"),
    ("Which audio has a higher pitch? The first audio [audio1] or the second audio [audio2]?", "pitch"),
    ("Which audio is longer? The first audio [audio1] or the second audio [audio2]?", "duration"),
])
def test_the_papers_questions_name_their_tasks(text, task):
    cells = published.cells(HEARING[0]) | {"question_type_id": "31", "question": text, "subfield": "?"}
    assert row_of(cells, "").question.task == task


def test_media_in_the_structures_of_the_datasets_library_are_bytes_or_paths(tmp_path):
    row = published.cells(QUESTIONS[0])
    row["audio_1"], row["image_1"] = {"bytes": b"sound", "path": "x.wav"}, {"bytes": None, "path": "img/1.png"}
    published.write(tmp_path / "one.parquet", [row])
    assert [(found.media["audio1"], found.media["img1"]) for found in read(tmp_path)] == [(b"sound", "img/1.png")]


@pytest.mark.parametrize(("options", "bare"), [
    (["A. x", "B. y", "C. z", "D. w"], ("x", "y", "z", "w")),
    (["A:x", "B:y", "C:z", "D:w"], ("x", "y", "z", "w")),
    (["A) x", "B) y", "C) z", "D) w"], ("x", "y", "z", "w")),
    (["A. major", "major", "minor", "none"], ("A. major", "major", "minor", "none")),  # a name, no letters
    (["B. x", "A. y", "C. z", "D. w"], ("B. x", "A. y", "C. z", "D. w")),
])
def test_letters_before_options_are_taken_off_where_all_have_their_own(options, bare):
    assert row_of(published.cells(QUESTIONS[0]) | {"options": options}, "").question.options == bare


@pytest.mark.parametrize(("changed", "message"), [
    ({"question_type_id": "x"}, "question_type_id: is 'x' (str) instead of a number"),
    ({"question_type_id": None}, "question_type_id: is empty instead of a number"),
    ({"question_type_id": 0}, "question_type_id: 0 is none of AV-Odyssey's 1 to 26, and the words are none of DeafTest's"),
    ({"question_type_id": 40, "question": "what is it?", "subfield": "Taste"}, "question_type_id: 40 is none of"),
    ({"question": None}, "question: is empty instead of text"),
    ({"question_id": 3.5}, "question_id: is '3.5' (float) instead of text"),
    ({"answer": "E"}, "answer: is 'E' instead of a letter of ABCD"),
    ({"answer": "a"}, "answer: is 'a' instead of a letter of ABCD"),
    ({"options": ["x", "y", "z"]}, "options: 3 instead of 4, as Instrument Recognition has"),
    ({"options": "x, y"}, "options: is 'x, y' (str) instead of a list of texts"),
    ({"options": ["x", None, "y", "z"]}, "options: is "),
    ({"audio_1": 7}, "audio_1: is '7' (int) instead of bytes or a path"),
    ({"question_type_id": 31, "question": "Which is louder?", "options": ["a", "b", "c"]}, "options: 3 instead of 2, as loudness has"),
    ({"question_type_id": 31, "question": "Which is louder?", "options": ["a", "b"], "answer": "C"}, "answer: is 'C' instead of"),
])
def test_a_row_that_is_no_question_is_named_with_its_cell(changed, message):
    with pytest.raises(DataError) as error:
        row_of(published.cells(QUESTIONS[0]) | changed, "part1.parquet, row 9")
    assert str(error.value).startswith(f"part1.parquet, row 9: {message}")
    assert "\n" not in str(error.value)


def test_the_row_is_counted_over_row_groups(tmp_path):
    rows = [published.cells(question) for question in QUESTIONS[:7]]
    rows[5]["answer"] = "?"
    published.write(tmp_path / "part.parquet", rows, group=2)
    with pytest.raises(DataError, match=r"^part.parquet, row 6: answer: is '\?'"):
        read(tmp_path)


@pytest.mark.parametrize("column", ["question_id", "question_type_id", "question", "options", "answer", "subfield"])
def test_a_missing_column_is_named_with_its_file(tmp_path, column):
    row = published.cells(QUESTIONS[0])
    del row[column]
    published.write(tmp_path / "part.parquet", [row])
    with pytest.raises(DataError, match=f"^part.parquet: has no column {column}; it has "):
        read(tmp_path)


def test_files_without_sounds_are_no_part_of_the_benchmark(tmp_path):
    row = {name: value for name, value in published.cells(QUESTIONS[0]).items() if name not in published.MEDIA}
    published.write(tmp_path / "part.parquet", [row])
    with pytest.raises(DataError, match=r"^part.parquet: has no column audio_1"):
        read(tmp_path)


def test_what_is_no_folder_or_no_parquet_is_said(tmp_path):
    with pytest.raises(DataError, match=r"data.root: .*nowhere is no folder"):
        parquet_files(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no parquet file; download AV-Odyssey/AV_Odyssey_Bench"):
        parquet_files(tmp_path)
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"cut.parquet: is no whole parquet file \(.*\); download it again"):
        read(tmp_path)


def test_a_file_is_read_by_row_groups_and_never_whole_in_memory(tmp_path):
    noise = np.random.default_rng(0).bytes(200_000)
    blank = dict.fromkeys(published.MEDIA) | {"audio_1": b"sound"}
    rows = [published.cells(QUESTIONS[0]) | blank | {"image_1": number.to_bytes(2, "big") + noise} for number in range(80)]
    path = tmp_path / "part.parquet"
    published.write(path, rows, group=8)
    del rows
    most, before = 0, pa.total_allocated_bytes()
    for count, row in enumerate(rows_of(path)):
        assert row.media["img1"][:2] == count.to_bytes(2, "big")
        most = max(most, pa.total_allocated_bytes() - before)
    assert count == 79
    assert most < 0.5 * 80 * len(noise)
