"""AV-Odyssey's questions from their files, with media looked through once and kept by content.

The first time, every medium is read, hashed and looked through; bytes out of parquet go to files named after their SHA-256, those that are
files already stay where they are. What came of it is an index, one line of JSON a question, which all processes and later runs open.
The index appears whole or not at all, and so does every file, so that a build that was killed is simply begun again.
"""

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datamodules.av_integrity import Facts, facts_of
from datamodules.av_media import FRAMES, FRAMES_A_SECOND, Damaged, audio_of, picture_of, video_of
from datamodules.av_parquet import Row, parquet_files, rows_of
from datamodules.av_questions import Kind, Medium, Question, kind_of, mix_of, prompt_text, tags_in
from datamodules.av_tasks import ANSWERS, MIXES, TASKS
from datamodules.cache import build_once
from datamodules.rows import DataError

log = logging.getLogger(__name__)

FORMAT = 2  # part of every key: raise it when what is stored, or how media are judged, changes
REPORT_SECONDS = 5.0
INDEX = "index.jsonl"


@dataclass(frozen=True)
class Kept:
    """A medium in the store: its file, below the store's folder or, where `outside`, below the data's own; no `facts` if damaged."""

    file: str
    digest: str
    facts: Facts | None
    outside: bool = False


@dataclass(frozen=True)
class Entry:
    """A line of the index: a question, its media by tag, and, where it cannot be asked, the reason."""

    id: str
    task: str
    task_id: int
    attribute: str
    text: str
    options: tuple[str, ...]
    answer: str
    media: Mapping[str, Kept]
    reason: str = ""

    def line(self) -> str:
        """Write the entry as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, line: str) -> "Entry":
        """Read what `line` wrote."""
        values: dict[str, Any] = json.loads(line)
        media = {tag: Kept(**{**kept, "facts": kept["facts"] and Facts(**kept["facts"])}) for tag, kept in values["media"].items()}
        return cls(**{**values, "options": tuple(values["options"]), "media": media})


@dataclass(frozen=True)
class Places:
    """Where files are: the store's media and the data's own; and how densely films are looked at."""

    store: Path
    root: Path
    frames: int = FRAMES
    frames_a_second: float = FRAMES_A_SECOND

    def medium(self, tag: str, kept: Kept) -> Medium:
        """Read a medium. Raises OSError if its file is no longer what was looked through, and Damaged where that was damaged."""
        path = (self.root if kept.outside else self.store) / kept.file
        content = path.read_bytes()
        if kept.facts is None:
            raise Damaged(f"{path} cannot be used")
        if len(content) != kept.facts.size:
            raise OSError(f"{path} is not what it was when it was looked through")
        kind = kind_of(tag)
        if kind == "video":
            return video_of(content, self.frames, self.frames_a_second)
        return audio_of(content) if kind == "audio" else picture_of(content)


@dataclass(frozen=True)
class StoredMedia(Mapping[str, Medium]):
    """Media by tag, each read from its file when it is asked for."""

    kept: Mapping[str, Kept]
    places: Places

    def __getitem__(self, tag: str) -> Medium:
        return self.places.medium(tag, self.kept[tag])

    def __iter__(self) -> Iterator[str]:
        return iter(self.kept)

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def digests(self) -> dict[str, str]:
        """Name each medium by its content."""
        return {tag: kept.digest for tag, kept in self.kept.items()}

    @property
    def tokens(self) -> dict[str, float]:
        """Estimate what each medium costs a model."""
        return {tag: kept.facts.tokens if kept.facts else 0.0 for tag, kept in self.kept.items()}


@dataclass(frozen=True)
class StoredQuestions(Sequence[Question]):
    """The questions of an index."""

    entries: Sequence[Entry]
    places: Places

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index):  # noqa: ANN001, ANN204
        """Return question `index`, its media unread."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        e = self.entries[index]
        return Question(e.id, e.task, e.task_id, e.attribute, e.text, e.options, e.answer, StoredMedia(e.media, self.places))

    @property
    def reasons(self) -> dict[int, str]:
        """Say why some questions cannot be asked, by place."""
        return {index: entry.reason for index, entry in enumerate(self.entries) if entry.reason}


def stored_questions(root: str, cache: Path, frames: int = FRAMES, frames_a_second: float = FRAMES_A_SECOND) -> StoredQuestions:
    """Open the questions of a folder; the process that comes first looks through the media, the others wait.

    Raises DataError for what cannot be questions, and for a folder without any.
    """
    top, store = Path(root).expanduser().resolve(), cache.expanduser().resolve() / "av_odyssey"
    files = parquet_files(top)
    index = build_once(store / "sets" / key_of(top, store), lambda folder: _build(folder, files, top, store / "media"))
    with (index / INDEX).open() as lines:
        entries = [Entry.read(line) for line in lines]
    return StoredQuestions(entries, Places(store / "media", top, frames, frames_a_second))


