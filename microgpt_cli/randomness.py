"""Randomness without state: every draw is a function of (seed, stream, step, rank).

So a resumed run repeats the draws of the uninterrupted one by construction, evaluation cannot disturb training, and
the batch of any step is found without drawing those before it.
"""

import hashlib

import torch

# The streams: one for each kind of draw, so that none can shift another.
WEIGHTS, BATCHES, DROPOUT, SAMPLES = "weights", "batches", "dropout", "samples"


def derive(seed: int, stream: str, step: int = 0, rank: int = 0) -> int:
    """A seed of 63 bits for one draw."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, stream: str, step: int = 0, rank: int = 0) -> torch.Generator:
    """A CPU generator for one draw."""
    return torch.Generator().manual_seed(derive(seed, stream, step, rank))
