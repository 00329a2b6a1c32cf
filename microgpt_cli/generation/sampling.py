"""From logits to the next token: greedy, temperature, top-k and top-p; random numbers are passed in."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from microgpt_cli import randomness

COLDEST = 1e-250  # with a lower temperature, logits overflow to infinity
BUFFERED_STEPS = 32  # steps whose numbers are copied to the device together


@dataclass(frozen=True)
class Sampler:
    """How to choose the next token.

    Args:
        temperature: logits are divided by it; 0 takes the most likely token.
        top_k: sample from the k most likely tokens.
        top_p: sample from the smallest set of most likely tokens with this total probability (Holtzman et al., 2020).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def probabilities(self, logits: Tensor) -> Tensor:
        """logits (B, V) → probabilities (B, V), in float64, so that rounding does not change the sampled token."""
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
            before = ordered.cumsum(-1) - ordered  # total probability of the more likely ones
            cut = before >= self.top_p  # never the most likely
            probs = probs.masked_fill(cut.scatter(-1, order, cut), 0.0)
            probs = probs / probs.sum(-1, keepdim=True)
        return probs

    def sample_token(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """The next tokens (B,), on the device, without synchronizing with it.

        Args:
            logits: (B, V).
            uniforms: numbers in [0, 1), float64 (B, 1): inverse transform sampling of each row's distribution.
        """
        if self.temperature == 0:
            return logits.argmax(-1)
        sums = self.probabilities(logits).cumsum(-1)  # (B, V)
        if self.top_k is not None or self.top_p < 1:  # rounding must not select an excluded token at the end
            uniforms = uniforms * sums[:, -1:]
        return torch.searchsorted(sums, uniforms, right=True).clamp_(max=sums.size(-1) - 1).squeeze(1).to(logits.device)


class UniformStream:
    """Uniform numbers in [0, 1), one sequence per sample: its n-th number chooses its n-th token."""

    def __init__(self, seed: int, num_samples: int, step: int = 0) -> None:
        seeds = [randomness.derive(seed, randomness.SAMPLES, step, rank) for rank in range(num_samples)]
        self._generators = [random.Random(s) for s in seeds]

    def next(self) -> list[float]:
        return [generator.random() for generator in self._generators]

    def tensors(self, device: torch.device) -> Iterator[Tensor]:
        """An endless stream of float64 (B, 1) on the device, for `Sampler.sample_token`."""
        target = torch.device("cpu") if device.type == "mps" else device  # mps has no double
        while True:
            uniforms = [self.next() for _ in range(BUFFERED_STEPS)]
            yield from torch.tensor(uniforms, dtype=torch.float64).to(target).unsqueeze(-1)
