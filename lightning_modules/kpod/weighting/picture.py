"""Pictures of token weights: rationales with each token on a colour that says how much it matters, as a web page and as an image."""

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from datamodules.samples import Samples

COLUMNS = 150  # characters in a line of the image
LINE = 0.26  # inches
COLOUR = (193, 68, 14)  # of a token with weight 1
HEADING = "The darker a token, the more it matters for the answer."

Line = list[tuple[int, str, float | None]]  # column, text and weight, of the question none

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Token weights</title><style>
body {{ font: 15px/1.9 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222; background: #fff }}
section {{ margin: 0 0 2em }}
h2 {{ font-size: 1em; margin: 0 0 .3em }}
ol {{ margin: 0; padding-left: 2em }}
span {{ border-radius: .2em; padding: .1em 0; white-space: pre-wrap }}
</style></head><body>
<p>{heading} The weight shows under the pointer.</p>
{sections}
</body></html>
"""


@dataclass(frozen=True)
class Weighed:
    """A rationale for a picture: its question, and of each token the text, the weight in 0..1 and the step from 0."""

    question: str
    tokens: Sequence[str]
    weights: Sequence[float]
    steps: Sequence[int]

    def by_step(self) -> list[list[tuple[str, float]]]:
        """Group tokens and weights by step; the space before a step's first token is left out."""
        groups: dict[int, list[tuple[str, float]]] = {}
        for token, weight, step in zip(self.tokens, self.weights, self.steps, strict=True):
            group = groups.setdefault(step, [])
            group.append((token if group else token.lstrip(), weight))
        return list(groups.values())


def weighed(samples: Samples, weights: np.ndarray, index: int, tokenizer: PreTrainedTokenizerBase) -> Weighed:
    """Take the rationale of one sample out of `weights` (L,), flat over the tokens of all samples."""
    span = samples.span(index)
    rationale = samples.steps[span] >= 0
    tokens = [_text(tokenizer, token) for token in samples.ids[span][rationale].tolist()]
    return Weighed(samples.rows[index].question, tokens, weights[span][rationale].tolist(), samples.steps[span][rationale].tolist())


def _text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return a token's text; sentencepiece drops the space in front of a text, so its mark is looked at."""
    text, piece = str(tokenizer.decode([token])), str(tokenizer.convert_ids_to_tokens(token))
    return f" {text}" if piece.startswith("▁") and not text.startswith(" ") else text


def draw_html(path: Path, rationales: Sequence[Weighed]) -> Path:
    """Write a web page that needs nothing but itself."""
    sections = "\n".join(_section(rationale) for rationale in rationales)
    path.write_text(PAGE.format(heading=HEADING, sections=sections), encoding="utf-8")
    return path


def _section(rationale: Weighed) -> str:
    steps = "\n".join(f"<li>{''.join(_span(token, weight) for token, weight in step)}</li>" for step in rationale.by_step())
    return f"<section><h2>{html.escape(rationale.question)}</h2>\n<ol>\n{steps}\n</ol></section>"


def _span(token: str, weight: float) -> str:
    red, green, blue = COLOUR
    return f'<span title="{weight:.2f}" style="background:rgba({red},{green},{blue},{0.75 * weight:.2f})">{html.escape(token)}</span>'


def draw_png(path: Path, rationales: Sequence[Weighed]) -> Path:
    """Draw the same as an image, in a font whose characters are equally wide."""
    from matplotlib.figure import Figure

    lines: list[Line] = [[(0, HEADING, None)], [], *(line for rationale in rationales for line in _lines(rationale))]
    height = max(len(lines), 1) * LINE + 0.2
    figure = Figure(figsize=(11, height), dpi=120)
    axes = figure.add_axes((0.01, 0, 0.98, 1))
    axes.set_axis_off()
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(height / LINE, 0)
    for row, line in enumerate(lines):
        for column, token, weight in line:
            if weight is not None:
                axes.barh(row + 0.85, len(token), 0.9, column, color=tuple(c / 255 for c in COLOUR), alpha=0.75 * weight, linewidth=0)
            axes.text(column, row + 0.85, token.replace("$", r"\$"), family="monospace", fontsize=8.6, va="center")
    figure.savefig(path)
    return path


def _lines(rationale: Weighed) -> list[Line]:
    """Break a rationale into lines of (column, text, weight): the question without weights, the steps, an empty line."""
    lines: list[Line] = [[(0, part, None)] for part in textwrap.wrap(rationale.question, COLUMNS)]
    for step in rationale.by_step():
        column = 2
        lines.append([])
        for token, weight in step:
            if column + len(token) > COLUMNS:
                column = 4
                lines.append([])
            lines[-1].append((column, token, weight))
            column += len(token)
    return [*lines, []]
