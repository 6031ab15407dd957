"""Small texts for the tests of the data: random documents, a tokenizer of bytes, and datasets laid out as on the Hub."""

import json
import os
import random
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.tokenization import train_tokenizer

SHARED_TEXT = Path(__file__).resolve().parents[3] / "shared" / "data" / "text"
ALPHABET = "ab cdeé ñ漢字🙂\t<|endoftext|>"

needs_shared_text = pytest.mark.skipif(not SHARED_TEXT.is_dir(), reason="the folder shared/data/text beside the repository is missing")


def documents(count, seed=0, longest=40):
    """Make documents of random length and characters, one to a line, none blank."""
    chance = random.Random(seed)
    return [f"{number} " + "".join(chance.choices(ALPHABET, k=chance.randint(0, longest))).replace("\n", " ") for number in range(count)]


@cache
def byte_tokenizer():
    """A tokenizer without merges: a token is a byte."""
    return train_tokenizer(["no merge happens"], 257)


def as_bytes(tokens):
    """Undo the byte tokenizer by its alphabet alone; the end of a text becomes None."""
    byte_of = {byte_tokenizer().convert_tokens_to_ids(character): byte for byte, character in gpt2_bytes().items()}
    return [byte_of.get(int(token)) for token in tokens]


def texts_of(tokens):
    """Cut a stream of byte tokens at each end of a text; what stands after the last one is left out."""
    found, current = [], bytearray()
    for byte in as_bytes(tokens):
        if byte is None:
            found.append(current.decode(errors="replace"))
            current = bytearray()
        else:
            current.append(byte)
    return found


def gpt2_bytes():
    """The byte alphabet as GPT-2 defined it: printable Latin-1 bytes stand for themselves, the others are numbered from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + number) for number, byte in enumerate(others)}


def write_dataset(folder, texts, files=1, kind="jsonl", split="train", key="text"):
    """Write documents into `files` files of a split, in order, as a dataset folder holds them."""
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(texts) // files)
    for number in range(files):
        rows = [{"number": number * size + place, key: text} for place, text in enumerate(texts[number * size : (number + 1) * size])]
        path = folder / f"{split}-{number:05}-of-{files:05}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def offline(monkeypatch):
    """Forbid the Hub, as HF_HUB_OFFLINE=1 does for a new process."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
