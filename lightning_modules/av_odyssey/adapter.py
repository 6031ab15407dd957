"""What an evaluation asks of a model: replies to questions. Whatever can hear, or only pretends to, is behind this."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from datamodules.av_questions import Question

Status: TypeAlias = Literal["ok", "error", "refused", "truncated", "damaged"]


@dataclass(frozen=True)
class Reply:
    """What a model says to a question, how that ended, and the logits of the letters where they are known."""

    text: str
    status: Status = "ok"
    letter_logits: tuple[float, ...] | None = None
    note: str = ""  # what the reader of a table should know, such as a sound that was cut to the model's window


CHECK_COLUMNS = ("check", "measured", "limit", "holds", "consequence")
MONO = "the model hears one channel, and the cue lies between channels"  # why spatial tasks measure nothing


@dataclass(frozen=True)
class Check:
    """What was measured before a model is asked, the limit that it must keep, whether it does, and what follows where it does not."""

    name: str
    measured: float
    limit: float
    holds: bool
    consequence: str = ""

    @property
    def row(self) -> tuple[str, float, float, bool, str]:
        """Return a row of CHECK_COLUMNS."""
        return self.name, self.measured, self.limit, self.holds, "" if self.holds else self.consequence


class Adapter(Protocol):
    """A model that replies to questions.

    `cannot` says of tasks that it cannot do by construction why not, such as of spatial ones in mono: their scores measure nothing.
    `identity` says all that decides a reply (weights, precision, processor, generation), so that kept replies of another model are never
    taken for this one's.
    """

    cannot: Mapping[str, str]

    @property
    def together(self) -> int | None:
        """Say how many questions are answered at once, and kept before the next; None: as many as are asked."""
        ...

    @property
    def identity(self) -> str:
        """Name all that decides a reply."""
        ...

    def checks(self) -> list[Check]:
        """Check what can be checked before the first question; what does not hold may change `cannot`, and how questions are asked."""
        ...

    def replies(self, questions: Sequence[Question]) -> list[Reply]:
        """Reply to each question, in their order."""
        ...
