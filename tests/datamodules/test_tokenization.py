import json
import random

import pytest
from small_text import SHARED_TEXT, as_bytes, byte_tokenizer, documents, needs_shared_text, offline
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from datamodules.rows import DataError
from datamodules.tokenization import END_OF_TEXT, encode, load_tokenizer, tokenizer_key, train_tokenizer


def random_text(chance):
    """Any text at all: characters of every plane, control characters, no lone surrogates."""
    planes = [range(0x20), range(0x20, 0x7F), range(0x80, 0x800), range(0x800, 0xD800), range(0xE000, 0x10000), range(0x10000, 0x110000)]
    return "".join(chr(chance.choice(chance.choice(planes))) for _ in range(chance.randint(0, 30)))


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(documents(500, seed=3), 400)


def test_training_twice_gives_the_same_tokenizer(trained):
    assert trained.backend_tokenizer.to_str() == train_tokenizer(iter(documents(500, seed=3)), 400).backend_tokenizer.to_str()
    assert len(trained) == 400


def test_any_text_survives_encoding_and_decoding(trained):
    chance = random.Random(7)
    texts = [random_text(chance) for _ in range(2000)]
    assert [trained.decode(ids) for ids in encode(trained, texts)] == texts


def test_a_tokenizer_without_merges_gives_the_utf8_bytes():
    chance = random.Random(8)
    texts = [random_text(chance) for _ in range(300)]
    assert [bytes(as_bytes(ids)) for ids in encode(byte_tokenizer(), texts)] == [text.encode() for text in texts]


def test_a_special_token_spelled_out_in_a_text_stays_plain_text(trained):
    (ids,) = encode(trained, [f"a{END_OF_TEXT}b"])
    assert trained.eos_token_id not in ids
    assert trained.decode(ids) == f"a{END_OF_TEXT}b"


def test_many_texts_at_once_give_what_each_gives_alone(trained):
    texts = documents(200, seed=5)
    assert encode(trained, texts) == [encode(trained, [text])[0] for text in texts]
    assert encode(trained, []) == []


def test_a_text_too_small_for_the_vocabulary_is_reported(caplog):
    assert len(train_tokenizer(["ab"], 300)) < 300
    assert "not of 300 as data.vocab_size asks" in caplog.text


def padded_and_cut(folder):
    """Save a tokenizer as some are published: texts cut to 4 tokens, padded to 4, and framed by special tokens."""
    tokenizer = Tokenizer(models.WordLevel({"</s>": 0, "<pad>": 1, "?": 2, "a": 3, "b": 4}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["</s>", "<pad>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A </s>", special_tokens=[("</s>", 0)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4, pad_id=1, pad_token="<pad>")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", model_max_length=4).save_pretrained(folder)
    return str(folder)


def test_a_published_tokenizer_neither_cuts_nor_pads_nor_frames(tmp_path):
    tokenizer = load_tokenizer(padded_and_cut(tmp_path))
    assert encode(tokenizer, ["a", "a b a b a b"]) == [[3], [3, 4, 3, 4, 3, 4]]


def test_the_key_of_a_tokenizer_is_the_same_before_and_after_use_and_follows_its_content(tmp_path, trained):
    tokenizer = load_tokenizer(padded_and_cut(tmp_path))
    before = tokenizer_key(tokenizer)
    encode(tokenizer, ["a"])
    assert tokenizer_key(tokenizer) == before == tokenizer_key(load_tokenizer(str(tmp_path)))
    assert len({before, tokenizer_key(trained), tokenizer_key(byte_tokenizer())}) == 3
    trained.save_pretrained(tmp_path / "other")
    again = load_tokenizer(str(tmp_path / "other"))
    assert tokenizer_key(again) == tokenizer_key(trained)


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path, trained):
    PreTrainedTokenizerFast(tokenizer_object=trained.backend_tokenizer).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert "eos_token" not in settings
    with pytest.raises(DataError, match="has no end-of-text token"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["nobody/nothing", "a/b/c", "."])
def test_a_name_that_gives_no_tokenizer_is_refused_in_one_line(name, monkeypatch, tmp_path):
    offline(monkeypatch)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as error:
        load_tokenizer(name)
    assert str(error.value).startswith(f"data.tokenizer={name}: cannot be loaded (")
    assert str(error.value).endswith("give a folder, a name on the Hub, or train")
    assert "\n" not in str(error.value)


@needs_shared_text
def test_novels_survive_a_tokenizer_that_was_trained_on_other_novels():
    lines = (SHARED_TEXT / "gutenberg" / "valid.txt").read_text().splitlines()
    tokenizer = train_tokenizer(lines[:500], 1000)
    rest = lines[500:1000]
    ids = encode(tokenizer, rest)
    assert [tokenizer.decode(one) for one in ids] == rest
    assert sum(map(len, ids)) < 0.6 * sum(len(line.encode()) for line in rest)
