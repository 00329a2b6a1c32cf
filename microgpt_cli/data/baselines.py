"""What a loss can be compared with: predictors that count, of this very text, with add-one smoothing."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_TOKENS = 1 << 24  # counted of each split: 16.8M settle the counts, and larger corpora don't cost more


@dataclass(frozen=True)
class Baselines:
    """Nats a token on the held-out ids."""

    uniform: float  # every token equally likely: ln V
    unigram: float  # as often as in the training text
    bigram: float  # as often as after the token before


def baselines(train: Tensor, val: Tensor, vocab_size: int) -> Baselines:
    """Count in `train` (N,), predict `val` (M,); all but the first held-out token, which has none before it."""
    train, val = train[:MAX_TOKENS].long(), val[:MAX_TOKENS].long()
    counts = torch.bincount(train, minlength=vocab_size).double()  # (V,)
    unigram = (counts[val[1:]] + 1) / (len(train) + vocab_size)
    pairs, times = torch.unique(train[:-1] * vocab_size + train[1:], return_counts=True)
    wanted = val[:-1] * vocab_size + val[1:]
    place = torch.searchsorted(pairs, wanted).clamp(max=len(pairs) - 1)
    seen = torch.where(pairs[place] == wanted, times[place], 0)
    bigram = (seen + 1) / (torch.bincount(train[:-1], minlength=vocab_size)[val[:-1]] + vocab_size)
    return Baselines(math.log(vocab_size), -unigram.log().mean().item(), -bigram.double().log().mean().item())
