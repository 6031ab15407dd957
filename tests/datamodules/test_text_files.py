import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_text import documents

from datamodules.rows import DataError, RowFormat
from datamodules.text import Corpus, Share, read_documents, text_bytes


def write(path, content):
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def read(path, rows=None, unit="line"):
    return list(read_documents(path, rows or RowFormat(), unit))


def message(path, rows=None, unit="line"):
    with pytest.raises(DataError) as error:
        read(path, rows, unit)
    assert "\n" not in str(error.value)
    return str(error.value)


TEXTS = ["one", "  two  ", "thr\u2028ee é 漢", "four\x0bfive"]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.md"])
def test_a_text_file_gives_a_document_for_each_line_that_is_not_blank(tmp_path, name, ending):
    path = write(tmp_path / name, ending.join(["\ufeff" + TEXTS[0], "", "   ", *TEXTS[1:]]).encode())
    assert read(path) == TEXTS


def test_a_file_as_one_document_keeps_its_lines(tmp_path):
    path = write(tmp_path / "a.py", "\ufeffx = 1\n\ny = 2\n".encode())
    assert read(path, unit="file") == ["x = 1\n\ny = 2\n"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson.gz", "a.json"])
def test_json_lines_give_the_value_under_the_key_of_each_row(tmp_path, name):
    rows = [*(json.dumps({"id": 1, "text": text}) for text in TEXTS), "", json.dumps({"text": "  "})]
    assert read(write(tmp_path / name, "\n".join(rows).encode())) == TEXTS


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
@pytest.mark.parametrize("indent", [None, 4])
def test_a_json_file_may_be_one_array_of_rows(tmp_path, name, indent):
    rows = [{"id": 1, "text": text} for text in [*TEXTS, " "]]
    path = write(tmp_path / name, json.dumps(rows, indent=indent).encode())
    assert read(path) == TEXTS
    assert message(path, RowFormat("body")) == f"{path}, item 1: no key 'body'; set data.text_key to one of: id, text"
    cut = write(tmp_path / f"cut {name}", json.dumps(rows, indent=4).encode()[:-10])
    assert message(cut).startswith(f"{cut}, line ")


def test_parquet_gives_the_value_of_a_column_or_a_filled_template(tmp_path):
    table = pa.Table.from_pylist([{"text": text, "n": n} for n, text in enumerate(TEXTS)])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    assert read(tmp_path / "a.parquet") == TEXTS
    assert read(tmp_path / "a.parquet", RowFormat(template="{n}:{text}")) == [f"{n}:{text}" for n, text in enumerate(TEXTS)]


def test_a_wrong_byte_is_named_by_file_line_and_place(tmp_path):
    path = write(tmp_path / "a.txt", b"fine\nalso fine\nbad \xe9 byte\n")
    assert message(path).startswith(f"{path}, line 3: byte 19 of the file (0xe9) is not UTF-8; save the file as UTF-8")
    assert message(path, unit="file").startswith(f"{path}: byte 19 of the file (0xe9) is not UTF-8")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize(("line", "said"), [
    (b'{"text": "cut', "not valid JSON (Unterminated string starting at at column 10); write one object a line"),
    (b'["text"]', "a list instead of an object"),
    (b'{"txt": "a"}', "no key 'text'; set data.text_key=txt"),
    (b'{"text": null}', "'text' is null instead of a string"),
    (b'{"text": "\\ud83d"}', "half of a surrogate pair"),
    (b'{"text": "\xff"}', "is not UTF-8"),
])
def test_a_bad_row_of_json_is_named_by_file_and_line(tmp_path, name, line, said):
    path = write(tmp_path / name, b'{"text": "fine"}\n\n' + line + b"\n")
    assert message(path).startswith(f"{path}, line 3: ")
    assert said in message(path)


def test_a_missing_key_of_a_template_names_the_line_and_the_key(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"q": "1", "a": "2"}\n{"q": "1"}\n')
    assert message(path, RowFormat(template="{q} {a}")) == f"{path}, line 2: no key 'a', which data.template names; the row has: q"


def test_a_bad_row_of_parquet_is_named_by_file_and_row(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["fine"] * 1500 + [None]}), path)
    assert message(path).startswith(f"{path}, row 1501: 'text' is null instead of a string")
    broken = pa.array([b"fine", b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": broken}), path)
    assert message(path) == f"{path}, row 2: is not UTF-8; write the column as UTF-8 text"
    pq.write_table(pa.table({"body": ["fine"]}), path)
    assert message(path) == f"{path}: no key 'text'; set data.text_key=body"


def test_files_that_are_not_what_their_name_says_are_named(tmp_path):
    assert "not a whole parquet file, read up to row 0" in message(write(tmp_path / "a.parquet", b"text, not parquet"))
    assert "is not a whole gzip file" in message(write_raw(tmp_path / "a.txt.gz", b"plain text"))
    whole = gzip.compress(random.Random(0).randbytes(4000).hex().encode())
    assert "is not a whole gzip file" in message(write_raw(tmp_path / "b.txt.gz", whole[:2000]))
    assert "is not a whole gzip file" in message(write_raw(tmp_path / "c.txt.gz", whole[:500] + bytes(100) + whole[600:]))
    assert message(tmp_path / "none.txt") == f"{tmp_path / 'none.txt'}: no such file"
    assert "cannot be read (Is a directory)" in message(tmp_path)


def write_raw(path, content):
    path.write_bytes(content)
    return path


def test_a_parquet_file_with_a_damaged_page_says_up_to_which_row_it_was_read(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [random.Random(n).randbytes(20).hex() for n in range(3000)]}), path, row_group_size=1000,
                   compression="gzip", use_dictionary=False)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)
    assert message(path).startswith(f"{path}: not a whole parquet file, read up to row 1000 (")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
