"""Documents of a text corpus: which files, how each kind is read, and what is said about a row that cannot be used."""

import difflib
import gzip
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")


class DataError(ValueError):
    """Data that the user has to mend; the message is one line and says how."""


@dataclass(frozen=True)
class Corpus:
    """The documents of one split, in a fixed order; iterating yields their texts, never an empty one.

    A document belongs to the held-out share if the hash of its text (or of its file's name) falls below `fraction`:
    the choice does not depend on the order of the files, and equal documents fall on the same side.
    """

    files: tuple[Path, ...]
    text_key: str = "text"
    unit: Literal["line", "file"] = "line"  # what one document of a plain text file is
    part: Literal["all", "train", "valid"] = "all"
    fraction: float = 0.0  # share of the documents that is held out
    split_by: Literal["content", "name"] = "content"
    root: Path | None = None  # names are relative to it; needed for split_by="name"
    max_bytes: int | None = None
    max_documents: int | None = None

    def __iter__(self) -> Iterator[str]:
        """Yield documents until one of the caps is reached; raise DataError at the first bad row."""
        taken_bytes = 0
        for taken, text in enumerate(self._chosen(), start=1):
            yield text
            taken_bytes += text_bytes(text)
            if taken == self.max_documents or (self.max_bytes is not None and taken_bytes >= self.max_bytes):
                return

    def _chosen(self) -> Iterator[str]:
        for path in self.files:
            if self.part != "all" and self.split_by == "name" and not self._belongs(self._name(path)):
                continue
            for text in read_documents(path, self.text_key, self.unit):
                if self.part == "all" or self.split_by == "name" or self._belongs(text):
                    yield text

    def _belongs(self, text: str) -> bool:
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        held_out = int.from_bytes(digest, "big") < self.fraction * 2**64
        return held_out == (self.part == "valid")

    def _name(self, path: Path) -> str:
        assert self.root is not None
        return path.relative_to(self.root).as_posix()

    def key(self) -> str:
        """Hash everything that decides the documents: the content of the files and every option, but not where they lie."""
        options = (self.text_key, self.unit, self.part, self.fraction, self.split_by, self.max_bytes, self.max_documents)
        digest = hashlib.sha256(repr(options).encode())
        for path in self.files:
            digest.update(self._name(path).encode() if self.split_by == "name" else kind_of(path).encode())
            digest.update(file_hash(path))
        return digest.hexdigest()


def text_bytes(text: str) -> int:
    """Count the UTF-8 bytes of a document and one for the end-of-text token (the line feed it stands for)."""
    return len(text.encode()) + 1


def file_hash(path: Path) -> bytes:
    """Hash the content of a file."""
    with open_file(path, DataError(f"{path}: no such file")) as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def open_file(path: Path, missing: DataError) -> io.BufferedReader:
    """Open for reading in binary; raise `missing` if there is no such file."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise missing from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def kind_of(path: Path) -> Literal["text", "json", "parquet"]:
    """Tell by its name how a file is read; a trailing .gz does not count."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix in JSON_SUFFIXES:
        return "json"
    return "parquet" if suffix == ".parquet" else "text"


def read_documents(path: Path, text_key: str = "text", unit: Literal["line", "file"] = "line") -> Iterator[str]:
    """Yield the documents of one file that are not blank; raise DataError if there is none."""
    kind = kind_of(path)
    if kind == "parquet":
        texts = _parquet_rows(path, text_key)
    elif kind == "json":
        texts = _json_rows(path, text_key)
    else:
        texts = (text for _, text in _lines(path)) if unit == "line" else iter([_whole(path)])
    empty = True
    for text in texts:
        if text.strip():
            empty = False
            yield text
    if empty:
        raise DataError(f"{path}: holds no text; leave it out, or check that it was written to the end")


def _decode(raw: bytes, where: str, offset: int) -> str:
    """Decode UTF-8; `offset` is where `raw` starts in the file."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {offset + error.start} of the file (0x{raw[error.start]:02x}) is not UTF-8; "
                        "save the file as UTF-8, for instance with iconv -f latin1 -t utf-8") from None


def _raw_lines(path: Path) -> Iterator[bytes]:
    with open_file(path, DataError(f"{path}: no such file")) as stream:
        try:
            yield from gzip.GzipFile(fileobj=stream) if path.name.endswith(".gz") else stream
        except (gzip.BadGzipFile, EOFError) as error:
            raise DataError(f"{path}: is not a whole gzip file ({error}); fetch it again") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line numbers (from 1) and lines without their end; a byte-order mark is dropped."""
    offset = 0
    for number, raw in enumerate(_raw_lines(path), start=1):
        text = _decode(raw, f"{path}, line {number}", offset)
        offset += len(raw)
        yield number, (text.removeprefix("\ufeff") if number == 1 else text).rstrip("\r\n")


def _whole(path: Path) -> str:
    return _decode(b"".join(_raw_lines(path)), str(path), 0).removeprefix("\ufeff")


def _json_rows(path: Path, text_key: str) -> Iterator[str]:
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not valid JSON ({error.msg} at column {error.colno}); "
                            f'write one object a line, such as {{"{text_key}": "..."}}') from None
        yield text_of(row, text_key, where)


def text_of(row: Any, text_key: str, where: str) -> str:
    """Take the text out of one row; `where` names the row in the message of a DataError."""
    if not isinstance(row, dict):
        raise DataError(f'{where}: a {type(row).__name__} instead of an object; write one object a line, such as {{"{text_key}": "..."}}')
    if text_key not in row:
        raise DataError(f"{where}: {missing_key(text_key, list(row))}")
    text = row[text_key]
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        raise DataError(f"{where}: '{text_key}' is {kind} instead of a string; write the text in quotes, or leave the row out")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: '{text_key}' has half of a surrogate pair at character {error.start}; "
                        "write the character itself in UTF-8") from None
    return text


def missing_key(text_key: str, keys: list[str]) -> str:
    """Say which key to ask for instead of one that rows do not have."""
    near = difflib.get_close_matches(text_key, keys, n=1, cutoff=0.5) or (keys if len(keys) == 1 else [])
    hint = f"set data.text_key={near[0]}" if near else f"set data.text_key to one of: {', '.join(sorted(keys)) or '(no keys)'}"
    return f"no key '{text_key}'; {hint}"


def _parquet_rows(path: Path, text_key: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({str(error).splitlines()[0]}); rename it if it is text") from None
    if text_key not in table.schema_arrow.names:
        raise DataError(f"{path}: {missing_key(text_key, table.schema_arrow.names)}")
    number = 0
    for batch in table.iter_batches(batch_size=1024, columns=[text_key]):
        for text in batch.column(0).to_pylist():
            number += 1
            yield text_of({text_key: text}, text_key, f"{path}, row {number}")
