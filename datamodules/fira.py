"""Data for language-model training: packed blocks of the standard library's source, of local files, or of a Hub dataset."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules.blocks import PackedBlocks, TrainingLoader, TrainingOrder, held_out_loader, place
from datamodules.cache import FORMAT, StreamFacts, TokenStream, build_once, token_stream
from datamodules.hub import HubCorpus, HubDataset
from datamodules.rows import DataError, RowFormat
from datamodules.sources import Splits, expand, folder_splits, standard_library
from datamodules.stream import StreamLoader, TextStream
from datamodules.text import Corpus, Share
from datamodules.tokenization import load_tokenizer, tokenizer_key, train_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FiraDataConfig:
    source: Literal["auto", "stdlib", "files", "hub"] = "auto"
    """where the text is from; auto: files if root or train is set, hub if hub is set, else Python's own standard library"""
    root: str | None = None
    """folder with train.*, valid.* and test.* files (text, JSON lines or parquet), or one file; relative to the current folder"""
    train: list[str] = field(default_factory=list)
    """training files as names or globs, instead of root"""
    valid: list[str] = field(default_factory=list)
    """validation files; none: a share of the training documents is held out"""
    test: list[str] = field(default_factory=list)
    """test files"""
    hub: str | None = None
    """Hugging Face dataset such as allenai/c4, or a folder laid out like one"""
    subset: str | None = None
    """configuration of the Hub dataset, such as en"""
    revision: str | None = None
    """branch, tag or commit of the Hub dataset; None: the newest"""
    train_split: str = "train"
    """split of the Hub dataset to train on"""
    valid_split: str | None = "validation"
    """split of the Hub dataset to validate on; None: a share of the training documents is held out"""
    streaming: bool = True
    """read the Hub dataset while training; false: tokenize its training split into the cache first"""
    shuffle: int = 1000
    """rows of a stream that are shuffled among each other, besides the order of its files; 1: as they come"""
    text_key: str = "text"
    """key or column that holds the text"""
    template: str | None = None
    """a document of several keys, such as "Question: {question} Answer: {answer}"; overrides text_key"""
    unit: Literal["line", "file"] = "line"
    """one document of a plain text file: a line or the whole file"""
    valid_fraction: float = 0.05
    """share of the documents held out where there are no validation files, chosen by hash"""
    max_bytes: int | None = None
    """training text read, in bytes; None: all"""
    valid_bytes: int | None = None
    """held-out text read, in bytes; None: all"""
    valid_documents: int | None = None
    """held-out documents read, the first ones; None: all of files, 10000 of a Hub dataset"""
    tokenizer: str = "train"
    """name on the Hub, a folder, or train: a byte-level BPE trained on the training text"""
    vocab_size: int = 4096
    """tokens of a trained tokenizer; without effect on other tokenizers"""
    block_size: int = 256
    """tokens a sequence"""
    batch_size: int = 16
    """sequences of each process in a batch"""
    stream_epoch: int = 10000
    """batches that count as an epoch where the text is streamed"""
    workers: int = 0
    """processes that prepare training batches, for each training process"""
    cache: str = "~/.cache/fivefold"
    """folder for token files and trained tokenizers"""
    seed: int | None = None
    """order of the training blocks; None: run.seed"""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "valid_bytes", "valid_documents", "block_size", "batch_size", "stream_epoch", "shuffle"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}: must be above 0, not {value}")
        for name in ("workers", "seed"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name}: must not be negative, not {getattr(self, name)}")
        if not 0 < self.valid_fraction < 1:
            raise ValueError(f"valid_fraction: must lie between 0 and 1, not {self.valid_fraction}")
        if not 257 <= self.vocab_size <= 2**20:
            raise ValueError(f"vocab_size: must lie in 257..1048576 (256 bytes and the end of a text), not {self.vocab_size}")
        if self.root and (self.train or self.valid or self.test):
            raise ValueError(f"root: names all files of a folder; leave it out or train, valid and test, not {self.root} with both")
        if (self.valid or self.test) and not self.train:
            raise ValueError("train: must name the training files where valid or test name others, not []")
        if self.hub and (self.root or self.train):
            raise ValueError(f"hub: choose it or local files, not {self.hub} with both")
        needed = {"files": self.root or self.train, "hub": self.hub}.get(self.source, True)
        if not needed:
            raise ValueError(f"source: must go with {'root or train' if self.source == 'files' else 'hub'}, not {self.source} alone")
        RowFormat(self.text_key, self.template)  # refuses a template that cannot be filled

    def without_effect(self) -> dict[str, str]:
        """Name the keys that other tokenizers and other sources read."""
        idle = {} if self.tokenizer == "train" else {"vocab_size": f"tokenizer={self.tokenizer} has its own"}
        source = self.chosen_source
        if source != "hub":
            idle |= dict.fromkeys(("hub", "subset", "revision", "train_split", "valid_split", "streaming"), f"the text is from {source}")
        if source != "files":
            idle |= dict.fromkeys(("root", "train", "valid", "test", "unit"), f"the text is from {source}")
        if source == "stdlib":
            idle |= dict.fromkeys(("text_key", "template"), "the text is from stdlib")
        if self.template is not None:
            idle["text_key"] = "data.template says what a document is"
        if self.streamed:
            idle["max_bytes"] = "the training text is streamed"
        else:
            idle |= dict.fromkeys(("stream_epoch", "shuffle"), "nothing is streamed")
        return idle

    @property
    def streamed(self) -> bool:
        """Whether the training text is read while training."""
        return self.chosen_source == "hub" and self.streaming

    @property
    def chosen_source(self) -> Literal["stdlib", "files", "hub"]:
        """The source that auto stands for."""
        if self.source != "auto":
            return self.source
        if self.root or self.train:
            return "files"
        return "hub" if self.hub else "stdlib"


