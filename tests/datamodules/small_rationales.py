"""Small questions with rationales for the tests of the data: rows, files, and tokenizers of three families."""

import json
import random
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from datamodules.problems import problems
from datamodules.rationales import Rationale
from datamodules.samples import Wording
from datamodules.tokenization import train_tokenizer

SHARED_RATIONALES = Path(__file__).resolve().parents[3] / "shared" / "data" / "rationales"
WORDS = ["He", "has", "3", "apples", "12.5", "more", "×", "each,", "2+7", "=", "–", "naïve", "漢字", "<b>{x}</b>", "</s>", "<|endoftext|>",
         "$5", "(half)", '"no"', "it's"]

needs_shared_rationales = pytest.mark.skipif(not SHARED_RATIONALES.is_dir(),
                                             reason="the folder shared/data/rationales beside the repository is missing")


def some_rows(count, seed=0, longest=5, split="train"):
    """Make rows of random words, with 1 to `longest` steps."""
    chance = random.Random(seed)

    def words():
        return " ".join(chance.choices(WORDS, k=chance.randint(1, 9)))

    return [Rationale(f"row-{number}", f"{number} {words()}?", tuple(words() + "." for _ in range(chance.randint(1, longest))),
                      str(chance.randint(-50, 5000)), split, "here") for number in range(count)]


def write_rows(path, rows):
    """Write objects (or lines as they are) to a JSON-lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def row(number=0, **changes):
    """A row that is right, but for `changes`; a value of ... leaves the key out."""
    good = {"id": f"q{number}", "question": f"What is {number} and 1?", "rationale": f"{number} + 1 = {number + 1}.",
            "answer": f"{number + 1}", **changes}
    return {key: value for key, value in good.items() if value is not ...}


@cache
def tokenizer_of(family):
    """Train a small tokenizer: GPT-2's family with digits apart, T5's (Unigram), or LLaMA's (BPE on ▁, else bytes, <s> in front)."""
    rows = [*problems({"train": 200}, 4, 0), *some_rows(200)]
    texts = [" ".join(Wording().parts(each)) for each in rows]
    if family == "gpt2":
        return train_tokenizer(texts, 400, for_answers=True)
    if family == "t5":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\n", " ")])
        trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", "<s>", "</s>", *every_byte], show_progress=False,
                                      limit_alphabet=80)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    metaspace = decoders.Metaspace()
    tokenizer.decoder = metaspace if family == "t5" else decoders.Sequence([decoders.ByteFallback(), metaspace])
    tokenizer.train_from_iterator(texts, trainer)
    if family == "t5":
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
