"""Tokenizers: one from the Hub or a folder, or a byte-level BPE trained on the training documents."""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from huggingface_hub import HfApi
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from datamodules.text import DataError

log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
PADDING_TOKEN = "<|padding|>"
TRAINING_BYTES = 100_000_000  # text that a tokenizer is trained on at most: more changes the merges very little
SMALLEST_VOCABULARY = 257  # every byte, and the end of a text


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a local folder or by its name on the Hub; it must have an end-of-text token.

    What the Hub's cache holds is taken from there, without asking the Hub.
    """
    folder = Path(name).expanduser()
    place, local = (str(folder), True) if folder.is_dir() else (name, _in_cache(name))
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=local)
    except (OSError, ValueError, KeyError) as error:
        raise _refusal(name, error) from None
    if tokenizer.eos_token_id is None:
        raise DataError(f"data.tokenizer={name}: has no end-of-text token to put between documents; choose one that has")
    return tokenizer


def _in_cache(name: str) -> bool:
    """Tell whether a tokenizer was fetched before; if not, make sure that the Hub has it: a download would try for a minute."""
    try:
        AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError, KeyError):
        try:
            HfApi().model_info(name, timeout=30)
        except Exception as error:  # the Hub's own errors, and those of whatever network library it uses
            raise _refusal(name, error) from None
        return False
    return True


def vocabulary_here(name: str) -> int | None:
    """Count the tokens of a tokenizer in a folder or in the Hub's cache; None where it is in neither."""
    folder = Path(name).expanduser()
    try:
        return len(AutoTokenizer.from_pretrained(str(folder) if folder.is_dir() else name, local_files_only=True))
    except (OSError, ValueError, KeyError):
        return None


def _refusal(name: str, error: Exception) -> DataError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DataError(f"data.tokenizer={name}: cannot be loaded ({reason}); give a folder, a name on the Hub, or train")


def train_tokenizer(documents: Iterable[str], vocab_size: int, for_answers: bool = False) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE: any text survives encoding and decoding. The same documents give the same tokenizer.

    `for_answers`: each digit is a token, so that a small model can learn to calculate, and there is a token for padding.
    """
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words]) if for_answers else words
    tokenizer.decoder = decoders.ByteLevel()
    special = {"eos_token": END_OF_TEXT, **({"pad_token": PADDING_TOKEN} if for_answers else {})}
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(special.values()), show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(_first_bytes(documents, TRAINING_BYTES), trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        log.warning("the text gives a vocabulary of %d, not of %d as data.vocab_size asks", tokenizer.get_vocab_size(), vocab_size)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


def _first_bytes(documents: Iterable[str], limit: int) -> Iterator[str]:
    size = 0
    for text in documents:
        yield text
        size += len(text)
        if size >= limit:
            return


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Turn texts into tokens; nothing is added, and a special token spelled out in a text is read as plain text."""
    if not texts:
        return []
    backend = plain_backend(tokenizer)
    if backend is None:
        return tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash what decides the tokens of a text."""
    backend = plain_backend(tokenizer)
    content = backend.to_str() if backend is not None else repr((type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())))
    return hashlib.sha256(f"{tokenizer.eos_token_id} {content}".encode()).hexdigest()


def plain_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    """Set the fast tokenizer, if there is one, to whole texts: some files cut or pad every text to the model's length."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
    return backend
