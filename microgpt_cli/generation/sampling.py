"""From logits to the next token: small pure functions, the randomness given from outside."""

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from microgpt_cli import randomness


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
        logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature  # so that no temperature overflows
        if self.top_k is not None and self.top_k < logits.size(-1):
            least = logits.topk(self.top_k, dim=-1).values[:, -1:]  # (B, 1)
            logits = logits.masked_fill(logits < least, -math.inf)
        probs = logits.softmax(-1)  # (B, V)
        if self.top_p < 1:
            ordered, order = probs.sort(-1, descending=True)
            before = ordered.cumsum(-1) - ordered  # what the likelier ones hold
            cut = before >= self.top_p  # never the likeliest
            probs = probs.masked_fill(cut.scatter(-1, order, cut), 0.0)
        return probs / probs.sum(-1, keepdim=True)

    def choose(self, logits: Tensor, draws: list[float]) -> list[int]:
        """For each row of logits (B, V), where the running sum of probabilities passes its draw in [0, 1)."""
        if self.temperature == 0:
            return logits.argmax(-1).tolist()
        sums = self.probabilities(logits).cumsum(-1)  # (B, V)
        wanted = torch.tensor(draws, dtype=sums.dtype, device=sums.device)[:, None] * sums[:, -1:]
        return torch.searchsorted(sums, wanted, right=True).clamp(max=sums.size(-1) - 1)[:, 0].tolist()


class Draws:
    """Numbers in [0, 1), a sequence of its own for each sample: the n-th token of a sample always gets the n-th."""

    def __init__(self, seed: int, num_samples: int, step: int = 0) -> None:
        seeds = [randomness.derive(seed, randomness.SAMPLES, step, rank) for rank in range(num_samples)]
        self._sources = [random.Random(s) for s in seeds]

    def next(self) -> list[float]:
        return [source.random() for source in self._sources]
