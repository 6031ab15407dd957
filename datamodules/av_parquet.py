"""Questions from AV-Odyssey's parquet files, row by row, in the three layouts in which they are published.

    AV_Odyssey_Bench            media as bytes in image_1 to image_4, audio_1 to audio_4 and video_1
    AV_Odyssey_Bench_LMMs_Eval  an index; media as paths in image_path, audio_path and video_path, and letters before the options
    Deaftest_dataset            as the first, with two options and task numbers past 26

A row that cannot be a question is refused in one line that names file and row; a medium that is missing is left to whoever looks at media.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.av_questions import LETTERS, Question
from datamodules.av_tasks import TASKS
from datamodules.deaftest import FIRST_ID
from datamodules.deaftest import TASKS as DEAFTEST
from datamodules.rows import DataError

ROWS_AT_A_TIME = 4  # of some 6 MB each
TEXT = ("question_id", "question_type_id", "subfield", "question", "options", "answer")
COUNTS = {("img", "image"): 4, ("video", "video"): 1, ("audio", "audio"): 4}
CELLS = {f"{kind}{n}": f"{column}_{n}" for (kind, column), count in COUNTS.items() for n in range(1, count + 1)}  # tag -> column
PATHS = {"img": "image_path", "video": "video_path", "audio": "audio_path"}
LETTERED = re.compile(r"([A-D])[:.)] ?")
NAMED = {"loudness": r"loud", "pitch": r"pitch", "duration": r"duration|longer|lasts", "count": r"count|number of|how many"}


@dataclass(frozen=True)
class Row:
    """A question as its file has it, still without media; those are bytes, or a path below the folder, by tag."""

    where: str
    question: Question
    media: Mapping[str, bytes | str]


def parquet_files(folder: Path) -> list[Path]:
    """List the parquet files of a folder and of those in it. Raises DataError if there is none."""
    if not folder.is_dir():
        raise DataError(f"data.root: {folder} is no folder; it is the one with AV-Odyssey's or DeafTest's parquet files")
    found = sorted(folder.rglob("*.parquet"))
    if not found:
        raise DataError(f"data.root: {folder} holds no parquet file; download AV-Odyssey/AV_Odyssey_Bench or Deaftest_dataset into it")
    return found


def rows_of(path: Path) -> Iterator[Row]:
    """Read the questions of a file, a few rows in memory at a time. Raises DataError at what cannot be one."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            names = file.schema_arrow.names
            columns = _columns(path, names)
            number = 0
            for batch in file.iter_batches(ROWS_AT_A_TIME, columns=columns):
                for place in range(batch.num_rows):
                    number += 1
                    yield row_of(batch.slice(place, 1).to_pylist()[0], f"{path.name}, row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is no whole parquet file ({' '.join(str(error).split())[:200]}); download it again") from None


def _columns(path: Path, names: Sequence[str]) -> list[str]:
    """Choose the columns to read. Raises DataError for one that is missing."""
    media = [column for column in (*PATHS.values(), *CELLS.values()) if column in names]
    needed = [*TEXT, "data_type"] if "audio_path" in media else list(TEXT)
    missing = [column for column in needed if column not in names]
    if not missing and not any(column in media for column in ("audio_path", "audio_1")):
        missing = ["audio_1"]
    if missing:
        raise DataError(f"{path.name}: has no column {missing[0]}; it has {', '.join(names)}")
    return [*needed, *media]


def row_of(cells: Mapping[str, Any], where: str) -> Row:
    """Make a question of a row's cells. Raises DataError."""
    text = {name: _text(cells, name, where) for name in ("question_id", "question", "answer")}
    options = _options(cells["options"], where)
    task_id, task, attribute, count = _task(cells, where)
    if len(options) != count:
        raise DataError(f"{where}: options: {len(options)} instead of {count}, as {task} has")
    answer = text["answer"].strip()
    if answer not in list(LETTERS[:count]):
        raise DataError(f"{where}: answer: is {answer!r} instead of a letter of {LETTERS[:count]}")
    question = Question(text["question_id"], task, task_id, attribute, text["question"], options, answer, {})
    return Row(where, question, _paths(cells, where) if "audio_path" in cells else _cells(cells, where))


def _text(cells: Mapping[str, Any], name: str, where: str) -> str:
    value = cells[name]
    if isinstance(value, int) and name == "question_id":
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {name}: is {_short(value)} instead of text")
    return value


def _options(value: Any, where: str) -> tuple[str, ...]:
    """Return the bare options: letters before them, which the index has, are taken off where all have their own."""
    if not isinstance(value, list) or not all(isinstance(option, str) for option in value):
        raise DataError(f"{where}: options: is {_short(value)} instead of a list of texts")
    found = [LETTERED.match(option) for option in value]
    if all(match and match[1] == letter for match, letter in zip(found, LETTERS)):
        return tuple(option[match.end():] for option, match in zip(value, found) if match)
    return tuple(value)


def _task(cells: Mapping[str, Any], where: str) -> tuple[int, str, str, int]:
    """Return number, name, attribute and options of a row's task; DeafTest's, past 26, are told by their words."""
    try:
        number = int(cells["question_type_id"])
    except (TypeError, ValueError):
        raise DataError(f"{where}: question_type_id: is {_short(cells['question_type_id'])} instead of a number") from None
    if number in TASKS:
        return number, TASKS[number].name, TASKS[number].attribute, 4
    for words in (cells["question"], cells["subfield"]):
        named = [task for task, pattern in NAMED.items() if re.search(pattern, str(words).lower())]
        if number > len(TASKS) and len(named) == 1:
            return FIRST_ID + DEAFTEST.index(named[0]), named[0], "DeafTest", 2
    raise DataError(f"{where}: question_type_id: {number} is none of AV-Odyssey's 1 to {len(TASKS)}, and the words are none of DeafTest's")


def _cells(cells: Mapping[str, Any], where: str) -> dict[str, bytes | str]:
    """Take media out of their cells: bytes, or what the datasets library makes of them."""
    found: dict[str, bytes | str] = {}
    for tag, column in CELLS.items():
        value = cells.get(column)
        if isinstance(value, dict):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if value is None:
            continue
        if not isinstance(value, bytes | str):
            raise DataError(f"{where}: {column}: is {_short(value)} instead of bytes or a path")
        found[tag] = value
    return found


def _paths(cells: Mapping[str, Any], where: str) -> dict[str, bytes | str]:
    """Take paths out of their lists; pictures or a film, as data_type says, and sounds."""
    seen = "img" if "image" in str(cells["data_type"]) else "video"
    found: dict[str, bytes | str] = {}
    for kind in (seen, "audio"):
        value = cells.get(PATHS[kind])
        listed = [value] if isinstance(value, str) else value or []
        if not isinstance(listed, list) or not all(isinstance(path, str) for path in listed):
            raise DataError(f"{where}: {PATHS[kind]}: is {_short(value)} instead of a list of paths")
        found |= {f"{kind}{number}": path for number, path in enumerate(listed, start=1)}
    return found


def _short(value: Any) -> str:
    return "empty" if value is None or value == "" else f"{str(value)[:40]!r} ({type(value).__name__})"
