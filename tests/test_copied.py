"""The passages that two texts share, beside a search that tries everything."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microgpt_cli.insight import overlap as room
from microgpt_cli.insight.overlap import Passage, copied

texts = st.lists(st.integers(-1, 2), max_size=40)


def matches(text: list[int], source: list[int], start: int) -> list[tuple[int, int]]:
    """The length and origin of every match of a place, by trying them all."""
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
def test_the_passages_are_those_that_a_search_of_everything_finds(
    text: list[int], source: list[int], least: int, size: int
) -> None:
    before = room.PART, room.STRIDE, room.MOST_TRIED
    room.PART, room.STRIDE, room.MOST_TRIED = size, 1, 1000
    try:
        found = copied(torch.tensor(text, dtype=torch.long), torch.tensor(source, dtype=torch.long), 100, least)
    finally:
        room.PART, room.STRIDE, room.MOST_TRIED = before
    longest = [max((length for length, _ in matches(text, source, i)), default=0) for i in range(len(text))]
    covered = {j for i, length in enumerate(longest) if length >= least for j in range(i, i + length)}
    assert found.share == (len(covered) / len(text) if text else 0)
    for passage in found.passages:
        here = slice(passage.start, passage.start + passage.length)
        assert text[here] == source[passage.origin : passage.origin + passage.length]
        assert passage.length == longest[passage.start] >= least
        assert passage.origin == min(o for n, o in matches(text, source, passage.start) if n == passage.length)
    if covered:
        assert found.passages[0].length == max(longest)


def test_a_copied_text_is_one_passage() -> None:
    source = torch.randint(0, 100, (3000,), generator=torch.Generator().manual_seed(0))
    text = torch.cat((torch.full((7,), -1), source[500:2500], torch.full((5,), -1)))
    assert copied(text, source, 5) == room.Copied(2000 / 2012, [Passage(7, 2000, 500)])
    assert copied(text, source.to(torch.uint8), 5) == copied(text, source, 5)


def test_texts_that_share_nothing_and_texts_of_nothing() -> None:
    source = torch.arange(1000)
    for text in (torch.arange(1000, 2000), torch.arange(5), torch.arange(0), torch.arange(23)):
        assert copied(text, source, 5) == room.Copied(0, [])
    assert copied(source, torch.arange(0), 5).share == 0
    assert copied(torch.arange(24), source, 5) == room.Copied(1, [Passage(0, 24, 0)])


def test_one_token_over_and_over_takes_no_time() -> None:
    found = copied(torch.zeros(20_000), torch.zeros(30_000), 5)
    assert found.share == 1
    assert len(found.passages) == 1
