"""Token weights drawn over rationales."""

import re
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest

from lightning_modules.kpod.weighting.picture import COLUMNS, Weighed, _lines, draw_html, draw_png

RATIONALE = Weighed("Is 3 < 4 & $5?", [" 3", " <", " 4", " so", " yes", "."], [0.9, 0.5, 1.0, 0.0, 0.25, 0.0], [0, 0, 0, 1, 1, 1])


class Reader(HTMLParser):
    """What a browser would show of a page: list items, and text with its title."""

    def __init__(self, page):
        super().__init__()
        self.items, self.tokens, self.loads, self._title = 0, [], [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.items += tag == "li"
        self.loads += [attributes[name] for name in ("src", "href") if name in attributes]
        self._title = attributes.get("title") if tag == "span" else None

    def handle_data(self, data):
        if self._title is not None:
            self.tokens.append((data, float(self._title)))
            self._title = None


def test_a_page_shows_each_token_with_its_weight_by_step_and_loads_nothing(tmp_path):
    page = draw_html(tmp_path / "weights.html", [RATIONALE]).read_text()
    reader = Reader(page)
    assert reader.tokens == [("3", 0.9), (" <", 0.5), (" 4", 1.0), ("so", 0.0), (" yes", 0.25), (".", 0.0)]
    assert reader.items == 2
    assert not reader.loads
    assert "Is 3 &lt; 4 &amp; $5?" in page
    opacities = [float(value) for value in re.findall(r"rgba\(\d+,\d+,\d+,([\d.]+)\)", page)]
    assert opacities == pytest.approx([0.75 * weight for weight in RATIONALE.weights], abs=0.01)


def test_an_image_is_darker_where_weights_are_higher(tmp_path):
    images = [matplotlib.image.imread(draw_png(tmp_path / f"{weight}.png", [Weighed("q", ["a"] * 9, [weight] * 9, [0] * 9)]))[..., :3]
              for weight in (0.0, 0.5, 1.0)]
    assert len({image.shape for image in images}) == 1
    light, middle, dark = (float(np.mean(image)) for image in images)
    assert light > middle > dark


def test_a_long_step_is_broken_into_lines_that_lose_nothing():
    tokens = [f" word{number}" for number in range(60)]
    lines = _lines(Weighed("q", tokens, [0.5] * 60, [0] * 60))
    assert "".join(token for line in lines[1:] for _, token, _ in line) == "".join(tokens).lstrip()
    assert all(column + len(token) <= COLUMNS for line in lines for column, token, _ in line)
    assert len(lines) > 4
