"""Where a model is surprised: the loss of every token of a text, added up by token, by what stood before, by position.

Nothing here grows with the text but what is asked for: the losses of its beginning and the worst places.
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

AT_ONCE = 1024  # tokens whose whole distributions are held at once, beside the logits
GUESSES = 3  # kept of each token that is shown


@dataclass(frozen=True)
class Piece:
    """Some windows of a text, predicted."""

    idx: Tensor  # (B, T') ids that were read
    targets: Tensor  # (B, T') ids that came next
    losses: Tensor  # (B, T') nats
    logits: Tensor  # (B, T', V) on the device


@torch.no_grad()
def token_losses(model: GPT, ids: Tensor, compute: Compute, batch_size: int) -> Iterator[Piece]:
    """Predict every id but the first over the windows that `evaluate` uses: the mean of these losses is its loss.

    Args:
        model: in eval mode.
        ids: (N,).
        batch_size: windows in a forward pass.
    """
    for idx, targets in windows(ids, batch_size, model.config.block_size):
        with compute.autocast():
            logits, _ = model(idx.to(compute.device))  # (B, T', V)
            losses = F.cross_entropy(logits.flatten(0, 1), targets.to(compute.device).flatten(), reduction="none")
        yield Piece(idx, targets, losses.view(idx.shape).float().cpu(), logits)


@dataclass(frozen=True)
class Group:
    """The tokens that have something in common."""

    token: int
    count: int
    nats: float  # of all of them

    @property
    def loss(self) -> float:
        return self.nats / self.count


@dataclass(frozen=True)
class Stretch:
    """A stretch of the context, from the token at `first` to the one at `last`, counted from 1 token read."""

    first: int
    last: int
    loss: float
    count: int


@dataclass(frozen=True)
class Gain:
    """What the last stretch of the context is worth beside the one before it, within the same windows."""

    nats: float
    error: float  # standard error of the mean over the windows


@dataclass
class Surprise:
    """What is known after some pieces of a text.

    Args:
        vocab_size: V.
        block_size: T.
        shown: of how many tokens from the beginning the losses and guesses are kept.
        worst: how many of the worst places are kept.
    """

    vocab_size: int
    block_size: int
    shown: int
    worst: int
    tokens: int = 0
    nats: float = 0.0
    losses: list[float] = field(default_factory=list)  # of the first tokens of the text but the very first
    guesses: list[tuple[list[int], list[float]]] = field(default_factory=list)  # ids and probabilities for each of them
    _worst: list[tuple[float, int, int]] = field(default_factory=list)  # a heap of (loss, -place, likeliest token)

    def __post_init__(self) -> None:
        V, T = self.vocab_size, self.block_size
        self._of_token = torch.zeros(2, V, dtype=torch.double)  # how many, nats
        self._after = torch.zeros(2, V, dtype=torch.double)
        self._at = torch.zeros(2, T, dtype=torch.double)
        self._gain = torch.zeros(3, dtype=torch.double)  # how many windows, sum, sum of squares

    def add(self, piece: Piece) -> None:
        """Take the next windows of the text."""
        losses = piece.losses.double()  # (B, T')
        for sums, keys in ((self._of_token, piece.targets), (self._after, piece.idx), (self._at, _positions(losses))):
            sums[0] += torch.bincount(keys.flatten(), minlength=sums.size(1))
            sums[1] += torch.bincount(keys.flatten(), losses.flatten(), minlength=sums.size(1))
        if losses.size(1) == self.block_size and self.block_size > 1:
            *_, (a, b), (c, d) = stretches(self.block_size)
            gain = losses[:, a - 1 : b].mean(1) - losses[:, c - 1 : d].mean(1)  # (B,)
            self._gain += torch.tensor([len(gain), gain.sum().item(), gain.square().sum().item()], dtype=torch.double)
        self._keep_worst(piece)
        wanted = min(self.shown - len(self.losses), losses.numel())
        if wanted > 0:
            self.losses += piece.losses.flatten()[:wanted].tolist()
            for logits in piece.logits.flatten(0, 1)[:wanted].split(AT_ONCE):
                best = logits.float().softmax(-1).topk(min(GUESSES, self.vocab_size), dim=-1)  # (AT_ONCE, GUESSES)
                self.guesses += zip(best.indices.tolist(), best.values.tolist(), strict=True)
        self.tokens += losses.numel()
        self.nats += losses.sum().item()

    def _keep_worst(self, piece: Piece) -> None:
        flat = piece.losses.flatten()
        found = flat.topk(min(self.worst, len(flat)))
        likeliest = piece.logits.flatten(0, 1)[found.indices.to(piece.logits.device)].argmax(-1).tolist()
        for loss, index, best in zip(found.values.tolist(), found.indices.tolist(), likeliest, strict=True):
            entry = (loss, -(self.tokens + index + 1), best)  # the first token of the text is not predicted
            if len(self._worst) < self.worst:
                heapq.heappush(self._worst, entry)
            else:
                heapq.heappushpop(self._worst, entry)

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    def places(self) -> list[tuple[int, float, int]]:
        """The worst places, worst first: place in the text, loss, the token that was expected there."""
        return [(-place, loss, best) for loss, place, best in sorted(self._worst, reverse=True)]

    def by_token(self) -> list[Group]:
        """Losses by the token that came, those first that cost the most in all."""
        return _groups(self._of_token)

    def by_context(self) -> list[Group]:
        """Losses by the token that was read last, those first after which the most was lost."""
        return _groups(self._after)

    def by_position(self) -> list[float | None]:
        """The mean loss after 1 token of context, after 2, … (T); None where nothing was predicted."""
        return [nats / count if count else None for count, nats in self._at.T.tolist()]

    def by_stretch(self) -> list[Stretch]:
        """The same over stretches that double."""
        found = []
        for first, last in stretches(self.block_size):
            count, nats = self._at[:, first - 1 : last].sum(1).tolist()
            if count:
                found.append(Stretch(first, last, nats / count, int(count)))
        return found

    def gain(self) -> Gain | None:
        """What the last doubling of the context still gives; None where too few windows were seen to say."""
        count, total, squares = self._gain.tolist()
        if count < 8:
            return None
        mean = total / count
        variance = max(0.0, squares / count - mean**2) * count / (count - 1)
        return Gain(mean, (variance / count) ** 0.5)


def stretches(block_size: int) -> list[tuple[int, int]]:
    """1, 2, 3 to 4, 5 to 8, …, up to `block_size` tokens of context; a rest shorter than half joins the last."""
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


def _groups(sums: Tensor) -> list[Group]:
    groups = [Group(token, int(count), nats) for token, (count, nats) in enumerate(sums.T.tolist()) if count]
    return sorted(groups, key=lambda group: -group.nats)
