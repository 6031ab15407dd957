"""The words of the small model: a closed vocabulary of what DeafTest asks and answers, and prompts with places for sounds."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from datamodules.av_questions import Question

SPECIAL = ("<pad>", "<sound>", "<answer>", "<end>")
PAD, SOUND, ANSWER, END = range(len(SPECIAL))
SENTENCES = ("how many sounds are there in ?", "listen to and .", "which audio is louder higher in pitch longer ?",
             "the first second audio", "A B C D :", "3 4 5 6 7 8")
PLAIN = [word for sentence in SENTENCES for word in sentence.split()]
VOCABULARY = (*SPECIAL, *dict.fromkeys(PLAIN))
NUMBER = {word: number for number, word in enumerate(VOCABULARY)}
PIECES = re.compile(r"\[audio[0-9]+\]|[A-Za-z]+|[0-9]+|[^\sA-Za-z0-9]")


def numbers_of(text: str) -> list[int]:
    """Turn a text into word numbers, a sound's tag into SOUND. Raises ValueError for a word that the model does not know."""
    found = []
    for piece in PIECES.findall(text):
        word = piece if len(piece) == 1 else piece.lower()
        if piece.startswith("[audio"):
            found.append(SOUND)
        elif word in NUMBER:
            found.append(NUMBER[word])
        else:
            raise ValueError(f"the small model knows only the words of DeafTest, not {piece}")
    return found


def prompt_of(question: Question) -> list[int]:
    """Write a question and its options, and a mark behind which the answer comes."""
    options = [f"{letter} : {option}" for letter, option in zip(question.letters, question.options, strict=True)]
    return [*numbers_of(" ".join([question.text, *options])), ANSWER]


def reply_of(question: Question, content: bool) -> list[int]:
    """Write the right answer: the word that tells the options apart and then the letter, or the letter alone."""
    option = question.options[question.letters.index(question.answer)]
    word = [numbers_of(option)[-2] if option.startswith("the ") else numbers_of(option)[0]] if content else []
    return [*word, NUMBER[question.answer], END]


def text_of(numbers: Sequence[int]) -> str:
    """Write words up to the end mark."""
    words = list(numbers)
    words = words[: words.index(END)] if END in words else words
    return " ".join(VOCABULARY[number] for number in words if number >= len(SPECIAL))


def padded(rows: Sequence[Sequence[int]], left: bool) -> Tensor:
    """Stack rows, (N, T) int64, PAD before or behind them."""
    length = max(map(len, rows))
    return torch.tensor([[PAD] * (length - len(row)) + list(row) if left else list(row) + [PAD] * (length - len(row)) for row in rows])
