"""Documents of a text corpus: which files, how each kind is read, and what is said about a row that cannot be used."""

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datamodules.rows import DataError, RowFormat

__all__ = ["Corpus", "DataError", "Share", "file_hash", "kind_of", "open_file", "read_documents", "text_bytes"]

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class Share:
    """Which documents of a text are taken: all or one side of a split by hash, and of these the first up to a cap.

    A document is held out if its hash falls below `fraction`: the choice does not depend on the order of the documents,
    and equal documents fall on the same side.
    """

    part: Literal["all", "train", "valid"] = "all"
    fraction: float = 0.0  # share of the documents that is held out
    max_bytes: int | None = None
    max_documents: int | None = None

    def holds(self, text: str) -> bool:
        """Tell by its hash whether a text (or a name) is on this side of the split."""
        if self.part == "all":
            return True
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        held_out = int.from_bytes(digest, "big") < self.fraction * 2**64
        return held_out == (self.part == "valid")

    def first(self, documents: Iterable[str]) -> Iterator[str]:
        """Yield documents until one of the caps is reached; the document that reaches max_bytes is the last."""
        taken_bytes = 0
        for taken, text in enumerate(documents, start=1):
            yield text
            taken_bytes += text_bytes(text)
            if taken == self.max_documents or (self.max_bytes is not None and taken_bytes >= self.max_bytes):
                return


@dataclass(frozen=True)
class Corpus:
    """The documents of one split, in a fixed order; iterating yields their texts, never an empty one."""

    files: tuple[Path, ...]
    rows: RowFormat = field(default_factory=RowFormat)
    unit: Literal["line", "file"] = "line"  # what one document of a plain text file is
    share: Share = field(default_factory=Share)
    split_by: Literal["content", "name"] = "content"  # what of a document is hashed to split
    root: Path | None = None  # names are relative to it; needed for split_by="name"

    def __iter__(self) -> Iterator[str]:
        """Yield documents until a cap is reached; raise DataError at the first bad row."""
        return self.share.first(self._chosen())

    def _chosen(self) -> Iterator[str]:
        for path in self.files:
            if self.split_by == "content":
                yield from (text for text in read_documents(path, self.rows, self.unit) if self.share.holds(text))
            elif self.share.holds(self._name(path)):
                yield from read_documents(path, self.rows, self.unit)

    def _name(self, path: Path) -> str:
        assert self.root is not None
        return path.relative_to(self.root).as_posix()

    def key(self) -> str:
        """Hash everything that decides the documents: the content of the files and every option, but not where they lie."""
        digest = hashlib.sha256(repr((self.rows, self.unit, self.share, self.split_by)).encode())
        for path in self.files:
            kind = f"{kind_of(path)} {path.suffix == '.gz'}"
            digest.update(self._name(path).encode() if self.split_by == "name" else kind.encode())
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


def read_documents(path: Path, rows: RowFormat, unit: Literal["line", "file"] = "line") -> Iterator[str]:
    """Yield the documents of one file that are not blank; raise DataError if there is none."""
    kind = kind_of(path)
    if kind == "parquet":
        texts = _parquet_rows(path, rows)
    elif kind == "json":
        texts = _json_rows(path, rows)
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
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
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


def _json_rows(path: Path, rows: RowFormat) -> Iterator[str]:
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not valid JSON ({error.msg} at column {error.colno}); "
                            f"write one object a line, such as {rows.example}") from None
        yield rows.text(row, where)


def _parquet_rows(path: Path, rows: RowFormat) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(path)
        for key in rows.keys:
            if key not in table.schema_arrow.names:
                raise DataError(f"{path}: {rows.missing(key, table.schema_arrow.names)}")
        for batch in table.iter_batches(batch_size=1024, columns=list(rows.keys)):
            for values in zip(*(batch.column(key) for key in rows.keys)):
                number += 1
                yield rows.text(dict(zip(rows.keys, (value.as_py() for value in values))), f"{path}, row {number}")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}, row {number}: is not UTF-8; write the column as UTF-8 text") from None
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a whole parquet file, read up to row {number} ({reason}); "
                        "fetch it again, or rename it if it is text") from None
