"""From logits to the next token: small pure functions, the randomness given from outside."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from microgpt_cli import randomness

COLDEST = 1e-250  # a temperature below divides a logit to infinity; this is as cold as any
DRAWS_AT_ONCE = 32


@dataclass(frozen=True)
class Sampler:
    """How to choose the next token.

    Args:
        temperature: 0 for the likeliest token; else logits are divided by it.
        top_k: draw among the k likeliest only; more than there are means all.
        top_p: draw among the likeliest that together hold this share only (Holtzman et al., 2020).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def probabilities(self, logits: Tensor) -> Tensor:
        """logits (B, V) → probabilities (B, V), in double precision so that no rounding decides a draw."""
        logits = (logits.cpu() if logits.device.type == "mps" else logits).double()  # mps has no double
        if self.temperature == 0:
            return torch.nn.functional.one_hot(logits.argmax(-1), logits.size(-1)).double()
        if self.temperature != 1:
            logits = logits / max(self.temperature, COLDEST)
        if self.top_k is not None and self.top_k < logits.size(-1):
            least = logits.topk(self.top_k, dim=-1).values[:, -1:]  # (B, 1)
            logits = logits.masked_fill(logits < least, -math.inf)
        probs = logits.softmax(-1)  # (B, V)
        if self.top_p < 1:
            ordered, order = probs.sort(-1, descending=True)
            before = ordered.cumsum(-1) - ordered  # what the likelier ones hold
            cut = before >= self.top_p  # never the likeliest
            probs = probs.masked_fill(cut.scatter(-1, order, cut), 0.0)
            probs = probs / probs.sum(-1, keepdim=True)
        return probs

    def pick(self, logits: Tensor, numbers: Tensor) -> Tensor:
        """The next tokens (B,), on the device, without waiting for it.

        Args:
            logits: (B, V).
            numbers: a draw in [0, 1) for each row, float64 (B, 1): the token is where the running sum of probabilities
                passes it.
        """
        if self.temperature == 0:
            return logits.argmax(-1)
        sums = self.probabilities(logits).cumsum(-1)  # (B, V)
        if (
            self.top_k is not None or self.top_p < 1
        ):  # then the last tokens may not be drawn, nor the rest of a rounding
            numbers = numbers * sums[:, -1:]
        return torch.searchsorted(sums, numbers, right=True).clamp_(max=sums.size(-1) - 1).squeeze(1).to(logits.device)


class Draws:
    """Numbers in [0, 1), a sequence of its own for each sample: the n-th token of a sample always gets the n-th."""

    def __init__(self, seed: int, num_samples: int, step: int = 0) -> None:
        seeds = [randomness.derive(seed, randomness.SAMPLES, step, rank) for rank in range(num_samples)]
        self._sources = [random.Random(s) for s in seeds]

    def next(self) -> list[float]:
        return [source.random() for source in self._sources]

    def tensors(self, device: torch.device) -> Iterator[Tensor]:
        """The same without end, as float64 (B, 1) for `Sampler.pick`, made and brought to the device many at a time."""
        place = torch.device("cpu") if device.type == "mps" else device  # mps has no double
        while True:
            numbers = [self.next() for _ in range(DRAWS_AT_ONCE)]
            yield from torch.tensor(numbers, dtype=torch.float64).to(place).unsqueeze(-1)
