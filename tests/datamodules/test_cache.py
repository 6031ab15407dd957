import logging
import multiprocessing
import re
import time

import numpy as np
import pytest
from small_text import SHARED_TEXT, byte_tokenizer, documents, needs_shared_text, texts_of

from datamodules import cache as cache_module
from datamodules.cache import build_once, encoded, token_stream, token_type
from datamodules.rows import DataError
from datamodules.text import Corpus
from datamodules.tokenization import train_tokenizer


def test_a_token_stream_is_an_end_of_text_and_every_document_with_one_behind_it(tmp_path):
    texts = documents(60)
    stream = token_stream(tmp_path / "s", texts, byte_tokenizer())
    assert stream.tokens[0] == byte_tokenizer().eos_token_id
    assert texts_of(stream.tokens[1:]) == texts


def test_counts_and_tokens_per_byte_are_those_of_a_count_by_hand(tmp_path):
    tokenizer = train_tokenizer(documents(300, seed=1), 320)
    texts = [text.replace("<|endoftext|>", "") for text in documents(200, seed=2)]
    facts = token_stream(tmp_path / "s", texts, tokenizer).facts
    tokens = sum(len(tokenizer(text)["input_ids"]) + 1 for text in texts)
    nbytes = len("".join(text + "\n" for text in texts).encode())
    assert (facts.documents, facts.tokens, facts.text_bytes) == (200, tokens, nbytes)
    assert facts.tokens_per_byte == tokens / nbytes


@needs_shared_text
def test_the_bytes_of_a_file_of_lines_are_all_counted(tmp_path):
    path = SHARED_TEXT / "gutenberg" / "valid.txt"
    facts = token_stream(tmp_path / "s", Corpus((path,)), byte_tokenizer()).facts
    assert facts.text_bytes == facts.tokens == path.stat().st_size
    assert facts.tokens_per_byte == 1


def test_a_stored_stream_is_opened_and_not_made_again(tmp_path):
    first = token_stream(tmp_path / "s", documents(5), byte_tokenizer())
    again = token_stream(tmp_path / "s", (pytest.fail("read again") for _ in range(1)), byte_tokenizer())
    assert np.array_equal(first.tokens, again.tokens)
    assert first.facts == again.facts


@pytest.mark.parametrize(("size", "kind"), [(257, np.uint16), (65_536, np.uint16), (65_537, np.uint32), (256_000, np.uint32)])
def test_tokens_take_two_bytes_where_the_vocabulary_allows_it(size, kind):
    assert token_type(size) is kind
    assert np.iinfo(token_type(size)).max >= size - 1


def test_large_tokens_are_stored_whole(tmp_path):
    class Large:
        eos_token_id = 70_000
        backend_tokenizer = None

        def __len__(self):
            return 70_001

        def __call__(self, texts, **options):
            return {"input_ids": [[65_535 + int(text), 3] for text in texts]}

    stream = token_stream(tmp_path / "s", ["0", "1", "4000"], Large())
    assert stream.tokens.dtype == np.uint32
    assert stream.tokens.tolist() == [70_000, 65_535, 3, 70_000, 65_536, 3, 70_000, 69_535, 3, 70_000]


def test_chunks_of_the_tokenizer_do_not_show_in_the_tokens(monkeypatch):
    texts = documents(100)
    whole = list(encoded(texts, byte_tokenizer()))
    monkeypatch.setattr(cache_module, "CHUNK_BYTES", 50)
    assert list(encoded(iter(texts), byte_tokenizer())) == whole
    assert [nbytes for _, nbytes in whole] == [len(text.encode()) + 1 for text in texts]


def test_a_part_without_documents_is_an_error_and_leaves_nothing_behind(tmp_path):
    with pytest.raises(DataError, match="no document in this part of the data"):
        token_stream(tmp_path / "s", [], byte_tokenizer())
    assert [path.name for path in tmp_path.iterdir()] in ([], ["s.lock"])


def test_a_failed_build_leaves_nothing_behind_and_can_be_tried_again(tmp_path):
    def fail(folder):
        (folder / "half").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        build_once(tmp_path / "x", fail)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert (build_once(tmp_path / "x", lambda folder: (folder / "a").write_text("whole")) / "a").read_text() == "whole"


def test_progress_is_reported_while_text_is_tokenised(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(cache_module, "REPORT_SECONDS", -1.0)
    with caplog.at_level(logging.INFO, logger="datamodules"):
        facts = token_stream(tmp_path / "s", documents(30), byte_tokenizer()).facts
    reported = [int(number) for number in re.findall(r"of text into (\d+) tokens", caplog.text)]
    assert len(reported) == 30
    assert reported == sorted(set(reported))
    assert reported[-1] == facts.tokens


def rank_of_three(folder, name):
    """Ask for a token stream whose documents come slowly; keep a record of the documents that this process was asked for."""
    def slowly():
        for text in documents(60):
            with (folder / f"{name}.record").open("a") as record:
                record.write("document\n")
            time.sleep(0.05)
            yield text

    np.save(folder / f"{name}.npy", token_stream(folder / "cache" / "tokens", slowly(), byte_tokenizer()).tokens)


def record_of(folder, name):
    path = folder / f"{name}.record"
    return path.read_text().split() if path.exists() else []


def test_of_three_processes_one_builds_and_if_it_is_killed_another_starts_afresh(tmp_path):
    ranks = {name: multiprocessing.get_context("fork").Process(target=rank_of_three, args=(tmp_path, name)) for name in "abc"}
    for rank in ranks.values():
        rank.start()
    while not (building := [name for name in ranks if len(record_of(tmp_path, name)) > 5]):
        time.sleep(0.01)
    (victim,) = building
    ranks[victim].kill()
    for rank in ranks.values():
        rank.join(timeout=120)
    assert {name for name, rank in ranks.items() if rank.exitcode} == {victim}
    survivors = [name for name in ranks if name != victim]
    assert sorted(len(record_of(tmp_path, name)) for name in survivors) == [0, 60]
    expected = token_stream(tmp_path / "alone", documents(60), byte_tokenizer()).tokens
    assert all(np.array_equal(np.load(tmp_path / f"{name}.npy"), expected) for name in survivors)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == ["tokens"]
