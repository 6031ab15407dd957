"""What an evaluation asks of a model: replies to questions. Whatever can hear, or only pretends to, is behind this."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from datamodules.av_questions import Question


@dataclass(frozen=True)
class Reply:
    """What a model says to a question, how that ended, and the logits of the letters where they are known."""

    text: str
    status: Literal["ok", "error", "refused", "truncated", "damaged"] = "ok"
    letter_logits: tuple[float, ...] | None = None
    note: str = ""  # what the reader of a table should know, such as a sound that was cut to the model's window


class Adapter(Protocol):
    """A model that replies to questions.

    `cannot` names the tasks that it cannot do by construction, such as spatial ones in mono; `identity` says all that decides a reply
    (weights, precision, processor, generation), so that kept replies of another model are never taken for this one's.
    """

    cannot: frozenset[str]
    identity: str

    def replies(self, questions: Sequence[Question]) -> list[Reply]:
        """Reply to each question, in their order."""
        ...
