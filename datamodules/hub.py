"""Datasets by name: from the Hugging Face Hub, or from a folder that is laid out like one."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datamodules.rows import DataError, RowFormat
from datamodules.text import Share, file_hash

ROWS_AT_A_TIME = 1000


@dataclass(frozen=True)
class HubDataset:
    """A dataset by its name on the Hub or its folder; nothing is fetched before a split is asked for."""

    name: str
    subset: str | None = None
    revision: str | None = None  # branch, tag or commit on the Hub; None: the newest

    def __str__(self) -> str:
        return f"{self.name} ({self.subset})" if self.subset else self.name

    @cached_property
    def folder(self) -> Path | None:
        path = Path(self.name).expanduser().resolve()
        return path if path.is_dir() else None

    @cached_property
    def commit(self) -> str:
        """Ask the Hub for the commit that `revision` stands for; empty for a folder."""
        from huggingface_hub import HfApi

        if self.folder:
            return ""
        try:
            return HfApi().dataset_info(self.name, revision=self.revision, timeout=30).sha or ""
        except Exception as error:  # the Hub's own errors, and those of whatever network library it uses
            raise self._refusal(self._why(error)) from None

    def _why(self, error: Exception) -> str:
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RevisionNotFoundError

        if isinstance(error, OfflineModeIsEnabled):
            return "no such folder, and HF_HUB_OFFLINE forbids to ask the Hub; unset it, or give local files with data.root=FOLDER"
        if isinstance(error, GatedRepoError):
            return f"asks for an agreement; accept it at huggingface.co/datasets/{self.name} and log in with hf auth login"
        if isinstance(error, RevisionNotFoundError):
            return f"has no revision {self.revision}; leave data.revision out, or give a branch, tag or commit of the dataset"
        if isinstance(error, HFValidationError | HfHubHTTPError):
            return (f"no such folder, and no such dataset on the Hub that you may read ({_first_line(error)}); "
                    "write its name as at huggingface.co/datasets, such as allenai/c4")
        return (f"no such folder, and the Hub cannot be reached ({_first_line(error)}); "
                "check the network, or give local files with data.root=FOLDER")

    @cached_property
    def _builder(self) -> Any:
        from datasets import get_dataset_config_names, load_dataset_builder

        place, revision = (str(self.folder), None) if self.folder else (self.name, self.commit)
        try:
            return load_dataset_builder(place, self.subset, revision=revision)
        except Exception as error:  # readers of any format and the network may be behind this
            reason = _first_line(error)
            if "BuilderConfig" not in reason and "Config name is missing" not in reason:
                raise self._refusal(f"cannot be read ({reason}); give a dataset of parquet, JSON lines or text files") from None
        there_is = f"has no subset {self.subset}" if self.subset else "comes in subsets"
        raise self._refusal(f"{there_is}; set data.subset to one of: {', '.join(get_dataset_config_names(place, revision=revision))}")

    def split(self, name: str, option: str) -> Any:
        """Open a split as a datasets.IterableDataset; `option` is the key to set where there is no such split."""
        found = sorted(map(str, self._builder.config.data_files or ()))
        if name not in found:
            raise self._refusal(f"has no split '{name}'; set {option} to one of: {', '.join(found)}")
        return self._builder.as_streaming_dataset(name)

    def content(self, split: str) -> str:
        """Hash the files of a split: their bytes in a folder, their names and commit on the Hub."""
        digest = hashlib.sha256()
        for path in self._builder.config.data_files[split]:
            digest.update(file_hash(Path(path)) if self.folder else str(path).encode())
        return digest.hexdigest()

    def _refusal(self, what: str) -> DataError:
        return DataError(f"data.hub={self.name}: {what}")


@dataclass(frozen=True)
class HubCorpus:
    """The documents of one split, in the dataset's order; what Corpus is for files."""

    dataset: HubDataset
    split: str
    option: str  # the key that chose the split
    rows: RowFormat
    share: Share

    @property
    def label(self) -> str:
        """Name the split in messages."""
        return f"{self.dataset}, {self.split}"

    def __iter__(self) -> Iterator[str]:
        """Yield documents until a cap is reached; raise DataError at the first bad row."""
        return self.share.first(self._chosen())

    def _chosen(self) -> Iterator[str]:
        rows = 0
        for batch in batches(self.dataset.split(self.split, self.option), ROWS_AT_A_TIME, self.label):
            yield from texts(batch, self.rows, self.share, self.label, rows)
            rows += height(batch)

    def key(self) -> str:
        """Hash everything that decides the documents, but neither the name nor the place of the dataset."""
        self.dataset.split(self.split, self.option)
        return hashlib.sha256(repr((self.dataset.content(self.split), self.rows, self.share)).encode()).hexdigest()


def batches(split: Any, size: int, label: str, before: int = 0) -> Iterator[dict[str, list]]:
    """Read a datasets.IterableDataset as tables of `size` rows; failures of the reader or the network become a DataError.

    Unlike iterating over it, this reads the whole of it in a loader's process, too. `before` counts the rows read earlier.
    """
    try:
        for batch in split.iter(batch_size=size):
            yield batch
            before += height(batch)
    except Exception as error:  # readers of any format and network may be behind this
        raise DataError(f"{label}: cannot be read after row {before} ({_first_line(error)}); "
                        "mend that row or file, or check the network") from None


def texts(batch: dict[str, list], rows: RowFormat, share: Share, label: str, before: int) -> Iterator[str]:
    """Yield the documents of a table that belong to `share` and are not blank; `before` counts the rows above the table."""
    for key in rows.keys:
        if key not in batch:
            raise DataError(f"{label}, row {before + 1}: {rows.missing(key, list(batch))}")
    for number, values in enumerate(zip(*(batch[key] for key in rows.keys)), start=before + 1):
        text = rows.text(dict(zip(rows.keys, values)), f"{label}, row {number}")
        if text.strip() and share.holds(text):
            yield text


def height(batch: dict[str, list]) -> int:
    """Count the rows of a table."""
    return len(next(iter(batch.values())))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
