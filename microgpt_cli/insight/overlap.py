"""Passages of a text that stand, token for token, in another: does the model recite, was the held-out text seen before?

Every `least` tokens of the source are hashed (a polynomial, modulo 2⁶⁴) and sorted, in parts, so that memory does not
grow with it. The text is read from left to right: where its next `least` tokens are found, each match is followed to
both sides as far as the tokens agree, and reading goes on at the first place whose tokens reach beyond the longest of
them. A match that goes further has that place in it, so none is missed; but of what the source repeats more than
MOST_TRIED times in a part (rows of dashes), only so many are followed.
"""

import bisect
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST = 24  # tokens of the shortest passage that counts
MOST_TRIED = 32  # places of a part that are followed for one place of the text
PART = 1 << 20  # tokens of the source that are indexed at once
STRIDE, LONGEST_STRIDE = 32, 1 << 14  # tokens compared at once: few at first, twice as many each time
BASE = 0x5851F42D4C957F2D  # an odd number that spreads well: Knuth's, of MMIX


@dataclass(frozen=True)
class Passage:
    """`length` tokens that stand at `start` in the text and at `origin` in the source."""

    start: int
    length: int
    origin: int


@dataclass(frozen=True)
class Copied:
    """What of a text stands in a source."""

    share: float  # of the text's tokens, in passages of `least` tokens or more
    passages: list[Passage]  # the longest that neither overlap nor repeat one another, longest first


def copied(text: Tensor, source: Tensor, most: int, least: int = LEAST) -> Copied:
    """Find the passages of `text` (M,) that stand in `source` (N,).

    Args:
        text, source: token ids; an id below 0 ends a passage.
        most: how many passages to give back.
        least: tokens of the shortest that counts.
    """
    text = text.long()
    wanted = _hashes(text, least)  # (M - least + 1,)
    found: dict[int, Passage] = {}  # of each place where a match begins, the longest
    for part in range(0, max(0, len(source) - least + 1), PART):
        hashes, order = _hashes(source[part : part + PART + least - 1].long(), least).sort(stable=True)
        first = torch.searchsorted(hashes, wanted)
        past = torch.searchsorted(hashes, wanted, right=True)
        seeds = (past > first).nonzero()[:, 0].tolist()
        place = 0
        while (index := bisect.bisect_left(seeds, place)) < len(seeds):
            start = seeds[index]
            origins = order[first[start] : past[start]][:MOST_TRIED] + part
            left, right = (
                _agreement(text, source, start - 1, origins - 1, -1),
                _agreement(text, source, start, origins, 1),
            )
            for before, after, origin in zip(left.tolist(), right.tolist(), origins.tolist(), strict=True):
                passage = Passage(start - before, before + after, origin - before)
                other = found.get(passage.start)
                if passage.length >= least and (other is None or passage.length > other.length):
                    found[passage.start] = passage
            place = max(start + 1, start + int(right.max()) - least + 1)
    passages = sorted(found.values(), key=lambda passage: (-passage.length, passage.start))
    return Copied(_share(passages, len(text)), _chosen(passages, text, most))


def _hashes(ids: Tensor, least: int) -> Tensor:
    """A hash of the `least` ids from each place on, (N - least + 1,)."""
    count = max(0, len(ids) - least + 1)
    hashes = torch.zeros(count, dtype=torch.long)
    for j in range(least):
        hashes = hashes * BASE + ids[j : j + count]  # wraps around, as it should
    return hashes


def _agreement(text: Tensor, source: Tensor, start: int, origins: Tensor, way: int) -> Tensor:
    """How many tokens agree from `start` and each of `origins` (G,) on, going right (1) or left (-1)."""
    lengths = torch.zeros_like(origins)
    going, stride = torch.arange(len(origins)), STRIDE
    while len(going):
        steps = way * (lengths[going, None] + torch.arange(stride))  # (G, stride)
        a, b = start + steps, origins[going, None] + steps
        inside = (a >= 0) & (a < len(text)) & (b >= 0) & (b < len(source))
        ours, theirs = text[a.clamp(0, len(text) - 1)], source[b.clamp(0, len(source) - 1)].long()
        same = (inside & (ours == theirs) & (ours >= 0)).cumprod(1).sum(1)  # (G,)
        lengths[going] += same
        going, stride = going[same == stride], min(2 * stride, LONGEST_STRIDE)
    return lengths


def _share(passages: list[Passage], count: int) -> float:
    """How much of a text of `count` tokens lies in some of these passages."""
    covered, end = 0, 0
    for passage in sorted(passages, key=lambda passage: passage.start):
        after = passage.start + passage.length
        covered += max(0, after - max(end, passage.start))
        end = max(end, after)
    return covered / max(1, count)


def _chosen(passages: list[Passage], text: Tensor, most: int) -> list[Passage]:
    """The first that neither overlap one before them nor say the same."""
    chosen: list[Passage] = []
    taken = torch.zeros(len(text), dtype=torch.bool)
    words: set[bytes] = set()
    for passage in passages:
        if len(chosen) == most:
            break
        place = slice(passage.start, passage.start + passage.length)
        same = text[place].numpy().tobytes()
        if not taken[place].any() and same not in words:
            chosen.append(passage)
        taken[place] = True
        words.add(same)
    return chosen
