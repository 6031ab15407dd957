import json
import logging
from collections import Counter

import pytest
from small_rationales import SHARED_RATIONALES, needs_shared_rationales, row, write_rows

from datamodules.question_sets import file_rows, folder_rows
from datamodules.rationales import Rationale, RowCheck, carve, digest, reaches, rewritten, rows_of_file, set_aside, sift, with_splits
from datamodules.rows import DataError


def sifted(tmp_path, *rows, **check):
    return sift(rows_of_file(write_rows(tmp_path / "rows.jsonl", rows)), RowCheck(**check))


def test_a_row_becomes_a_question_with_steps_and_an_answer(tmp_path):
    (good,) = sifted(tmp_path, row(3, rationale="First 3.\nThen + 1 = 4.", split="test", split_kpod="dev", source="a book")).good
    assert good == Rationale("q3", "What is 3 and 1?", ("First 3.", "Then + 1 = 4."), "4", "valid", "a book", True)


def test_what_a_row_need_not_have_is_filled_in(tmp_path):
    rows = sifted(tmp_path, row(1, id=..., rationale=...), row(2, rationale=None), row(3, rationale=" ")).good
    assert [(each.id, each.steps, each.split, each.correct) for each in rows] == [
        ("rows.jsonl:1", (), "", None), ("q2", (), "", None), ("q3", (), "", None)]


@pytest.mark.parametrize(("bad", "reason"), [
    (row(question=...), "no key 'question'; the row has: answer, id, rationale"),
    (row(answer=...), "no key 'answer'; the row has: id, question, rationale"),
    (row(question=7), "'question' is int instead of a string"),
    (row(question=" "), "'question' is empty"),
    (row(answer=""), "'answer' is empty"),
    (row(answer=None), "'answer' is null instead of a string"),
    (row(answer="many"), "'answer' is 'many' instead of a number"),
    (row(answer=True), "'answer' is bool instead of a string"),
    (row(answer="3 or 4"), "'answer' is '3 or 4' instead of a number"),
    (row(rationale=["a", "b"]), "'rationale' is list instead of a string"),
    (row(rationale="...\n---"), "no steps: the rationale has neither letters nor digits"),
    (row(split="training"), "'split' is 'training' instead of one of: train, dev, val, valid, validation, test"),
    (row(split="train", split_kpod=3), "'split_kpod' is 3 instead of one of: train, dev, val, valid, validation, test"),
    (row(question="half \ud800 a pair"), "'question' has half of a surrogate pair at character 5"),
    (row(rationale="So \udfff."), "'rationale' has half of a surrogate pair at character 3"),
    ('{"question": "a",}', "not valid JSON (Illegal trailing comma before end of object at column 16)"),
    ("[1, 2]", "list instead of an object"),
])
def test_a_bad_row_is_named_by_file_line_and_reason_and_the_others_are_kept(tmp_path, bad, reason):
    found = sifted(tmp_path, row(1), "", bad, row(2))
    assert [each.id for each in found.good] == ["q1", "q2"]
    (named,) = found.bad
    assert named.where == "rows.jsonl:3"
    if "JSON" not in reason:  # its words depend on Python's version
        assert named.reason == reason
    else:
        assert named.reason.startswith("not valid JSON (")


def test_a_line_that_is_not_utf8_is_a_bad_row_too(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row(1)).encode() + b"\n" + '{"question": "café"'.encode("latin1") + b"\n")
    found = sift(rows_of_file(path), RowCheck())
    assert [each.id for each in found.good] == ["q1"]
    assert [(each.where, each.reason) for each in found.bad] == [("rows.jsonl:2", "not UTF-8 (byte 17 of the line)")]


@pytest.mark.parametrize(("kind", "answer", "kept"), [
    ("number", "1,234", "1234"), ("number", "$-5.50", "-5.50"), ("number", 7, "7"), ("number", 7.0, "7"), ("number", 0.5, "0.5"),
    ("letter", "C", "C"), ("letter", "c", None), ("letter", "CD", None), ("text", "a red one", "a red one"), ("text", "7", "7")])
def test_answers_are_numbers_letters_or_any_text(tmp_path, kind, answer, kept):
    found = sifted(tmp_path, row(answer=answer), answers=kind)
    assert [each.answer for each in found.good] == ([] if kept is None else [kept])


def test_bad_rows_are_listed_in_a_file_and_counted_in_a_warning(tmp_path, caplog):
    found = sifted(tmp_path, *[row(n) for n in range(95)], *[row(n, answer="x") for n in range(5)])
    with caplog.at_level(logging.WARNING):
        set_aside(found, tmp_path / "aside", 0.05)
    (listed,) = (tmp_path / "aside").iterdir()
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [line["where"] for line in lines] == [f"rows.jsonl:{n}" for n in range(96, 101)]
    assert lines[0] == {"where": "rows.jsonl:96", "reason": "'answer' is 'x' instead of a number", "row": row(0, answer="x")}
    assert caplog.messages == [
        "5 of 100 rows cannot be used and are left out: " + "; ".join(f"rows.jsonl:{n}: 'answer' is 'x' instead of a number"
                                                                      for n in (96, 97, 98)) + f"; ...; all are listed in {listed}"]


def test_too_many_bad_rows_are_refused_in_one_line_that_names_them(tmp_path):
    found = sifted(tmp_path, *[row(n) for n in range(95)], *[row(n, answer="x") for n in range(5)])
    with pytest.raises(DataError, match=r"^5 of 100 rows cannot be used, more than data.max_bad=0.04 allows \(rows.jsonl:96: .*all are"):
        set_aside(found, tmp_path / "aside", 0.04)
    with pytest.raises(DataError, match=r"^no rows; write one object a line"):
        set_aside(sifted(tmp_path), tmp_path / "aside", 1.0)


