"""Data for chain-of-thought distillation: questions with rationales, taught by learned token weights and a progressive curriculum."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules.blocks import Batch, place
from datamodules.cache import build_once
from datamodules.collation import Form, FullBatches, Prompts, TrainingBatches, full_batches, loader_of, shared_out
from datamodules.curriculum import Curriculum, CurriculumLoader, CurriculumOrder, Normaliser
from datamodules.problems import problems
from datamodules.question_sets import Copy, file_rows, folder_rows, hub_rows
from datamodules.rationales import AnswerKind, Rationale, RowCheck, Sifted, digest, rewritten, set_aside
from datamodules.rows import DataError
from datamodules.samples import Left, Samples, Wording, make_samples, prompt_tokens
from datamodules.steps import plain_symbols
from datamodules.teacher import Teacher
from datamodules.tokenization import load_tokenizer, train_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KpodDataConfig:
    source: Literal["auto", "problems", "files", "hub"] = "auto"
    """where the rows are from; auto: files if root or train is set, hub if hub is set, else problems made on the spot"""
    dataset: str = "gsm8k"
    """name of the file in root, without .jsonl; of the Hub's sets: gsm8k, svamp, asdiv or commonsenseqa"""
    root: str | None = None
    """folder with DATASET.jsonl (question, rationale, answer[, id, split, split_kpod, source]), or one such file"""
    train: list[str] = field(default_factory=list)
    """training files as names or globs, instead of root"""
    valid: list[str] = field(default_factory=list)
    """validation files; none: a share of the training rows is held out"""
    test: list[str] = field(default_factory=list)
    """test files"""
    hub: str | None = None
    """name of another copy of the data set on the Hub, or a folder laid out like it; with source=hub None: the original"""
    subset: str | None = None
    """configuration of a copy; without effect on the original"""
    revision: str | None = None
    """branch, tag or commit of the data set on the Hub; None: the newest"""
    answers: Literal["auto", "number", "letter", "text"] = "auto"
    """what an answer must be; auto: a letter in commonsenseqa, else a number"""
    held_out_share: float = 0.1
    """share of the training rows held out where a split is missing, chosen by a seeded hash of the question"""
    split: Literal["valid", "test"] = "valid"
    """rows that validation and evaluation ask"""
    eval_questions: int | None = None
    """questions asked at each validation, the first ones; None: all"""
    max_bad: float = 0.01
    """share of rows that may be unusable before the run is refused; they are listed in the cache"""
    teacher: str | None = None
    """hub name or folder of a language model that writes the rationales of training rows without one; None: such rows are left out"""
    teacher_rewrites: bool = False
    """let the teacher write the rationales of all training rows"""
    teacher_batch_size: int = 8
    """questions that the teacher answers at a time"""
    teacher_max_new_tokens: int = 256
    """tokens of a teacher's rationale at most"""
    teacher_temperature: float = 0.0
    """of the teacher's sampling; 0: the likeliest token each time"""
    filter_incorrect: bool = False
    """leave out training rows whose rationale does not reach the answer, by the row's teacher_correct or its last number"""
    splitter: Literal["sentence", "dot"] = "sentence"
    """where a step ends: at a sentence or line; or literally at every full stop, as the paper has it, even inside a number"""
    max_steps: int | None = 20
    """steps of a rationale; the shortest neighbours of longer ones are merged; None: no limit"""
    symbols: Literal["auto", "keep", "plain"] = "auto"
    """× ÷ − as they are, or as * / -; auto: plain if the tokenizer does not know them"""
    layout: Literal["causal", "seq2seq"] = "causal"
    """of the batches: for a decoder-only student, or for an encoder-decoder one (T5)"""
    prefix_placement: Literal["encoder", "decoder"] = "encoder"
    """where an encoder-decoder student reads the given steps"""
    template: Literal["answer_is", "hash"] = "answer_is"
    """end of a rationale: Therefore, the answer is A; or #### A, as strict lm-eval wants it"""
    tokenizer: str = "train"
    """name on the Hub, a folder, or train: a byte-level BPE with single digits, trained on the training rows"""
    vocab_size: int = 384
    """tokens of a trained tokenizer; without effect on other tokenizers"""
    max_tokens: int = 1024
    """tokens of a training sample; longer ones are left out and counted"""
    batch_size: int = 4
    """samples of each process in a batch"""
    eval_batch_size: int = 32
    """questions of each process that are answered at a time"""
    problems: int = 4000
    """problems made for training"""
    held_out_problems: int = 500
    """problems made for validation, and as many for the test"""
    problem_steps: int = 4
    """steps of the longest problem"""
    workers: int = 0
    """processes that prepare training batches, for each training process"""
    cache: str = "~/.cache/fivefold"
    """folder for samples, trained tokenizers and everything that the phases make"""
    seed: int | None = None
    """order of the training samples, splits by hash and made problems; None: run.seed"""

    def __post_init__(self) -> None:
        for name in ("eval_questions", "max_steps", "batch_size", "eval_batch_size", "problems", "held_out_problems", "problem_steps",
                     "teacher_batch_size", "teacher_max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}: must be above 0, not {value}")
        for name in ("workers", "seed"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name}: must not be negative, not {getattr(self, name)}")
        if not 0 < self.held_out_share < 0.5:
            raise ValueError(f"held_out_share: must lie between 0 and 0.5, not {self.held_out_share}")
        if self.teacher_temperature < 0:
            raise ValueError(f"teacher_temperature: must not be negative, not {self.teacher_temperature}")
        if self.teacher_rewrites and not self.teacher:
            raise ValueError("teacher: must name a model where teacher_rewrites is true, not None")
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"max_bad: must lie in 0..1, not {self.max_bad}")
        if not 258 <= self.vocab_size <= 2**20:
            raise ValueError(f"vocab_size: must lie in 258..1048576 (256 bytes, end of text and padding), not {self.vocab_size}")
        if self.max_tokens < 8:
            raise ValueError(f"max_tokens: must be at least 8, not {self.max_tokens}")
        if self.root and (self.train or self.valid or self.test):
            raise ValueError(f"root: names all files of a folder; leave it out or train, valid and test, not {self.root} with both")
        if (self.valid or self.test) and not self.train:
            raise ValueError("train: must name the training files where valid or test name others, not []")
        if self.hub and (self.root or self.train):
            raise ValueError(f"hub: choose it or local files, not {self.hub} with both")
        if self.source == "files" and not (self.root or self.train):
            raise ValueError("source: must go with root or train, not files alone")

    def without_effect(self) -> dict[str, str]:
        """Name the keys that other sources, tokenizers and students read."""
        idle = {} if self.tokenizer == "train" else {"vocab_size": f"tokenizer={self.tokenizer} has its own"}
        source = self.chosen_source
        read = {"problems": ("problems", "held_out_problems", "problem_steps"), "hub": ("hub", "subset", "revision"),
                "files": ("root", "train", "valid", "test", "held_out_share")}
        for name, keys in read.items():
            idle |= dict.fromkeys(keys, f"the rows are from {source}") if name != source else {}
        if source == "problems":
            idle |= dict.fromkeys(("dataset", "answers", "max_bad"), "the rows are made")
        if source == "problems" and not self.teacher_rewrites:
            idle |= dict.fromkeys(("splitter", "max_steps", "filter_incorrect", "teacher"), "the rows are made with rationales")
        if not self.teacher:
            idle |= dict.fromkeys(("teacher_batch_size", "teacher_max_new_tokens", "teacher_temperature"), "there is no data.teacher")
        if self.train:
            idle["dataset"] = "data.train names the files"
        if self.layout == "causal":
            idle["prefix_placement"] = "a decoder-only student reads the given steps before the others"
        return idle

    @property
    def chosen_source(self) -> Literal["problems", "files", "hub"]:
        """The source that auto stands for."""
        if self.source != "auto":
            return self.source
        if self.root or self.train:
            return "files"
        return "hub" if self.hub else "problems"


