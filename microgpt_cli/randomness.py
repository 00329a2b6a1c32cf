"""Stateless randomness: every random draw is a function of (seed, stream, step, rank).

A resumed run therefore repeats the draws of an uninterrupted one, evaluation does not affect training, and the batch of
any step is known without drawing the earlier ones.
"""

import hashlib

import torch

# One stream for each use, so that they are independent.
WEIGHTS, BATCHES, DROPOUT, SAMPLES = "weights", "batches", "dropout", "samples"


def derive(seed: int, stream: str, step: int = 0, rank: int = 0) -> int:
    """A 63-bit seed."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, stream: str, step: int = 0, rank: int = 0) -> torch.Generator:
    """A CPU generator with the seed of `derive`."""
    return torch.Generator().manual_seed(derive(seed, stream, step, rank))