def key_of(top: Path, store: Path) -> str:
    """Name what lies in a folder by the names, sizes and times of its files; the store may lie in it and does not count."""
    digest = hashlib.sha256(str(FORMAT).encode())
    for path in sorted(path for path in top.rglob("*") if not path.is_relative_to(store) and path.is_file()):
        state = path.stat()
        digest.update(repr((path.relative_to(top).as_posix(), state.st_size, state.st_mtime_ns)).encode())
    return digest.hexdigest()[:32]


def _build(folder: Path, files: Sequence[Path], top: Path, media: Path) -> None:
    """Write the index of some parquet files into `folder`, and the media that they hold into the store."""
    keeper, told = Keeper(top, media, folder), time.monotonic()
    seen: dict[str, str] = {}
    with (folder / INDEX).open("w") as index:
        for path in files:
            for row in rows_of(path):
                name = row.question.id
                if name in seen:
                    raise DataError(f"{row.where}: question_id: {name} stands in {seen[name]} already; each set needs a folder of its own")
                seen[name] = row.where
                index.write(keeper.entry(row).line())
                if time.monotonic() - told > REPORT_SECONDS:
                    told = time.monotonic()
                    log.info("looked through the media of %d questions, %.1f GB", len(seen), keeper.size / 1e9)
        index.flush()
        os.fsync(index.fileno())
    if not seen:
        raise DataError(f"data.root: the parquet files in {top} hold no rows")


class Keeper:
    """Looks media through, each content once, and keeps those that are bytes; `temporary` is a folder beside the store's."""

    def __init__(self, top: Path, store: Path, temporary: Path) -> None:
        self.top, self.store, self.temporary = top, store, temporary
        self.known: dict[tuple[Kind, str], Facts | str] = {}  # what came of a content: facts, or the reason why it cannot be used
        self.size = 0  # bytes so far

    def entry(self, row: Row) -> Entry:
        """Keep a question's media; the first that cannot be used is the reason why the question cannot be asked."""
        media: dict[str, Kept] = {}
        reasons: list[str] = []
        shown = dict.fromkeys(tags_in(prompt_text(row.question)))
        for tag in [*row.media, *(tag for tag in shown if tag not in row.media)]:
            media[tag], reason = self.keep(tag, row.media.get(tag))
            if not reason and tag not in shown:
                reason = "is never shown by the text"
            reasons += [f"{tag}: {reason}"] if reason else []
        q = row.question
        return Entry(q.id, q.task, q.task_id, q.attribute, q.text, q.options, q.answer, media, "; ".join(reasons[:1]))

    def keep(self, tag: str, medium: bytes | str | None) -> tuple[Kept, str]:
        """Look a medium through; return where it is, and the reason if it cannot be used."""
        content = medium if isinstance(medium, bytes) else self._read(medium)
        if content is None:
            return Kept(medium if isinstance(medium, str) else "", "missing", None, True), "is not there"
        digest, kind = hashlib.sha256(content).hexdigest(), kind_of(tag)
        if (kind, digest) not in self.known:
            self.size += len(content)
            try:
                self.known[kind, digest] = facts_of(kind, content)
            except Damaged as reason:
                self.known[kind, digest] = str(reason)
        found = self.known[kind, digest]
        if isinstance(medium, str):
            place, outside = medium, True
        else:
            place, outside = f"{digest[:2]}/{digest}", False
            self._write(place, content)
        facts = None if isinstance(found, str) else found
        return Kept(place, digest, facts, outside), found if isinstance(found, str) else ""

    def _read(self, path: str | None) -> bytes | None:
        """Read a file below the data's folder, and no other."""
        if not path or Path(path).is_absolute() or ".." in Path(path).parts or not (self.top / path).is_file():
            return None
        return (self.top / path).read_bytes()

    def _write(self, place: str, content: bytes) -> None:
        target = self.store / place
        if target.is_file() and target.stat().st_size == len(content):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part = self.temporary / "medium.part"
        part.write_bytes(content)
        os.replace(part, target)


def differences(entries: Iterable[Entry]) -> str:
    """Say in one line how a set of questions differs from the published benchmark; nothing of DeafTest, and nothing if it does not."""
    entries = [entry for entry in entries if entry.task_id in TASKS]
    tasks = Counter(entry.task_id for entry in entries)
    mixes = Counter(mix_of(entry.media) for entry in entries)
    told = [f"task {number} has {tasks[number]} questions of {task.questions}" for number, task in TASKS.items()
            if tasks[number] != task.questions]
    golds = Counter(entry.answer for entry in entries)
    told += [f"{golds[letter]} answers are {letter}, of {count}" for letter, count in ANSWERS.items() if golds[letter] != count]
    told += [f"{mixes[mix]} are {mix}, of {MIXES.get(mix, 0)}" for mix in {**MIXES, **mixes} if mixes[mix] != MIXES.get(mix, 0)]
    if not entries or not told:
        return ""
    more = f", and {len(told) - 3} more such differences" if len(told) > 3 else ""
    return f"not the published {sum(MIXES.values())} questions but {len(entries)}: {'; '.join(told[:3])}{more}"
