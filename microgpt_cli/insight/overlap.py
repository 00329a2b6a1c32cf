"""Find passages that two token sequences share: memorised samples, or validation text that is in the training text.

Every window of `min_length` tokens of the source is hashed (a polynomial modulo 2⁶⁴) and the hashes are sorted, in
chunks, so that memory use does not grow with the source. The text is scanned from left to right: each match of its next
window is extended in both directions, and the scan continues at the first position whose window ends beyond the longest
match. A longer match contains that position, so none is missed. If the source repeats a window more than MAX_CANDIDATES
times in a chunk (rows of dashes), only that many matches are extended.
"""

import bisect
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_LENGTH = 24  # tokens of a passage
MAX_CANDIDATES = 32  # matches in a chunk that are extended for one position of the text
CHUNK = 1 << 20  # tokens of the source that are indexed at once
STRIDE, MAX_STRIDE = 32, 1 << 14  # tokens compared at once, doubled each time
BASE = 0x5851F42D4C957F2D  # Knuth's MMIX multiplier


@dataclass(frozen=True)
class Passage:
    """`length` equal tokens, at `start` in the text and at `origin` in the source."""

    start: int
    length: int
    origin: int


@dataclass(frozen=True)
class Overlap:
    """The passages that a text shares with a source."""

    share: float  # fraction of the text's tokens in passages of at least `min_length` tokens
    passages: list[Passage]  # the longest ones without overlapping or repeated passages, longest first


def find_overlap(text: Tensor, source: Tensor, max_passages: int, min_length: int = MIN_LENGTH) -> Overlap:
    """Find the passages of `text` (M,) that occur in `source` (N,).

    Args:
        text, source: token ids; negative ids never match.
        max_passages: number of passages to return.
        min_length: minimum length of a passage in tokens.
    """
    text = text.long()
    wanted = _hashes(text, min_length)  # (M - min_length + 1,)
    found: dict[int, Passage] = {}  # start in the text → longest match
    for chunk in range(0, max(0, len(source) - min_length + 1), CHUNK):
        hashes, order = _hashes(source[chunk : chunk + CHUNK + min_length - 1].long(), min_length).sort(stable=True)
        first = torch.searchsorted(hashes, wanted)
        past = torch.searchsorted(hashes, wanted, right=True)
        seeds = (past > first).nonzero()[:, 0].tolist()
        position = 0
        while (index := bisect.bisect_left(seeds, position)) < len(seeds):
            start = seeds[index]
            origins = order[first[start] : past[start]][:MAX_CANDIDATES] + chunk
            left, right = (
                _agreement(text, source, start - 1, origins - 1, -1),
                _agreement(text, source, start, origins, 1),
            )
            for before, after, origin in zip(left.tolist(), right.tolist(), origins.tolist(), strict=True):
                passage = Passage(start - before, before + after, origin - before)
                other = found.get(passage.start)
                if passage.length >= min_length and (other is None or passage.length > other.length):
                    found[passage.start] = passage
            position = max(start + 1, start + int(right.max()) - min_length + 1)
    passages = sorted(found.values(), key=lambda passage: (-passage.length, passage.start))
    return Overlap(_share(passages, len(text)), _select(passages, text, max_passages))


def _hashes(ids: Tensor, length: int) -> Tensor:
    """A hash of each window of `length` ids, (N - length + 1,)."""
    count = max(0, len(ids) - length + 1)
    hashes = torch.zeros(count, dtype=torch.long)
    for j in range(length):
        hashes = hashes * BASE + ids[j : j + count]  # modulo 2⁶⁴ by overflow
    return hashes


def _agreement(text: Tensor, source: Tensor, start: int, origins: Tensor, direction: int) -> Tensor:
    """How many tokens agree from `start` and each of `origins` (G,), to the right (1) or to the left (-1)."""
    lengths = torch.zeros_like(origins)
    active, stride = torch.arange(len(origins)), STRIDE
    while len(active):
        steps = direction * (lengths[active, None] + torch.arange(stride))  # (G, stride)
        a, b = start + steps, origins[active, None] + steps
        inside = (a >= 0) & (a < len(text)) & (b >= 0) & (b < len(source))
        ours, theirs = text[a.clamp(0, len(text) - 1)], source[b.clamp(0, len(source) - 1)].long()
        same = (inside & (ours == theirs) & (ours >= 0)).cumprod(1).sum(1)  # (G,)
        lengths[active] += same
        active, stride = active[same == stride], min(2 * stride, MAX_STRIDE)
    return lengths


def _share(passages: list[Passage], count: int) -> float:
    """The fraction of a text of `count` tokens that these passages cover."""
    covered, end = 0, 0
    for passage in sorted(passages, key=lambda passage: passage.start):
        after = passage.start + passage.length
        covered += max(0, after - max(end, passage.start))
        end = max(end, after)
    return covered / max(1, count)


def _select(passages: list[Passage], text: Tensor, max_passages: int) -> list[Passage]:
    """The first passages that neither overlap an earlier one nor equal it."""
    selected: list[Passage] = []
    covered = torch.zeros(len(text), dtype=torch.bool)
    contents: set[bytes] = set()
    for passage in passages:
        if len(selected) == max_passages:
            break
        span = slice(passage.start, passage.start + passage.length)
        content = text[span].numpy().tobytes()
        if not covered[span].any() and content not in contents:
            selected.append(passage)
        covered[span] = True
        contents.add(content)
    return selected