def test_an_empty_file_is_an_error_and_not_an_empty_corpus(tmp_path, name):
    assert "holds no text" in message(write(tmp_path / name, b"\n  \n"))


def corpus_of(tmp_path, texts, files=3, **options):
    paths = []
    for number in range(files):
        path = tmp_path / f"{number}.txt"
        path.write_text("\n".join(texts[number::files]))
        paths.append(path)
    return Corpus(tuple(paths), **options)


def sides(corpus, fraction=0.3):
    return [list(Corpus(corpus.files, share=Share(part, fraction), split_by=corpus.split_by, unit=corpus.unit, root=corpus.root))
            for part in ("train", "valid")]


def test_the_held_out_share_is_disjoint_complete_and_near_its_fraction(tmp_path):
    texts = documents(3000)
    train, valid = sides(corpus_of(tmp_path, texts))
    assert not set(train) & set(valid)
    assert sorted(train + valid) == sorted(texts)
    assert len(valid) / 3000 == pytest.approx(0.3, abs=0.03)  # more than three standard deviations


def test_the_held_out_share_does_not_depend_on_the_order_of_files_or_documents(tmp_path):
    texts = documents(300)
    corpus = corpus_of(tmp_path, texts)
    turned = Corpus(corpus.files[::-1])
    assert [sorted(side) for side in sides(corpus)] == [sorted(side) for side in sides(turned)]
    (tmp_path / "other").mkdir()
    mixed = corpus_of(tmp_path / "other", random.Random(1).sample(texts, 300), files=2)
    assert [sorted(side) for side in sides(corpus)] == [sorted(side) for side in sides(mixed)]


def test_equal_documents_are_all_on_one_side(tmp_path):
    train, valid = sides(corpus_of(tmp_path, documents(50) * 4))
    assert not set(train) & set(valid)
    assert all(train.count(text) == 4 for text in train)
    assert all(valid.count(text) == 4 for text in valid)
    assert valid


def test_files_can_be_held_out_by_name_whatever_is_in_them(tmp_path):
    paths = []
    for number in range(40):
        (tmp_path / f"m{number}.py").write_text("same\ncontent")
        paths.append(tmp_path / f"m{number}.py")
    train, valid = sides(Corpus(tuple(paths), unit="file", split_by="name", root=tmp_path))
    assert len(train) + len(valid) == 40
    assert train
    assert valid


def test_caps_end_a_corpus_at_the_document_that_reaches_them(tmp_path):
    texts = ["é" * 4, "b" * 9, "c" * 9]  # 9, 10 and 10 bytes with their ends
    corpus = corpus_of(tmp_path, texts, files=1)
    assert [text_bytes(text) for text in texts] == [9, 10, 10]
    for cap, count in [(1, 1), (9, 1), (10, 2), (19, 2), (20, 3), (100, 3)]:
        assert list(Corpus(corpus.files, share=Share(max_bytes=cap))) == texts[:count], cap
    assert list(Corpus(corpus.files, share=Share(max_documents=2))) == texts[:2]


def test_the_key_of_a_corpus_follows_its_content_and_options_and_not_its_place(tmp_path):
    texts = documents(20)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, same = corpus_of(tmp_path / "a", texts), corpus_of(tmp_path / "b", texts)
    assert one.key() == same.key()
    others = [
        Corpus(one.files, RowFormat("body")), Corpus(one.files, RowFormat(template="{text}")), Corpus(one.files, unit="file"),
        *(Corpus(one.files, share=share) for share in (Share("train", 0.1), Share("valid", 0.1), Share("train", 0.2),
                                                       Share(max_bytes=99), Share(max_documents=9))),
        Corpus(one.files[::-1]), Corpus(one.files[:2]), Corpus(one.files, split_by="name", root=tmp_path),
    ]
    others += [Corpus((write_raw(tmp_path / name, b"x"),)) for name in ("c.txt", "c.jsonl", "c.txt.gz")]
    keys = [one.key(), *(corpus.key() for corpus in others)]
    assert len(set(keys)) == len(keys)
    with one.files[1].open("a") as file:
        file.write(".")
    assert one.key() not in keys
