"""Accuracy over a set of questions, each counted once, with an interval and the rows behind it."""

from dataclasses import dataclass

from lightning_modules.intervals import wilson
from lightning_modules.kpod.answers import PATTERNS, judge, lm_eval_right

COLUMNS = ("question", "gold", "output", "extracted", "right")


@dataclass(frozen=True)
class Judged:
    """One question with the text that was generated for it."""

    question: str
    gold: str
    output: str
    extracted: str | None
    right: bool


class Accuracy:
    """Collects texts by the index of their question, so that one which comes twice counts once."""

    def __init__(self) -> None:
        self.judged: dict[int, Judged] = {}

    def add(self, index: int, output: str, question: str, gold: str) -> None:
        """Judge the text generated for question number `index`."""
        self.judged[index] = Judged(question, gold, output, *judge(output, question, gold))

    def metrics(self) -> dict[str, float]:
        """Return shares of all questions: accuracy with its 95 % interval, misses (texts without an answer, which are wrong), and what
        lm-evaluation-harness would say where answers are numbers.

        Raises ValueError before any question.
        """
        if not self.judged:
            raise ValueError("there is no accuracy of no questions")
        answers = [self.judged[index] for index in sorted(self.judged)]
        right = sum(answer.right for answer in answers)
        low, high = wilson(right, len(answers))
        found = {"accuracy": right / len(answers), "accuracy_low": low, "accuracy_high": high,
                 "miss_rate": sum(answer.extracted is None for answer in answers) / len(answers)}
        if any(character.isdigit() for answer in answers for character in answer.gold):
            for metric in PATTERNS:
                found[metric] = sum(lm_eval_right(answer.output, answer.gold, metric) for answer in answers) / len(answers)
        return found

    def rows(self) -> list[tuple[str, str, str, str, bool]]:
        """Return one row of COLUMNS a question, in the order of their indices."""
        return [(a.question, a.gold, a.output, a.extracted or "", a.right) for _, a in sorted(self.judged.items())]
