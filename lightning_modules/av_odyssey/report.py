"""What answers are worth: three rules side by side, averages by name, and what was invalid, refused, cut off or never asked."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_modules.av_odyssey.answers import Answer
from lightning_modules.av_odyssey.averages import Score, Share, averages, by_attribute, by_task, guessing, share
from lightning_modules.av_odyssey.parsing import letter_of_logits, official, refuses, strict, vlmevalkit

Unanswered = Literal["official", "wrong", "left_out"]
RULES: dict[str, Callable[[str, Sequence[str]], str | None]] = {"official": official, "strict": strict, "vlmevalkit": vlmevalkit}
STATUSES = ("refused", "truncated", "error", "damaged")
RATE_COLUMNS = ("rate", "percent")
QUESTION_COLUMNS = ("id", "task", "attribute", "mix", "gold", "reply", "status", "official", "strict", "vlmevalkit", "letter_logits",
                    "right_official", "right_strict", "right_vlmevalkit", "note")
SCORE_COLUMNS = ("rule", "kind", "name", "right", "count", "percent", "low", "high", "note")
NOT_MEASURABLE = "not measurable"
NEVER = ("error", "damaged")  # was never given, or never asked for


@dataclass(frozen=True)
class Graded:
    """An answer with the letter that each rule reads in it, None where it reads none; logits are a rule of their own."""

    answer: Answer
    letters: dict[str, str | None]

    def right(self, rule: str) -> bool:
        """Tell whether the letter is the right one."""
        return self.letters[rule] == self.answer.gold

    def score(self, rule: str) -> Score:
        """Return what averages need."""
        return Score(self.answer.task_id, self.answer.task, self.answer.attribute, self.right(rule))


def grade(answer: Answer, unanswered: Unanswered = "official", damaged: Unanswered = "official") -> Graded:
    """Read an answer by all rules; one that was never given or asked for is what the policy says: empty words for the rules, or wrong.

    It has no logits in any case, and is wrong by them.
    """
    if {"error": unanswered, "damaged": damaged}.get(answer.status, "official") != "official":
        letters: dict[str, str | None] = dict.fromkeys(RULES)
    else:
        letters = {name: rule(answer.reply, answer.options) for name, rule in RULES.items()}
    if answer.letter_logits is not None:
        letters["letter_logits"] = letter_of_logits(answer.letter_logits)
    elif answer.status in NEVER:
        letters["letter_logits"] = None
    return Graded(answer, letters)


@dataclass(frozen=True)
class Report:
    """All that an evaluation found: answers that are scored, how all of them ended, and why some tasks' scores measure nothing."""

    graded: list[Graded]
    statuses: Counter[str] = field(default_factory=Counter)  # of all answers, with those that stay out
    cannot: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, answers: Sequence[Answer], unanswered: Unanswered = "official", damaged: Unanswered = "official",
           cannot: Mapping[str, str] | None = None) -> "Report":
        """Grade answers; what has none, or was never asked, stays out where its policy says so. Raises ValueError if none is left."""
        left_out = [status for status, policy in (("error", unanswered), ("damaged", damaged)) if policy == "left_out"]
        taken = [answer for answer in answers if answer.status not in left_out]
        if not taken:
            key = "data.damaged" if damaged == "left_out" else "module.unanswered"
            raise ValueError(f"{key}: must not be left_out where no question has an answer; "
                             f"the first says: {answers[0].note if answers else 'there is no question'}")
        statuses = Counter("refused" if _refused(answer) else answer.status for answer in answers)
        return cls([grade(answer, unanswered, damaged) for answer in taken], statuses, cannot or {})

    @property
    def rules(self) -> list[str]:
        """The rules by which every answer was read; letters' logits are one where the model gives them with all that it answers."""
        known = any(one.answer.letter_logits is not None for one in self.graded)
        return [*RULES, *(["letter_logits"] if known and all("letter_logits" in one.letters for one in self.graded) else [])]

    def shares(self, rule: str) -> dict[tuple[str, str], Share]:
        """Score averages, attributes and tasks by (kind, name)."""
        scores = [one.score(rule) for one in self.graded]
        found = {("average", name): part for name, part in averages(scores).items()}
        found |= {("attribute", name): part for name, part in by_attribute(scores).items()}
        return found | {("task", name): part for (_, name), part in by_task(scores).items()}

    def metrics(self) -> dict[str, float]:
        """Return the figures of a run: shares in 0..1 by rule, rates of what is no plain answer, and what guessing gets."""
        found: dict[str, float] = {}
        for rule in self.rules:
            shares = self.shares(rule)
            found |= {f"{rule}/{name}": part.value for (kind, name), part in shares.items() if kind == "average"}
            micro = shares["average", "micro"]
            found |= {f"{rule}/micro_low": micro.low, f"{rule}/micro_high": micro.high}
        for rule in ("strict", "vlmevalkit"):
            found[f"{rule}/invalid_rate"] = sum(one.letters[rule] is None for one in self.graded) / len(self.graded)
        found |= {f"{status}_rate": self.rate(status) for status in STATUSES}
        answers = [one.answer for one in self.graded]
        return found | guessing([answer.gold for answer in answers], [len(answer.options) for answer in answers])

    def rate(self, status: str) -> float:
        """Return the share of all answers that ended so; one that says it cannot is refused, whatever the model was asked."""
        return self.statuses[status] / self.statuses.total()

    def rate_rows(self) -> list[tuple[str, float]]:
        """Return rows of RATE_COLUMNS: what guessing gets, and what is no plain answer."""
        found = self.metrics()
        scored = {"always_a": "right, if the answer were always A", "random": "right, if answers were drawn",
                  "strict/invalid_rate": "without a letter by strict", "vlmevalkit/invalid_rate": "without a letter by vlmevalkit"}
        names = {key: f"of scored questions: {name}" for key, name in scored.items()}
        names |= {f"{status}_rate": f"of all questions: {status}" for status in STATUSES}
        return [(name, round(100 * found[key], 2)) for key, name in names.items()]

    def score_rows(self) -> list[tuple[Any, ...]]:
        """Return a row of SCORE_COLUMNS for each rule and each average, attribute and task; percents."""
        rows = [(rule, kind, name, part, self.note(name) if kind == "task" else self.attribute_note(name) if kind == "attribute" else "")
                for rule in self.rules for (kind, name), part in self.shares(rule).items()]
        rows += [(rule, "attribute and task", name, part, self.note(task)) for rule in self.rules for name, task, part in self.parts(rule)
                 if name != task]
        return [(rule, kind, name, round(part.right, 6), part.count, *(round(100 * x, 4) for x in (part.value, part.low, part.high)), note)
                for rule, kind, name, part, note in rows]

    def parts(self, rule: str) -> list[tuple[str, str, Share]]:
        """Score each task by itself in each attribute that it has questions of: name, task and share. One profile is one attribute."""
        homes: dict[tuple[int, str], set[str]] = {}
        for one in self.graded:
            homes.setdefault((one.answer.task_id, one.answer.task), set()).add(one.answer.attribute)
        found = []
        for (number, task), attributes in sorted(homes.items()):
            for attribute in sorted(attributes):
                right = [one.right(rule) for one in self.graded
                         if (one.answer.task_id, one.answer.task, one.answer.attribute) == (number, task, attribute)]
                found.append((task if len(attributes) == 1 else f"{attribute}: {task}", task, share(sum(right), len(right))))
        return found

    def note(self, task: str) -> str:
        """Say that a task's scores measure nothing, and why; empty where they do measure."""
        return f"{NOT_MEASURABLE}: {self.cannot[task]}" if task in self.cannot else ""

    def attribute_note(self, attribute: str) -> str:
        """Say the same of an attribute all of whose tasks measure nothing."""
        tasks = {one.answer.task for one in self.graded if one.answer.attribute == attribute}
        return next((self.note(task) for task in sorted(tasks) if tasks <= self.cannot.keys()), "")

    def question_rows(self) -> list[tuple[Any, ...]]:
        """Return a row of QUESTION_COLUMNS a question."""
        rows = []
        for one in self.graded:
            a, letters = one.answer, [one.letters.get(rule) or "" for rule in (*RULES, "letter_logits")]
            rows.append((a.id, a.task, a.attribute, a.mix, a.gold, a.reply, a.status, *letters, *map(one.right, RULES), a.note))
        return rows


def _refused(answer: Answer) -> bool:
    return answer.status in ("ok", "refused") and (answer.status == "refused" or refuses(answer.reply, answer.options))
