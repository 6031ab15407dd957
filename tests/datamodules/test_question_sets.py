"""Public data sets, from folders that are laid out as the Hub has them."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_text import offline

from datamodules.question_sets import Copy, hub_rows, with_options
from datamodules.rationales import RowCheck
from datamodules.rows import DataError


def write_split(folder, split, rows):
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")


def read(dataset, folder, answers="number", seed=1):
    return hub_rows(dataset, Copy(str(folder)), RowCheck(answers), seed)


def sizes(rows):
    return dict(Counter(row.split for row in rows))


def gsm8k_row(number):
    return {"question": f"What is {number} twice?",
            "answer": f"Twice {number} is 2*{number}=<<2*{number}={2 * number}>>{2 * number}.\nThat is it.\n#### {2 * number:,}"}


def test_gsm8k_loses_its_calculator_notes_and_its_test_split_is_halved(tmp_path):
    write_split(tmp_path, "train", [gsm8k_row(n) for n in range(1000, 1040)])
    write_split(tmp_path, "test", [gsm8k_row(n) for n in range(21)])
    rows, bad = read("gsm8k", tmp_path)
    assert not bad
    assert sizes(rows) == {"train": 40, "valid": 11, "test": 10}
    assert rows[0].question == "What is 1000 twice?"
    assert rows[0].steps == ("Twice 1000 is 2*1000=2000.", "That is it.")
    assert rows[0].answer == "2000"
    assert rows[0].id == "gsm8k-train:1"
    assert read("gsm8k", tmp_path)[0] == rows
    assert read("gsm8k", tmp_path, seed=2)[0] != rows


def test_svamp_joins_body_and_question_and_has_no_rationales(tmp_path):
    rows = [{"ID": f"chal-{n}", "Body": f"Ann has {n} dvds" + "." * (n % 2), "Question": "How many has she? ", "Answer": f"{n}.0"}
            for n in range(10)]
    write_split(tmp_path, "train", rows)
    write_split(tmp_path, "test", rows[:6])
    found, bad = read("svamp", tmp_path)
    assert not bad
    assert [row.question for row in found[:2]] == ["Ann has 0 dvds. How many has she?", "Ann has 1 dvds. How many has she?"]
    assert found[3].id == "svamp-chal-3"
    assert float(found[3].answer) == 3
    assert not any(row.steps for row in found)
    assert sizes(found) == {"train": 10, "valid": 3, "test": 3}


def test_asdiv_leaves_units_out_and_splits_by_the_papers_shares(tmp_path):
    rows = [{"body": f"Bo has {n} pens.", "question": "How many?", "answer": f"{n} (pens)", "formula": f"{n}={n}"} for n in range(2089)]
    write_split(tmp_path, "validation", rows)
    found, bad = read("asdiv", tmp_path)
    assert not bad
    assert sizes(found) == {"train": 1462, "valid": 313, "test": 314}
    assert (found[7].question, found[7].answer) == ("Bo has 7 pens. How many?", "7")


def test_commonsenseqa_has_its_options_in_the_question_and_letters_for_answers(tmp_path):
    def csqa_row(number):
        return {"id": f"{number:04}", "question": f"Where is {number}?", "question_concept": "x", "answerKey": "ABCDE"[number % 5],
                "choices": {"label": list("ABCDE"), "text": ["sea", "sky", "bank", "home", "bus"]}}

    write_split(tmp_path, "train", [csqa_row(n) for n in range(974)])
    write_split(tmp_path, "validation", [csqa_row(n) for n in range(1000, 1100)])
    write_split(tmp_path, "test", [{**csqa_row(n), "answerKey": ""} for n in range(2000, 2010)])
    found, bad = read("commonsenseqa", tmp_path, "letter")
    assert not bad  # the test split, which has no answers, is not read
    assert found[0].question == "Where is 0? Answer Choices:\nA. sea\nB. sky\nC. bank\nD. home\nE. bus"
    assert found[0].question == with_options("Where is 0?", dict(zip("ABCDE", ["sea", "sky", "bank", "home", "bus"])))
    assert found[3].answer == "D"
    assert sizes(found) == {"train": 852, "valid": 122, "test": 100}


def test_a_row_that_is_not_as_in_the_data_set_is_named(tmp_path):
    rows = [gsm8k_row(n) for n in range(5)]
    rows[2]["answer"] = None
    rows[3]["answer"] = "no mark"
    write_split(tmp_path, "train", rows)
    write_split(tmp_path, "test", rows[:2])
    found, bad = read("gsm8k", tmp_path)
    assert [row.id for row in found if row.split == "train"] == ["gsm8k-train:1", "gsm8k-train:2", "gsm8k-train:5"]
    assert [row.where for row in bad] == ["train:3", "train:4"]
    assert bad[0].reason.startswith("is not as in that data set (AttributeError")
    assert bad[1].reason == "'answer' is 'no mark' instead of a number"
    assert json.dumps(bad[0].row)


def test_unknown_sets_and_missing_networks_are_refused_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"^data.dataset=mine: is not known on the Hub; write one of: gsm8k, svamp, asdiv, "):
        hub_rows("mine", Copy(), RowCheck(), 1)
    monkeypatch.chdir(tmp_path)
    offline(monkeypatch)
    with pytest.raises(DataError, match=r"^data.hub=openai/gsm8k: no such folder, and HF_HUB_OFFLINE forbids to ask the Hub"):
        hub_rows("gsm8k", Copy(), RowCheck(), 1)


def test_a_copy_without_a_split_or_in_subsets_is_answered_with_what_to_give(tmp_path):
    write_split(tmp_path / "no_test", "train", [gsm8k_row(n) for n in range(3)])
    with pytest.raises(DataError, match=r"^data.hub=\S+: has no split 'test'; give a copy with the splits train and test$"):
        read("gsm8k", tmp_path / "no_test")
    for split in ("train", "test"):
        write_split(tmp_path / "sets" / "main", split, [gsm8k_row(n) for n in range(4)])
    files = [{"split": split, "path": f"main/{split}-*"} for split in ("train", "test")]
    configs = [{"config_name": "main", "data_files": files}, {"config_name": "other", "data_files": files}]
    (tmp_path / "sets" / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    with pytest.raises(DataError, match=r"comes in subsets; set data.subset to one of: main, other$"):
        read("gsm8k", tmp_path / "sets")
    assert sizes(hub_rows("gsm8k", Copy(str(tmp_path / "sets"), "main"), RowCheck(), 1)[0]) == {"train": 4, "valid": 2, "test": 2}