class FiraData(L.LightningDataModule):
    """Batches of input_ids and labels, both (B, T) int64; labels are already shifted, and -100 where there is nothing to predict.

    Validation keeps every token: the last block is padded. Both splits start with an end-of-text token, so that
    the first token of the text is predicted, too.
    """

    def __init__(self, config: FiraDataConfig) -> None:
        super().__init__()
        self.config = config
        self.cache = Path(config.cache).expanduser()
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._streams: dict[str, TokenStream] = {}
        self._text: TextStream | None = None  # of the training text, where it is not in a token file

    def prepare_data(self) -> None:
        """Train the tokenizer and write the token files: once on a machine, before the other processes look for them."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Open the token files, or write those that are missing; at the stage "export" only the tokenizer is needed.

        Raise DataError if the data cannot be used.
        """
        if self._streams:
            return
        corpora = dict(self._corpora())
        self._tokenizer = self._choose_tokenizer(corpora["train"])
        if stage == "export":
            return
        train = corpora["train"]
        if isinstance(train, HubCorpus) and self.config.streamed:
            self._text = self._streamed(train)
            del corpora["train"]
        for split, corpus in corpora.items():
            self._streams[split] = self._stored(split, corpus)
        if not self._text and self._blocks("train").count == 0:
            raise DataError(f"the training text has {self._streams['train'].facts.tokens} tokens, too few for one block of "
                            f"{self.config.block_size}; lower data.block_size, or give more text")

    def _corpora(self) -> Mapping[str, Corpus | HubCorpus]:
        """Describe the documents of each split; nothing is read yet."""
        config, rows = self.config, RowFormat(self.config.text_key, self.config.template)
        if config.chosen_source == "hub":
            return self._hub_corpora(rows)
        if config.chosen_source == "stdlib":
            root, modules = standard_library()
            shares = zip(("train", "valid"), self._shares(False))
            return {split: Corpus(modules, unit="file", share=share, split_by="name", root=root) for split, share in shares}
        splits = self._splits()
        train, valid = self._shares(bool(splits.valid))
        parts = {"train": (splits.train, train), "valid": (splits.valid or splits.train, valid),
                 "test": (splits.test, replace(valid, part="all"))}
        return {split: Corpus(files, rows, config.unit, share) for split, (files, share) in parts.items() if files}

    def _hub_corpora(self, rows: RowFormat) -> dict[str, HubCorpus]:
        config = self.config
        dataset = HubDataset(config.hub or "", config.subset, config.revision)
        train, valid = self._shares(config.valid_split is not None)
        held_out = (config.valid_split, "data.valid_split") if config.valid_split else (config.train_split, "data.train_split")
        corpora = {"train": HubCorpus(dataset, config.train_split, "data.train_split", rows, train),
                   "valid": HubCorpus(dataset, *held_out, rows, valid)}
        for corpus in corpora.values():
            corpus.dataset.split(corpus.split, corpus.option)  # refuses a wrong name before a tokenizer is trained
        return corpora

    def _shares(self, apart: bool) -> tuple[Share, Share]:
        """Say which documents train and which validate; `apart`: there is a validation text of its own."""
        config = self.config
        documents = config.valid_documents or (10_000 if config.chosen_source == "hub" else None)
        train = Share(max_bytes=None if config.streamed else config.max_bytes)
        valid = Share(max_bytes=config.valid_bytes, max_documents=documents)
        if apart:
            return train, valid
        return replace(train, part="train", fraction=config.valid_fraction), replace(valid, part="valid", fraction=config.valid_fraction)

    def _splits(self) -> Splits:
        config = self.config
        if config.root:
            return folder_splits(config.root)
        return Splits(*(expand(getattr(config, split), split) for split in ("train", "valid", "test")))

    def _streamed(self, corpus: HubCorpus) -> TextStream:
        config = self.config
        names = ["hub", "subset", "train_split", "text_key", "template", "tokenizer", "block_size", "shuffle"]
        names += ["vocab_size"] if config.tokenizer == "train" else []
        names += [] if config.valid_split else ["valid_fraction"]
        identity = {name: getattr(config, name) for name in names} | {"seed": self.seed, "revision": corpus.dataset.commit or None}
        rows = corpus.dataset.split(corpus.split, corpus.option)
        log.info("train: streamed from %s, %d files", corpus.label, rows.num_shards)
        return TextStream(rows, corpus.label, corpus.rows, corpus.share, self.tokenizer, config.block_size, config.shuffle, self.seed,
                          identity)

    def _choose_tokenizer(self, training: Corpus | HubCorpus) -> PreTrainedTokenizerBase:
        if self.config.tokenizer != "train":
            return load_tokenizer(self.config.tokenizer)
        folder = self.cache / "tokenizers" / _key(FORMAT, training.key(), self.config.vocab_size)

        def build(temporary: Path) -> None:
            log.info("training a tokenizer with %d tokens", self.config.vocab_size)
            train_tokenizer(training, self.config.vocab_size).save_pretrained(temporary)

        return AutoTokenizer.from_pretrained(build_once(folder, build))

    def _stored(self, split: str, corpus: Corpus | HubCorpus) -> TokenStream:
        folder = self.cache / "tokens" / _key(FORMAT, corpus.key(), tokenizer_key(self.tokenizer))
        stream = token_stream(folder, corpus, self.tokenizer)
        log.info("%s: %d documents, %.2f MB of text, %d tokens", split, stream.facts.documents, stream.facts.text_bytes / 1e6,
                 stream.facts.tokens)
        return stream

    def _blocks(self, split: str) -> PackedBlocks:
        stream = self._streams[split]
        return PackedBlocks(stream.tokens, self.config.block_size, keep_tail=split != "train", padding_token=self.eos_token_id)

    def train_dataloader(self) -> Any:
        """Batches in a seeded order that a checkpoint restores exactly."""
        rank, world_size = place()
        if self._text:
            return StreamLoader(self._text, self.config.batch_size, self.config.stream_epoch, self.config.workers, rank, world_size)
        blocks = self._blocks("train")
        order = TrainingOrder(len(blocks), self.config.batch_size, self.seed, rank, world_size)
        return TrainingLoader(blocks, order, self.config.workers)

    def val_dataloader(self) -> DataLoader:
        """Every held-out token once, in order."""
        return held_out_loader(self._blocks("valid"), self.config.batch_size, *place())

    def test_dataloader(self) -> DataLoader:
        """Every token of the test files once, in order."""
        if "test" not in self._streams:
            raise DataError("there are no test files; name some with data.test=[...], or put test.* into data.root")
        return held_out_loader(self._blocks("test"), self.config.batch_size, *place())

    @property
    def seed(self) -> int:
        return 1 if self.config.seed is None else self.config.seed

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        assert self._tokenizer is not None, "call setup() first"
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        return len(self.tokenizer)

    @property
    def eos_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def batch_size(self) -> int:
        return self.config.batch_size

    @property
    def block_size(self) -> int:
        return self.config.block_size

    @property
    def facts(self) -> dict[str, StreamFacts]:
        """Documents, tokens and bytes of each split."""
        return {split: stream.facts for split, stream in self._streams.items()}

    @property
    def tokens_per_byte(self) -> float:
        """Held-out tokens for a byte of held-out text: loss in nats a token x tokens_per_byte / ln 2 = bits a byte."""
        return self._streams["valid"].facts.tokens_per_byte

    @property
    def bytes_per_token(self) -> float:
        return 1 / self.tokens_per_byte


def _key(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]
