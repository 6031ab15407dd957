"""Who answers which question when: each question once, the work shared out by cost, batches of one mix of media.

Lightning's samplers would repeat questions to give every process as many; here nothing is repeated, and nothing is left out.
"""

import hashlib
import heapq
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from datamodules.av_questions import Audio, Medium, Picture, Question, prompt_text

PIXELS_A_TOKEN, TOKENS_A_SECOND = 784, 25  # of pictures and of sound, in the omni models of today; enough to compare costs


@dataclass(frozen=True)
class Item:
    """A question of a plan: its place in the data, its key, what it shows, and its cost in tokens."""

    index: int
    id: str
    key: str
    mix: str
    cost: float


def item_of(index: int, question: Question, source: str) -> Item:
    """Describe question `index`; media that know their digests and tokens (`digests`, `tokens` by tag) are not read."""
    media = question.media
    digests = getattr(media, "digests", None) or {tag: digest_of(media[tag]) for tag in media}
    tokens = getattr(media, "tokens", None) or {tag: tokens_of(media[tag]) for tag in media}
    text = prompt_text(question)
    key = json.dumps([source, question.id, text, sorted(digests.items())])
    cost = len(text) / 4 + sum(tokens.values())
    return Item(index, question.id, hashlib.sha256(key.encode()).hexdigest(), question.mix, cost)


def digest_of(medium: Medium) -> str:
    """Hash what a medium holds."""
    array, rate = _array(medium)
    digest = hashlib.sha256(f"{type(medium).__name__} {array.shape} {array.dtype} {rate}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def tokens_of(medium: Medium) -> float:
    """Estimate how many tokens a medium becomes."""
    if isinstance(medium, Audio):
        return medium.seconds * TOKENS_A_SECOND
    pixels = medium.pixels if isinstance(medium, Picture) else medium.frames
    return pixels.size / 3 / PIXELS_A_TOKEN


def _array(medium: Medium) -> tuple[np.ndarray, float]:
    if isinstance(medium, Audio):
        return medium.samples, medium.rate
    return (medium.pixels, 0.0) if isinstance(medium, Picture) else (medium.frames, medium.rate)


def deal(items: Iterable[Item], processes: int) -> list[list[Item]]:
    """Share items out among processes, the dearest first, each to the process that has least; the same items give the same shares."""
    loads = [(0.0, rank) for rank in range(processes)]
    shares: list[list[Item]] = [[] for _ in range(processes)]
    for item in sorted(items, key=lambda item: (-item.cost, item.index)):
        load, rank = heapq.heappop(loads)
        shares[rank].append(item)
        heapq.heappush(loads, (load + item.cost, rank))
    return shares


def batches(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Cut a share into batches of at most `size`, each of one mix and of like costs, the dearest first so that memory fails early."""
    by_mix: Mapping[str, list[Item]] = defaultdict(list)
    for item in items:
        by_mix[item.mix].append(item)
    found = []
    for group in by_mix.values():
        group.sort(key=lambda item: (-item.cost, item.index))
        found += [group[start: start + size] for start in range(0, len(group), size)]
    return sorted(found, key=lambda batch: (-batch[0].cost, batch[0].index))


def plan(items: Sequence[Item], finished: Iterable[str], processes: int, size: int) -> list[list[list[Item]]]:
    """Return the batches of each process: what is not `finished` (by key) is dealt and cut. Raises ValueError for keys that come twice."""
    keys = {item.key for item in items}
    if len(keys) < len(items):
        seen: set[str] = set()
        twice = next(item.id for item in items if item.key in seen or seen.add(item.key))  # type: ignore[func-returns-value]
        raise ValueError(f"question {twice}: comes twice in the data, with the same words and media; leave one out")
    left = set(finished)
    return [batches(share, size) for share in deal((item for item in items if item.key not in left), processes)]
