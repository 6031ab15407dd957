"""Rationales written by a local transformers model, row by row into a file: a run that is killed goes on where it stopped."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from datamodules.rows import DataError
from datamodules.samples import Wording

log = logging.getLogger(__name__)

FORMAT = 1  # part of the key: raise it when the same question is put otherwise
REPORT_SECONDS = 5.0
EDGE_BYTES = 2**16  # of each end of a large file, which stand for the whole


@dataclass(frozen=True)
class Teacher:
    """A model by name or folder, and how it writes; temperature 0 takes the likeliest token each time."""

    name: str
    batch_size: int = 8
    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0

    def write(self, questions: Sequence[str], folder: Path) -> dict[str, str]:
        """Return a rationale for each question, from the file of this teacher in `folder` or written into it now.

        One process writes while the others wait for it. The batches depend on the questions alone, so a run that was killed ends with the
        same rationales as one that was not.
        """
        place = folder / f"{self._key()}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock")):
            written = _read(place)
            batches = [batch for batch in self._batches(questions) if any(question not in written for question in batch)]
            if batches:
                log.info("the teacher %s writes rationales for %d questions into %s", self.name, sum(map(len, batches)), place)
                self._write(batches, written, place)
        return {question: written[question] for question in questions}

    def _batches(self, questions: Sequence[str]) -> list[list[str]]:
        ordered = sorted(dict.fromkeys(questions), key=lambda question: (len(question), question))
        return [ordered[start : start + self.batch_size] for start in range(0, len(ordered), self.batch_size)]

    def _write(self, batches: list[list[str]], written: dict[str, str], place: Path) -> None:
        model = _Model(self.name)
        done, reported = 0, time.monotonic()
        with place.open("a", encoding="utf-8") as file:
            for batch in batches:
                for question, text in zip(batch, self._answers(model, batch), strict=True):
                    if question not in written:
                        written[question] = text
                        file.write(json.dumps({"question": question, "rationale": text}) + "\n")
                        file.flush()
                        os.fsync(file.fileno())
                done += 1
                if time.monotonic() - reported > REPORT_SECONDS:
                    reported = time.monotonic()
                    log.info("the teacher has written %d of %d batches", done, len(batches))

    def _answers(self, model: "_Model", batch: list[str]) -> list[str]:
        """Generate under a seed of the batch's own, and leave the random numbers of the run as they were."""
        seed = hashlib.blake2b(repr((self.seed, batch)).encode(), digest_size=7).digest()
        with torch.random.fork_rng():
            torch.manual_seed(int.from_bytes(seed, "big"))
            return model.answers(batch, self.max_new_tokens, self.temperature)

    def _key(self) -> str:
        """Hash the model, the wording and the way of writing; not the questions, so that later ones are added."""
        place = Path(self.name).expanduser()
        parts = (FORMAT, asdict(self) | {"name": _content(place) if place.is_dir() else self.name})
        return hashlib.blake2b(repr(parts).encode(), digest_size=10).hexdigest()


class _Model:
    """A teacher in memory, on the accelerator if there is one."""

    def __init__(self, name: str) -> None:
        folder = Path(name).expanduser()
        place = str(folder) if folder.is_dir() else name
        try:
            self.is_encoder_decoder = AutoConfig.from_pretrained(place).is_encoder_decoder
            kind: Any = AutoModelForSeq2SeqLM if self.is_encoder_decoder else AutoModelForCausalLM
            self.tokenizer: Any = AutoTokenizer.from_pretrained(place, padding_side="left")
            self.model = kind.from_pretrained(place, dtype="auto")
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(f"data.teacher={name}: cannot be loaded ({reason}); give a model's folder, or its name on the Hub") from None
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    @torch.inference_mode()
    def answers(self, questions: list[str], max_new_tokens: int, temperature: float) -> list[str]:
        """Generate a rationale for each question."""
        chat = self.tokenizer.chat_template is not None
        inputs = self.tokenizer([self._prompt(question) for question in questions], return_tensors="pt", padding=True,
                                add_special_tokens=not chat).to(self.model.device)
        inputs.pop("token_type_ids", None)
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        output = self.model.generate(**inputs, max_new_tokens=max_new_tokens, pad_token_id=self.tokenizer.pad_token_id, **sampling)
        new = output if self.is_encoder_decoder else output[:, inputs["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [text.partition("\nQ:")[0].strip() for text in texts]  # a model without chat may go on with a question of its own

    def _prompt(self, question: str) -> str:
        if self.tokenizer.chat_template is None:
            return Wording("seq2seq" if self.is_encoder_decoder else "causal").prompt(question)
        message = [{"role": "user", "content": f"{question}\nLet's think step by step."}]
        return self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)


def _read(place: Path) -> dict[str, str]:
    """Read the rationales that were written; a last line that a kill cut short is removed."""
    if not place.exists():
        return {}
    content = place.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with place.open("r+b") as file:
            file.truncate(len(whole))
    rows = (json.loads(line) for line in whole.decode().splitlines())
    return {row["question"]: row["rationale"] for row in rows}


def _content(folder: Path) -> str:
    """Hash the files of a model: names, sizes and both ends of each, since weights are large."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        for part in _ends(path):
            digest.update(part)
    return digest.hexdigest()


def _ends(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        yield stream.read(EDGE_BYTES)
        stream.seek(max(path.stat().st_size - EDGE_BYTES, 0))
        yield stream.read(EDGE_BYTES)
