"""What an evaluation asks of a model: replies to questions. Whatever can hear, or only pretends to, is behind this."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from datamodules.av_questions import Question

Status: TypeAlias = Literal["ok", "error", "refused", "truncated"]


@dataclass(frozen=True)
class Reply:
    """What a model says to a question, how that ended, and the logits of the letters where they are known."""

    text: str
    status: Status = "ok"
    letter_logits: tuple[float, ...] | None = None
    note: str = ""  # what the reader of a table should know, such as a sound that was cut to the model's window


MONO = "the model hears one channel, and the cue lies between channels"  # why spatial tasks measure nothing


class Adapter(Protocol):
    """A model that replies to questions.

    `cannot` says of tasks that it cannot do by construction why not, such as of spatial ones in mono: their scores measure nothing.
    `identity` says all that decides a reply (weights, precision, processor, generation), so that kept replies of another model are never
    taken for this one's.
    """

    cannot: Mapping[str, str]
    identity: str

    def replies(self, questions: Sequence[Question]) -> list[Reply]:
        """Reply to each question, in their order."""
        ...
