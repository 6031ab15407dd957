"""Training samples: question, rationale and answer tokenised once as one string, each token knowing the step that it belongs to."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from datamodules.cache import build_once
from datamodules.rationales import Rationale, digest
from datamodules.rows import DataError
from datamodules.steps import VERSION
from datamodules.tokenization import plain_backend, tokenizer_key

FORMAT = f"1 {VERSION}"  # part of every key: raise the first number when what is stored changes
PROMPT, ANSWER = -1, -2  # in place of a step's number
CHECKED = 64  # samples whose prompt is tokenised alone, too

Layout = Literal["causal", "seq2seq"]
Template = Literal["answer_is", "hash"]

_PROMPTS = {"causal": "Q: {}\nA: Let's think step by step.", "seq2seq": "Q: {} A: Let's think step by step."}
_ANSWERS = {"answer_is": "Therefore, the answer is {}", "hash": "#### {}"}


@dataclass(frozen=True)
class Wording:
    """How a row is written: prompt, the steps and the answer sentence with a single space between them.

    No full stop follows the answer: T5 would make one token of the last digit and the stop.
    """

    layout: Layout = "causal"
    template: Template = "answer_is"

    def prompt(self, question: str) -> str:
        """Write what is given at evaluation."""
        return _PROMPTS[self.layout].format(question)

    def parts(self, row: Rationale) -> list[str]:
        """Write the prompt, each step, and the answer sentence."""
        return [self.prompt(row.question), *row.steps, _ANSWERS[self.template].format(row.answer)]


@dataclass(frozen=True)
class Samples:
    """N samples of together L tokens, one behind the other: prompt, steps, answer sentence, end of text.

    An index or a count of given steps may be an array; the results then are, too.
    """

    ids: np.ndarray  # (L,) int32
    steps: np.ndarray  # (L,) int16: PROMPT, the step 0..n-1, or ANSWER
    offsets: np.ndarray  # (N + 1,) int64: where each sample begins
    counts: np.ndarray  # (N,) int64: steps of each sample, n_i
    rows: list[Rationale]
    key: str  # of everything that decides the tokens

    def __len__(self) -> int:
        return len(self.counts)

    def span(self, index: int) -> slice:
        """Return where sample `index` lies in the flat arrays."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def first(self, index: Any, given: Any) -> Any:
        """Return the place in the flat arrays of the first token after `given` steps: of step `given`, or of the answer."""
        return self._edges[self._first_edge[index] + given]

    def active(self, index: Any, given: Any) -> Any:
        """Count the tokens to be learned when the first `given` steps are input: the other steps, the answer and the end of text."""
        return self.offsets[np.asarray(index) + 1] - self.first(index, given)

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return int(np.diff(self.offsets).max(initial=0))

    @cached_property
    def _edges(self) -> np.ndarray:
        """Places where a prompt, a step or an answer begins."""
        changes = self.steps[1:] != self.steps[:-1]
        return np.concatenate([[0], np.flatnonzero(changes) + 1]) if len(self.steps) else np.empty(0, np.int64)

    @cached_property
    def _first_edge(self) -> np.ndarray:
        """For each sample, which edge is the beginning of its first step."""
        return np.cumsum(self.counts + 2) - self.counts - 1

    def check(self) -> None:
        """Assert that every sample is a prompt, its steps in order, and an answer, each of at least one token."""
        assert len(self.ids) == len(self.steps) == self.offsets[-1]
        assert len(self.rows) == len(self.counts) == len(self.offsets) - 1
        expected = [part for count in self.counts for part in (PROMPT, *range(count), ANSWER)]
        assert self.steps[self._edges].tolist() == expected
        assert np.array_equal(self._edges[self._first_edge - 1], self.offsets[:-1])


@dataclass(frozen=True)
class Left:
    """Rows that gave no sample: those above the limit of tokens, and those with a step that shares all its tokens."""

    too_long: int
    entangled: int


def make_samples(folder: Path, rows: Sequence[Rationale], wording: Wording, tokenizer: PreTrainedTokenizerBase,
                 max_tokens: int) -> tuple[Samples, Left]:
    """Open the samples of `rows` stored in a subfolder of `folder`; tokenise them into it if they are not there.

    Raises DataError if no row gives a sample, or if the tokens of a prompt depend on what follows it.
    """
    key = samples_key(rows, wording, tokenizer, max_tokens)
    place = build_once(folder / key, lambda temporary: _write(temporary, rows, wording, tokenizer, max_tokens))
    arrays, facts = np.load(place / "tokens.npz"), json.loads((place / "meta.json").read_text())
    flat = {name: arrays[name] for name in ("ids", "steps", "offsets", "counts")}
    samples = Samples(**flat, rows=[rows[index] for index in arrays["kept"]], key=key)
    samples.check()
    return samples, Left(facts["too_long"], facts["entangled"])


