"""Predictors that count."""

import dataclasses

import pytest
import torch

from microgpt_cli.data import baselines as module
from microgpt_cli.data.baselines import count_baselines, count_pairs

IDS = torch.randint(9, (1000,), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_pairs_are_counted_the_same_in_pieces_and_with_or_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand: dict[int, int] = {}
    for first, second in zip(IDS.tolist()[:-1], IDS.tolist()[1:], strict=True):
        by_hand[first * 9 + second] = by_hand.get(first * 9 + second, 0) + 1
    for piece in (1, 7, 999, 1000):
        for table in (0, 9):
            monkeypatch.setattr(module, "PIECE_TOKENS", piece)
            monkeypatch.setattr(module, "TABLE_TOKENS", table)
            pairs, times = count_pairs(IDS, 9)
            assert dict(zip(pairs.tolist(), times.tolist(), strict=True)) == by_hand
            assert pairs.tolist() == sorted(by_hand)


def test_what_was_never_seen_has_a_chance() -> None:
    found = count_baselines(torch.tensor([0, 0, 0]), torch.tensor([2, 1, 0, 3]), 4)
    # of 3, 0 and 1, only 0 was seen; after 0 came 0 twice, after others nothing
    expected = -torch.tensor([1 / 7, 4 / 7, 1 / 7]).log().mean().item()
    assert found.unigram == pytest.approx(expected)
    assert found.bigram == pytest.approx(-torch.tensor([1 / 4, 1 / 4, 1 / 6]).log().mean().item())


def test_only_the_beginning_of_a_long_text_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TOKENS", 400)
    assert dataclasses.asdict(count_baselines(IDS, IDS, 9)) == dataclasses.asdict(
        count_baselines(IDS[:400], IDS[:400], 9)
    )
