"""N-gram baselines of a text: the losses of the uniform, unigram and bigram predictors, with add-one smoothing.

Counting goes piece by piece, so that memory holds only the counts and one piece.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_TOKENS = 1 << 24  # counted of each split: 16.8M are enough, and bound the time for larger corpora
PIECE_TOKENS = 1 << 20
TABLE_TOKENS = 1 << 10  # vocabularies up to this size are counted in a dense table (8 MB), without sorting


@dataclass(frozen=True)
class Baselines:
    """Nats per token on the validation split."""

    uniform: float  # all tokens equally likely: ln V
    unigram: float  # by the frequencies of the training split
    bigram: float  # by the frequencies after the previous token


def count_baselines(train: Tensor, val: Tensor, vocab_size: int) -> Baselines:
    """Count in `train` (N,) and predict `val` (M,), except its first token, which has no predecessor."""
    train, val = train[:MAX_TOKENS], val[:MAX_TOKENS]
    pairs, times = count_pairs(train, vocab_size)
    followed = torch.zeros(vocab_size, dtype=torch.long).index_add_(0, pairs // vocab_size, times)  # (V,)
    counts = followed.clone()  # (V,)
    counts[int(train[-1])] += 1
    wanted, weights = count_pairs(val, vocab_size)
    place = torch.searchsorted(pairs, wanted).clamp(max=len(pairs) - 1)
    seen = torch.where(pairs[place] == wanted, times[place], 0)
    unigram = (counts[wanted % vocab_size] + 1).double() / (len(train) + vocab_size)
    bigram = (seen + 1).double() / (followed[wanted // vocab_size] + vocab_size)
    nats = [-(weights * probability.log()).sum().item() / (len(val) - 1) for probability in (unigram, bigram)]
    return Baselines(math.log(vocab_size), *nats)


def count_pairs(ids: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """The distinct bigrams in `ids` (N,), encoded as first · V + second and sorted, and their counts."""
    if vocab_size <= TABLE_TOKENS:
        table = torch.zeros(vocab_size**2, dtype=torch.long)
        for piece in _pairs(ids, vocab_size):
            table += torch.bincount(piece, minlength=len(table))
        pairs = table.nonzero()[:, 0]
        return pairs, table[pairs]
    pairs = times = torch.zeros(0, dtype=torch.long)
    for piece in _pairs(ids, vocab_size):
        found, more = torch.unique(piece, return_counts=True)
        pairs, place = torch.unique(torch.cat([pairs, found]), return_inverse=True)
        times = torch.zeros(len(pairs), dtype=torch.long).index_add_(0, place, torch.cat([times, more]))
    return pairs, times


def _pairs(ids: Tensor, vocab_size: int) -> Iterator[Tensor]:
    for begin in range(0, len(ids) - 1, PIECE_TOKENS):
        piece = ids[begin : begin + PIECE_TOKENS + 1].long()
        yield piece[:-1] * vocab_size + piece[1:]