def test_good_rows_alone_leave_no_file_and_no_warning(tmp_path, caplog):
    set_aside(sifted(tmp_path, row()), tmp_path / "aside", 0.0)
    assert not (tmp_path / "aside").exists()
    assert not caplog.messages


@pytest.mark.parametrize(("rationale", "answer", "said", "correct"), [
    ("4 + 4 = 8 of 1,000.", "1000", None, True), ("So it is 8.", "9", None, False), ("So it is 8.0.", "8", None, True),
    ("No number.", "9", None, None), ("So it is 8.", "9", True, True), ("So it is 8.", "8", False, False),
    ("Left: -.5", "-0.5", None, True)])
def test_a_rationale_is_wrong_where_the_row_says_so_or_where_it_ends_on_another_number(tmp_path, rationale, answer, said, correct):
    (good,) = sifted(tmp_path, row(rationale=rationale, answer=answer, teacher_correct=... if said is None else said)).good
    assert good.correct is correct
    if said is None:
        assert reaches(good.steps, answer) is correct


def test_without_any_split_a_seeded_hash_of_the_question_holds_rows_out():
    rows = [Rationale(f"{n}", f"question {n % 180}", (), "1", "", "") for n in range(200)]  # 20 questions occur twice
    split = with_splits(rows, 0.1, 5)
    by_split = {name: {row.question for row in split if row.split == name} for name in ("train", "valid", "test")}
    assert {name: len(questions) for name, questions in by_split.items()} == {"train": 144, "valid": 18, "test": 18}
    assert not by_split["train"] & by_split["valid"]
    assert not by_split["train"] & by_split["test"]
    assert with_splits(rows, 0.1, 5) == split
    assert with_splits(rows, 0.1, 6) != split
    moved = with_splits(rows[::-1], 0.1, 5)[::-1]
    assert moved == split  # the order of the rows does not matter


def test_rows_that_say_their_split_keep_it_and_only_a_missing_validation_split_is_made():
    said = [Rationale(f"{n}", f"question {n}", (), "1", ("train", "test")[n % 2], "") for n in range(100)]
    split = with_splits(said, 0.1, 1)
    assert Counter(row.split for row in split) == {"train": 45, "valid": 5, "test": 50}
    assert all(row.split == "test" for row in split[1::2])
    whole = [Rationale(f"{n}", f"question {n}", (), "1", ("train", "valid", "")[n % 3], "") for n in range(99)]
    assert Counter(row.split for row in with_splits(whole, 0.1, 1)) == {"train": 66, "valid": 33}


def test_carving_takes_the_share_asked_for_of_the_training_rows_only():
    rows = [Rationale(f"{n}", f"question {n}", (), "1", "train" if n < 1319 else "valid", "") for n in range(1400)]
    carved = carve(rows, 0.5, "test", 0)
    assert Counter(row.split for row in carved) == {"train": 659, "test": 660, "valid": 81}


def test_the_digest_follows_the_texts_and_their_order_and_nothing_else(tmp_path):
    rows = sifted(tmp_path, *map(row, range(4))).good
    renamed = [Rationale("x", each.question, each.steps, each.answer, "test", "y") for each in rows]
    changed = rewritten(rows, lambda text: text.replace("What", "Which"))
    assert digest(renamed) == digest(rows)
    assert len({digest(rows), digest(rows[::-1]), digest(rows[1:]), digest(changed)}) == 4


def test_files_of_their_own_decide_the_split_and_a_share_validates_if_there_is_none(tmp_path):
    train = write_rows(tmp_path / "a.jsonl", [row(n, split="test") for n in range(50)])
    test = write_rows(tmp_path / "b.jsonl", [row(n) for n in range(100, 110)])
    rows, bad = file_rows({"train": [str(train)], "valid": [], "test": [str(test)]}, RowCheck(), 0.1, 1)
    assert not bad
    assert Counter(each.split for each in rows) == {"train": 45, "valid": 5, "test": 10}
    assert {each.source for each in rows if each.split == "test"} == {"b.jsonl"}


def test_a_folder_without_the_data_set_says_which_it_has(tmp_path):
    write_rows(tmp_path / "mine.jsonl", [row()])
    with pytest.raises(DataError, match=r"has no gsm8k.jsonl; set data.dataset to one of: mine$"):
        folder_rows(str(tmp_path), "gsm8k", RowCheck(), 0.1, 1)
    with pytest.raises(DataError, match=r"no such folder; data.root is a folder with gsm8k.jsonl"):
        folder_rows(str(tmp_path / "none"), "gsm8k", RowCheck(), 0.1, 1)
    assert folder_rows(str(tmp_path / "mine.jsonl"), "gsm8k", RowCheck(), 0.1, 1)[0][0].id == "q0"


@needs_shared_rationales
@pytest.mark.parametrize(("name", "kind", "sizes"), [
    ("gsm8k", "number", (7473, 660, 659)), ("svamp", "number", (700, 150, 150)), ("commonsenseqa", "letter", (8520, 1221, 1221))])
def test_the_splits_have_the_sizes_of_the_papers_table_4(name, kind, sizes):
    rows, bad = folder_rows(str(SHARED_RATIONALES), name, RowCheck(kind), 0.1, 1)
    assert not bad
    assert tuple(Counter(each.split for each in rows)[split] for split in ("train", "valid", "test")) == sizes


@needs_shared_rationales
def test_wrong_teacher_rationales_are_those_that_the_file_marks():
    rows, _ = folder_rows(str(SHARED_RATIONALES), "gsm8k_gpt35_500", RowCheck(), 0.1, 1)
    assert Counter(each.correct for each in rows) == {True: 319, False: 181}
