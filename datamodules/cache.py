"""Build things once, whoever comes first: a folder appears whole under its final name or not at all."""

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from datamodules.text import DataError, text_bytes
from datamodules.tokenization import encode

log = logging.getLogger(__name__)

FORMAT = 1  # part of every key: raise it when what is stored changes
CHUNK_BYTES = 1_000_000  # text handed to the tokenizer at a time
REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class StreamFacts:
    """Exact counts of a token stream: an opening end-of-text token, then every document followed by one."""

    documents: int
    tokens: int  # without the opening one: each of these is predicted once if all blocks are kept
    text_bytes: int  # UTF-8 bytes of the documents, and one for each document's end

    @property
    def tokens_per_byte(self) -> float:
        return self.tokens / self.text_bytes


@dataclass(frozen=True)
class TokenStream:
    """A token stream and its counts; `tokens` has one entry more than `facts.tokens`."""

    tokens: np.ndarray
    facts: StreamFacts


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, made by `build(temporary)` if it is not there yet.

    Processes that start together wait for the one that builds. A build that was killed leaves only a temporary
    folder, which the next build of the same thing removes.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        if not folder.is_dir():
            for stale in folder.parent.glob(f"{folder.name}.tmp-*"):  # nobody else is building: we hold the lock
                shutil.rmtree(stale, ignore_errors=True)
            temporary = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
            temporary.mkdir()
            try:
                build(temporary)
                os.replace(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder


def token_stream(folder: Path, documents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> TokenStream:
    """Open the token stream stored in `folder`; tokenize `documents` into it if it is not there."""
    build_once(folder, lambda temporary: _write(temporary, documents, tokenizer))
    facts = StreamFacts(**json.loads((folder / "facts.json").read_text()))
    return TokenStream(np.load(folder / "tokens.npy", mmap_mode="r"), facts)


def token_type(vocab_size: int) -> type[np.unsignedinteger]:
    """Choose the smallest integer type that holds every token."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def encoded(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[list[int], int]]:
    """Yield each document's tokens with the closing end-of-text token, and its bytes; many documents are encoded at a time."""
    chunk: list[str] = []
    size = 0
    for text in documents:
        chunk.append(text)
        size += len(text)
        if size >= CHUNK_BYTES:
            yield from _encode_chunk(chunk, tokenizer)
            chunk, size = [], 0
    yield from _encode_chunk(chunk, tokenizer)


def _encode_chunk(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[list[int], int]]:
    for text, tokens in zip(texts, encode(tokenizer, texts), strict=True):
        yield [*tokens, tokenizer.eos_token_id], text_bytes(text)


def _write(folder: Path, documents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> None:
    dtype = np.dtype(token_type(len(tokenizer)))
    count, tokens, size = 0, 0, 0
    reported = time.monotonic()
    with (folder / "tokens.npy").open("wb") as stream:
        _write_header(stream, dtype, 0)
        stream.write(np.array([tokenizer.eos_token_id], dtype).tobytes())
        for ids, nbytes in encoded(documents, tokenizer):
            stream.write(np.array(ids, dtype).tobytes())
            count, tokens, size = count + 1, tokens + len(ids), size + nbytes
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                log.info("tokenized %.1f MB of text into %d tokens", size / 1e6, tokens)
        stream.seek(0)
        _write_header(stream, dtype, tokens + 1)
    if not count:
        raise DataError("no document in this part of the data; give more text, or another data.valid_fraction")
    (folder / "facts.json").write_text(json.dumps(asdict(StreamFacts(count, tokens, size))))


def _write_header(stream: BinaryIO, dtype: np.dtype, length: int) -> None:
    # numpy pads the header so that a longer shape fits in the same bytes: the length can be written last
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype.str, "fortran_order": False, "shape": (length,)})
