"""The loss of every token of a text, aggregated by token, by preceding token and by position in the context.

Memory use does not grow with the text: only the losses of its beginning and the highest losses are kept.
T positions of the context, V vocabulary.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from microgpt_cli.compute import Compute
from microgpt_cli.data.dataset import windows
from microgpt_cli.model.gpt import GPT

CHUNK_TOKENS = 1024  # tokens whose probability distributions are in memory at once
MAX_PREDICTIONS = 3  # kept for each token that is shown


@dataclass(frozen=True)
class LossBatch:
    """The losses of some windows of a text."""

    idx: Tensor  # (B, T') input ids
    targets: Tensor  # (B, T') next ids
    losses: Tensor  # (B, T') nats
    logits: Tensor  # (B, T', V) on the device


@torch.no_grad()
def token_losses(model: GPT, ids: Tensor, compute: Compute, batch_size: int) -> Iterator[LossBatch]:
    """The loss of every id but the first, over the windows of `evaluate`: their mean is its loss.

    Args:
        model: in eval mode.
        ids: (N,).
        batch_size: windows per forward pass.
    """
    for idx, targets in windows(ids, batch_size, model.config.block_size):
        with compute.autocast():
            logits, _ = model(idx.to(compute.device))  # (B, T', V)
            losses = F.cross_entropy(logits.flatten(0, 1), targets.to(compute.device).flatten(), reduction="none")
        yield LossBatch(idx, targets, losses.view(idx.shape).float().cpu(), logits)


@dataclass(frozen=True)
class TokenGroup:
    """The losses of a token, or of those after a token."""

    token: int
    count: int
    nats: float  # total

    @property
    def loss(self) -> float:
        return self.nats / self.count


@dataclass(frozen=True)
class ContextRange:
    """The mean loss with `first` to `last` tokens of context."""

    first: int
    last: int
    loss: float
    count: int


@dataclass(frozen=True)
class ContextGain:
    """The decrease of the loss from the second last to the last context range, within the same windows."""

    nats: float
    error: float  # standard error of the mean over the windows


@dataclass
class LossBreakdown:
    """Aggregated losses of the batches added so far.

    Args:
        vocab_size: V.
        block_size: T.
        shown: number of tokens at the beginning whose losses and predictions are kept.
        worst: number of tokens with the highest loss to keep.
    """

    vocab_size: int
    block_size: int
    shown: int
    worst: int
    tokens: int = 0
    nats: float = 0.0
    losses: list[float] = field(default_factory=list)  # of the second and following tokens of the text
    predictions: list[tuple[list[int], list[float]]] = field(
        default_factory=list
    )  # ids and probabilities for each of them
    _worst: list[tuple[float, int, int]] = field(
        default_factory=list
    )  # a heap of (loss, -position, most probable token)

    def __post_init__(self) -> None:
        V, T = self.vocab_size, self.block_size
        self._of_token = torch.zeros(2, V, dtype=torch.double)  # count, nats
        self._after = torch.zeros(2, V, dtype=torch.double)
        self._at = torch.zeros(2, T, dtype=torch.double)
        self._gain = torch.zeros(3, dtype=torch.double)  # number of windows, sum, sum of squares

    def add(self, batch: LossBatch) -> None:
        """Add the next windows of the text."""
        losses = batch.losses.double()  # (B, T')
        for sums, keys in ((self._of_token, batch.targets), (self._after, batch.idx), (self._at, _positions(losses))):
            sums[0] += torch.bincount(keys.flatten(), minlength=sums.size(1))
            sums[1] += torch.bincount(keys.flatten(), losses.flatten(), minlength=sums.size(1))
        if losses.size(1) == self.block_size and self.block_size > 1:
            *_, (a, b), (c, d) = context_ranges(self.block_size)
            gain = losses[:, a - 1 : b].mean(1) - losses[:, c - 1 : d].mean(1)  # (B,)
            self._gain += torch.tensor([len(gain), gain.sum().item(), gain.square().sum().item()], dtype=torch.double)
        self._keep_worst(batch)
        wanted = min(self.shown - len(self.losses), losses.numel())
        if wanted > 0:
            self.losses += batch.losses.flatten()[:wanted].tolist()
            for logits in batch.logits.flatten(0, 1)[:wanted].split(CHUNK_TOKENS):
                best = logits.float().softmax(-1).topk(min(MAX_PREDICTIONS, self.vocab_size), dim=-1)
                self.predictions += zip(best.indices.tolist(), best.values.tolist(), strict=True)
        self.tokens += losses.numel()
        self.nats += losses.sum().item()

    def _keep_worst(self, batch: LossBatch) -> None:
        flat = batch.losses.flatten()
        found = flat.topk(min(self.worst, len(flat)))
        likeliest = batch.logits.flatten(0, 1)[found.indices.to(batch.logits.device)].argmax(-1).tolist()
        for loss, index, best in zip(found.values.tolist(), found.indices.tolist(), likeliest, strict=True):
            entry = (loss, -(self.tokens + index + 1), best)  # the first token is not predicted
            if len(self._worst) < self.worst:
                heapq.heappush(self._worst, entry)
            else:
                heapq.heappushpop(self._worst, entry)

    @property
    def loss(self) -> float:
        """Mean loss, nats per token."""
        return self.nats / self.tokens

    def worst_tokens(self) -> list[tuple[int, float, int]]:
        """The tokens with the highest loss: position in the text, loss, most probable token."""
        return [(-position, loss, best) for loss, position, best in sorted(self._worst, reverse=True)]

    def by_token(self) -> list[TokenGroup]:
        """Losses by predicted token, the highest total first."""
        return _groups(self._of_token)

    def by_context(self) -> list[TokenGroup]:
        """Losses by preceding token, the highest total first."""
        return _groups(self._after)

    def by_position(self) -> list[float | None]:
        """The mean loss with 1, 2, … T tokens of context; None where no token was predicted."""
        return [nats / count if count else None for count, nats in self._at.T.tolist()]

    def by_context_length(self) -> list[ContextRange]:
        """The mean loss over ranges of context lengths that double."""
        found = []
        for first, last in context_ranges(self.block_size):
            count, nats = self._at[:, first - 1 : last].sum(1).tolist()
            if count:
                found.append(ContextRange(first, last, nats / count, int(count)))
        return found

    def gain(self) -> ContextGain | None:
        """The decrease of the loss in the last range of context lengths; None if there are fewer than 8 windows."""
        count, total, squares = self._gain.tolist()
        if count < 8:
            return None
        mean = total / count
        variance = max(0.0, squares / count - mean**2) * count / (count - 1)
        return ContextGain(mean, (variance / count) ** 0.5)


def context_ranges(block_size: int) -> list[tuple[int, int]]:
    """1, 2, 3 to 4, 5 to 8, …, up to `block_size` tokens; a remainder shorter than half a range joins the last one."""
    found, last = [], 0
    while last < block_size:
        until = max(1, 2 * last)
        if block_size < 1.5 * until:
            until = block_size
        found.append((last + 1, min(until, block_size)))
        last = found[-1][1]
    return found


def _positions(losses: Tensor) -> Tensor:
    return torch.arange(losses.size(1)).expand_as(losses)


def _groups(sums: Tensor) -> list[TokenGroup]:
    groups = [TokenGroup(token, int(count), nats) for token, (count, nats) in enumerate(sums.T.tolist()) if count]
    return sorted(groups, key=lambda group: -group.nats)