class KpodData(L.LightningDataModule):
    """Batches for distillation and for answering held-out questions; their keys and shapes are those of datamodules.collation.

    Until `teach` is called, all weights are 1 and nothing is given: plain training on rationales.
    """

    def __init__(self, config: KpodDataConfig) -> None:
        super().__init__()
        self.config = config
        self.cache = Path(config.cache).expanduser()
        self.held_out: list[Rationale] = []
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._curriculum: Curriculum | None = None
        self._answered: Curriculum | None = None  # the held-out rows that have a rationale
        self._prompts: list[list[int]] = []  # of the held-out rows

    def prepare_data(self) -> None:
        """Read the rows, train the tokenizer and tokenise: once on a machine, before the other processes look for what it writes."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Read the rows and open the samples; at the stage "export" only the tokenizer is needed.

        Raise DataError if the data cannot be used.
        """
        if self._curriculum:
            return
        rows = self._usable(self._rows())
        train = [row for row in rows if row.split == "train" and row.steps]
        if not train:
            raise DataError("no training row has a rationale; give rationales, or let a model write them: data.teacher=FOLDER")
        self._tokenizer = self._choose_tokenizer(train)
        if stage == "export":
            return
        if self._plain:
            rows, train = rewritten(rows, plain_symbols), rewritten(train, plain_symbols)
        samples, left = self._samples(train)
        self._curriculum = Curriculum(samples)
        _report_training(samples, left, sum(row.split == "train" for row in rows) - len(train))
        self._hold_out(rows)

    def _rows(self) -> list[Rationale]:
        """Read all rows; bad ones are set aside."""
        config, source = self.config, self.config.chosen_source
        if source == "problems":
            counts = {"train": config.problems, "valid": config.held_out_problems, "test": config.held_out_problems}
            return problems(counts, config.problem_steps, self.seed)
        if source == "hub":
            rows, bad = hub_rows(config.dataset, Copy(config.hub, config.subset, config.revision), self._check, self.seed)
        elif config.root:
            rows, bad = folder_rows(config.root, config.dataset, self._check, config.held_out_share, self.seed)
        else:
            files = {split: getattr(config, split) for split in ("train", "valid", "test")}
            rows, bad = file_rows(files, self._check, config.held_out_share, self.seed)
        set_aside(Sifted(rows, bad), self.cache / "kpod" / "quarantine", config.max_bad)
        return rows

    def _usable(self, rows: list[Rationale]) -> list[Rationale]:
        """Let the teacher write what is missing, and leave out wrong rationales if so asked."""
        config = self.config
        if config.teacher:
            asked = [row.split == "train" and (config.teacher_rewrites or not row.steps) for row in rows]
            teacher = Teacher(config.teacher, config.teacher_batch_size, config.teacher_max_new_tokens, config.teacher_temperature,
                              self.seed)
            texts = teacher.write([row.question for row, wanted in zip(rows, asked) if wanted], self.cache / "kpod" / "teacher")
            rows = [self._check.taught(row, texts[row.question], teacher.name) if wanted else row for row, wanted in zip(rows, asked)]
        return _correct_ones(rows) if config.filter_incorrect else rows

    @property
    def _check(self) -> RowCheck:
        return RowCheck(self.answer_kind, self.config.splitter, self.config.max_steps)

    def _choose_tokenizer(self, train: list[Rationale]) -> PreTrainedTokenizerBase:
        config = self.config
        if config.tokenizer != "train":
            return load_tokenizer(config.tokenizer)
        key = hashlib.blake2b(repr(("1", digest(train), self.wording, config.vocab_size)).encode(), digest_size=10).hexdigest()

        def build(temporary: Path) -> None:
            log.info("training a tokenizer with %d tokens", config.vocab_size)
            texts = (" ".join(self.wording.parts(row)) for row in train)
            train_tokenizer(texts, config.vocab_size, for_answers=True).save_pretrained(temporary)

        return AutoTokenizer.from_pretrained(build_once(self.cache / "kpod" / "tokenizers" / key, build))

    @property
    def _plain(self) -> bool:
        """Tell whether × ÷ − are written as * / -."""
        if self.config.symbols != "auto":
            return self.config.symbols == "plain"
        unknown = self.tokenizer.unk_token_id
        return unknown is not None and unknown in self.tokenizer("3 × 4 ÷ 2 − 1", add_special_tokens=False)["input_ids"]

    def _samples(self, rows: Sequence[Rationale]) -> tuple[Samples, Left]:
        return make_samples(self.cache / "kpod" / "samples", rows, self.wording, self.tokenizer, self.config.max_tokens)

    def _hold_out(self, rows: list[Rationale]) -> None:
        split = self.config.split
        self.held_out = [row for row in rows if row.split == split][: self.config.eval_questions]
        if not self.held_out:
            raise DataError(f"data.split={split}: there is no such row; give some, or set data.split to "
                            f"{'valid' if split == 'test' else 'test'}")
        self._prompts = prompt_tokens([row.question for row in self.held_out], self.wording, self.tokenizer)
        with_rationale = [row for row in self.held_out if row.steps]
        if with_rationale:
            self._answered = Curriculum(self._samples(with_rationale)[0])
        log.info("%s: %d questions, %d with a rationale", split, len(self.held_out), len(with_rationale))

    def teach(self, weights: np.ndarray | None, table: np.ndarray | None, normaliser: Normaliser = "tokens") -> None:
        """Train with `weights` (L,) of the tokens and a `table` (T + 1, N) of given steps from here on; see Curriculum."""
        self._curriculum = Curriculum(self.samples, weights, table, normaliser)

    def train_dataloader(self) -> Any:
        """Batches in a seeded order that a checkpoint restores exactly."""
        order = CurriculumOrder(self.curriculum, self.config.batch_size, self.seed, *place(), self.accumulate, self._epoch_batches)
        return CurriculumLoader(TrainingBatches(self.curriculum, self.form), order, self.config.workers)

    def val_dataloader(self) -> list[DataLoader]:
        """All held-out questions for generation; then, if any has a rationale, those for the loss of the whole rationale.

        Rows of both are sorted by length; filler rows have index -1.
        """
        size = self.config.eval_batch_size
        loaders = [loader_of(Prompts(self._prompts, self.form), shared_out([len(p) for p in self._prompts], size, *place()))]
        if self._answered:
            batches = FullBatches(TrainingBatches(self._answered, self.form))
            loaders.append(loader_of(batches, shared_out(np.diff(self._answered.samples.offsets), size, *place())))
        return loaders

    def full_batches(self, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        """Yield batches of exactly these training samples in their order, with nothing given."""
        return full_batches(FullBatches(TrainingBatches(Curriculum(self.samples), self.form)), indices, batch_size)

    @property
    def accumulate(self) -> int:
        """Batches that make one step of the optimizer."""
        return getattr(self.trainer, "accumulate_grad_batches", 1)

    @property
    def _epoch_batches(self) -> int | None:
        """Batches after which the trainer ends an epoch; None: after all."""
        limit = getattr(self.trainer, "limit_train_batches", None)
        if limit is None or limit == 1.0:
            return None
        batches = len(self.samples) // (self.config.batch_size * place()[1])
        return limit if isinstance(limit, int) else int(batches * limit)

    @property
    def curriculum(self) -> Curriculum:
        """What training is taught."""
        assert self._curriculum is not None, "call setup() first"
        return self._curriculum

    @property
    def samples(self) -> Samples:
        """The training samples."""
        return self.curriculum.samples

    @property
    def wording(self) -> Wording:
        """How rows are written."""
        return Wording(self.config.layout, self.config.template)

    @property
    def form(self) -> Form:
        """How sequences become tensors."""
        return Form(self.config.layout, self.eos_token_id, self.pad_token_id, self.config.prefix_placement)

    @property
    def answer_kind(self) -> AnswerKind:
        """What an answer is: a number, the letter of an option, or any text."""
        if self.config.answers != "auto":
            return self.config.answers
        return "letter" if self.config.dataset == "commonsenseqa" and self.config.chosen_source != "problems" else "number"

    @property
    def seq2seq(self) -> bool:
        return self.config.layout == "seq2seq"

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
    def pad_token_id(self) -> int:
        """The padding token, or the end of text where there is none: the masks tell padding from text."""
        pad = self.tokenizer.pad_token_id
        return self.eos_token_id if pad is None else pad

    @property
    def batch_size(self) -> int:
        return self.config.batch_size

    @property
    def block_size(self) -> int:
        """Tokens of the longest sample or held-out question."""
        answered = self._answered.samples.longest if self._answered else 0
        return max(self.samples.longest, answered, *map(len, self._prompts))


def _correct_ones(rows: list[Rationale]) -> list[Rationale]:
    """Leave out training rows whose rationale is known to be wrong."""
    kept = [row for row in rows if row.split != "train" or row.correct is not False]
    log.info("%d training rows are left out, whose rationale does not reach the answer", len(rows) - len(kept))
    return kept


def _report_training(samples: Samples, left: Left, without: int) -> None:
    log.info("train: %d samples, %.2f steps on average and %d at most, %d tokens, %d in the longest", len(samples),
             samples.counts.mean(), samples.counts.max(), len(samples.ids), samples.longest)
    reasons = {"without a rationale": without, "above data.max_tokens": left.too_long, "with a step without a token of its own":
               left.entangled}
    if told := ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count):
        log.warning("training rows left out: %s", told)