def samples_key(rows: Sequence[Rationale], wording: Wording, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> str:
    """Hash everything that decides the samples."""
    opening = opening_tokens(tokenizer)
    parts = (FORMAT, digest(rows), wording, tokenizer_key(tokenizer), opening, max_tokens)
    return hashlib.blake2b(repr(parts).encode(), digest_size=10).hexdigest()


def opening_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what the tokenizer puts before a text by itself: the beginning-of-text token of LLaMA, nothing for GPT-2 and T5."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("x")["input_ids"][:1] == [bos] else []


def prompt_tokens(questions: Sequence[str], wording: Wording, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Tokenise prompts alone: the tokens with which the samples of the same questions begin."""
    opening = opening_tokens(tokenizer)
    encodings = fast(tokenizer).encode_batch_fast([wording.prompt(question) for question in questions], add_special_tokens=False)
    return [opening + encoding.ids for encoding in encodings]


def fast(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return the tokenizer's backend, which knows where in the text each token lies; raise DataError if there is none."""
    backend = plain_backend(tokenizer)
    if backend is None:
        raise DataError(f"data.tokenizer={tokenizer.name_or_path}: is a slow tokenizer, which does not say where in the text a token lies; "
                        "choose one that has a tokenizer.json")
    return backend


def steps_of_tokens(parts: Sequence[str], begins: np.ndarray) -> np.ndarray:
    """Say to which part each token belongs, 0 for the first: the part of the first character, from its beginning on, that is no space.

    `begins` (T,) holds where each token begins in " ".join(parts).
    """
    text = " ".join(parts)
    visible = np.array([match.start() for match in re.finditer(r"\S", text)])
    starts = np.cumsum([0, *(len(part) + 1 for part in parts[:-1])])
    first = visible[np.minimum(np.searchsorted(visible, begins), len(visible) - 1)]
    return np.searchsorted(starts, first, side="right") - 1


def _tokenise(rows: Sequence[Rationale], wording: Wording, tokenizer: PreTrainedTokenizerBase) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return ids and step numbers of each row."""
    opening, found = opening_tokens(tokenizer), []
    parts = [wording.parts(row) for row in rows]
    encodings = fast(tokenizer).encode_batch([" ".join(part) for part in parts], add_special_tokens=False)
    for part, encoding in zip(parts, encodings, strict=True):
        places = steps_of_tokens(part, np.array([begin for begin, _ in encoding.offsets], np.int64))
        steps = np.where(places == len(part) - 1, ANSWER, places - 1)
        ids = [*opening, *encoding.ids, tokenizer.eos_token_id]
        found.append((np.array(ids, np.int32), np.concatenate([[PROMPT] * len(opening), steps, [ANSWER]]).astype(np.int16)))
    return found


def _write(folder: Path, rows: Sequence[Rationale], wording: Wording, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
    tokenised = _tokenise(rows, wording, tokenizer)
    _check_prompts(tokenised, rows, wording, tokenizer)
    short = [index for index, (ids, _) in enumerate(tokenised) if len(ids) <= max_tokens]
    kept = [index for index in short if _is_whole(tokenised[index][1], len(rows[index].steps))]
    if not kept:
        raise DataError(f"no sample of at most {max_tokens} tokens in {len(rows)} training rows; raise data.max_tokens, or give other rows")
    ids, steps = (np.concatenate([tokenised[index][which] for index in kept]) for which in (0, 1))
    lengths = [len(tokenised[index][0]) for index in kept]
    np.savez(folder / "tokens.npz", ids=ids, steps=steps, offsets=np.cumsum([0, *lengths]), kept=np.array(kept),
             counts=np.array([len(rows[index].steps) for index in kept]))
    facts = {"rows": digest(rows), "layout": wording.layout, "template": wording.template, "tokenizer": tokenizer_key(tokenizer),
             "format": FORMAT, "too_long": len(rows) - len(short), "entangled": len(short) - len(kept)}
    (folder / "meta.json").write_text(json.dumps(facts, indent=1))


def _is_whole(steps: np.ndarray, count: int) -> bool:
    """Tell whether each part has a token of its own; a token that spans two parts can leave the second without."""
    parts = steps[np.flatnonzero(np.diff(steps, prepend=ANSWER))]
    return parts.tolist() == [PROMPT, *range(count), ANSWER]


def _check_prompts(tokenised: list[tuple[np.ndarray, np.ndarray]], rows: Sequence[Rationale], wording: Wording,
                   tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = prompt_tokens([row.question for row in rows[:CHECKED]], wording, tokenizer)
    for (ids, steps), prompt in zip(tokenised, prompts):
        if ids[steps == PROMPT].tolist() != prompt:
            raise DataError(f"data.tokenizer={tokenizer.name_or_path}: the tokens of a prompt change with what follows it, so a student "
                            "would not be asked as it was taught; choose another tokenizer")
