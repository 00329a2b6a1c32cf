"""Passages that two texts share, compared with an exhaustive search."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microgpt_cli.insight import overlap
from microgpt_cli.insight.overlap import Passage, find_overlap

texts = st.lists(st.integers(-1, 2), max_size=40)


def matches(text: list[int], source: list[int], start: int) -> list[tuple[int, int]]:
    """Length and origin of every match at a position, by exhaustive search."""
    found = []
    for origin in range(len(source)):
        length = 0
        while (
            start + length < len(text)
            and origin + length < len(source)
            and text[start + length] == source[origin + length] >= 0
        ):
            length += 1
        found.append((length, origin))
    return found


@settings(max_examples=100, deadline=None)
@given(texts, texts, st.integers(1, 4), st.sampled_from([3, 1 << 20]))
def test_passages_match_an_exhaustive_search(text: list[int], source: list[int], min_length: int, size: int) -> None:
    before = overlap.CHUNK, overlap.STRIDE, overlap.MAX_CANDIDATES
    overlap.CHUNK, overlap.STRIDE, overlap.MAX_CANDIDATES = size, 1, 1000
    try:
        found = find_overlap(
            torch.tensor(text, dtype=torch.long), torch.tensor(source, dtype=torch.long), 100, min_length
        )
    finally:
        overlap.CHUNK, overlap.STRIDE, overlap.MAX_CANDIDATES = before
    longest = [max((length for length, _ in matches(text, source, i)), default=0) for i in range(len(text))]
    covered = {j for i, length in enumerate(longest) if length >= min_length for j in range(i, i + length)}
    assert found.share == (len(covered) / len(text) if text else 0)
    for passage in found.passages:
        here = slice(passage.start, passage.start + passage.length)
        assert text[here] == source[passage.origin : passage.origin + passage.length]
        assert passage.length == longest[passage.start] >= min_length
        assert passage.origin == min(o for n, o in matches(text, source, passage.start) if n == passage.length)
    if covered:
        assert found.passages[0].length == max(longest)


def test_copied_text_is_one_passage() -> None:
    source = torch.randint(0, 100, (3000,), generator=torch.Generator().manual_seed(0))
    text = torch.cat((torch.full((7,), -1), source[500:2500], torch.full((5,), -1)))
    assert find_overlap(text, source, 5) == overlap.Overlap(2000 / 2012, [Passage(7, 2000, 500)])
    assert find_overlap(text, source.to(torch.uint8), 5) == find_overlap(text, source, 5)


def test_disjoint_short_and_empty_texts() -> None:
    source = torch.arange(1000)
    for text in (torch.arange(1000, 2000), torch.arange(5), torch.arange(0), torch.arange(23)):
        assert find_overlap(text, source, 5) == overlap.Overlap(0, [])
    assert find_overlap(source, torch.arange(0), 5).share == 0
    assert find_overlap(torch.arange(24), source, 5) == overlap.Overlap(1, [Passage(0, 24, 0)])


def test_constant_text_has_one_passage() -> None:
    found = find_overlap(torch.zeros(20_000), torch.zeros(30_000), 5)
    assert found.share == 1
    assert len(found.passages) == 1
