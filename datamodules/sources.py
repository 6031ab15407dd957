"""Find the files of a corpus: a folder with train, valid and test files, globs, or Python's own standard library."""

import glob
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from datamodules.text import DataError

SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}
TEXT_SUFFIXES = (".txt", ".jsonl", ".ndjson", ".json", ".parquet")
NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3", "idlelib"}


@dataclass(frozen=True)
class Splits:
    """Files of each split; `valid` is empty where a share of the training documents is to be held out."""

    train: tuple[Path, ...]
    valid: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        for held_out in (self.valid, self.test):
            if shared := sorted(set(self.train) & set(held_out)):
                raise DataError(f"{shared[0]}: is both a training and a held-out file; narrow data.train, data.valid or data.test")


def expand(patterns: list[str], key: str) -> tuple[Path, ...]:
    """List the files that match globs (** goes into sub-folders), sorted; raise DataError for a pattern without a match."""
    found: set[Path] = set()
    for pattern in patterns:
        matches = [Path(name).resolve() for name in glob.glob(str(Path(pattern).expanduser()), recursive=True)]
        files = [path for path in matches if path.is_file()]
        if not files:
            raise DataError(f"{pattern}: no such file; data.{key} takes file names or globs, relative to {Path.cwd()}")
        found.update(files)
    return tuple(sorted(found))


def folder_splits(root: str) -> Splits:
    """Sort the files of a folder by name into train.*, valid.* and test.*; a folder without any of these is all training.

    A single file instead of a folder is all training, too. Sub-folders are not entered: give globs for those.
    """
    folder = Path(root).expanduser().resolve()
    if folder.is_file():
        return Splits((folder,))
    if not folder.is_dir():
        raise DataError(f"{root}: no such folder; data.root is a folder with train.* and valid.* files, relative to {Path.cwd()}")
    files = sorted(path for path in folder.iterdir() if path.is_file() and _is_text(path))
    named = {split: tuple(path for path in files if path.name.split(".")[0] in names) for split, names in SPLIT_NAMES.items()}
    if not files:
        raise DataError(f"{root}: no text in this folder; expected files such as train.txt, train.jsonl or train.parquet")
    if not any(named.values()):
        return Splits(tuple(files))
    if not named["train"]:
        raise DataError(f"{root}: {files[0].name} but no train.* file; name the training files with data.train=[...]")
    return Splits(**named)


def _is_text(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith(TEXT_SUFFIXES)


def standard_library() -> tuple[Path, tuple[Path, ...]]:
    """List the modules of the running Python's standard library, without its tests; return their folder as well."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(root.rglob("*.py")) if not NOT_LIBRARY.intersection(path.relative_to(root).parts)]
    files = [path for path in files if _has_utf8_text(path)]
    if not files:
        raise DataError(f"{root}: this Python comes without the source of its library; give text with data.root=FOLDER")
    return root, tuple(files)


def _has_utf8_text(path: Path) -> bool:
    try:
        return bool(path.read_text(encoding="utf-8").strip())
    except (UnicodeDecodeError, OSError):
        return False
