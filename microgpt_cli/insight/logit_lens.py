"""Inside one forward pass: where every head looks, and what every layer would say next.

The attention is computed from the model's own queries and keys, beside the pass and not woven into it. A layer's guess
is the model's last norm and head on what that layer left in the residual ("logit lens", nostalgebraist, 2020).

L layers, H heads, T positions, V vocabulary, K guesses.
"""

import base64
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from microgpt_cli.model.gpt import GPT
from microgpt_cli.model.layers import Block, CausalSelfAttention


@dataclass(frozen=True)
class Guess:
    """What one layer expects after each position."""

    tokens: Tensor  # (T, K) ids, the likeliest first
    probs: Tensor  # (T, K)
    entropy: Tensor  # (T,) nats, of the whole distribution
    losses: Tensor  # (T - 1,) nats: -log of the probability of the token that did come


@dataclass(frozen=True)
class Inside:
    """What was seen of one forward pass."""

    ids: Tensor  # (T,)
    attention: Tensor  # (L, H, T, T): from position (row) to position (column)
    guesses: list[Guess]  # L + 1: of the embedding, then after each block; the last is the model's own


@dataclass(frozen=True)
class Focus:
    """Where a head looks, on average over its positions: shares of its attention."""

    itself: float
    previous: float  # the token before
    first: float  # the first token of the context
    distance: float  # mean number of tokens back

    def name(self) -> str:
        """The one of the three that holds the most, where that is a third at least."""
        shares = {"previous": self.previous, "itself": self.itself, "first": self.first}
        best = max(shares, key=lambda key: shares[key])
        return best if shares[best] >= 1 / 3 else "spread"


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """How much each position takes from itself and each before it: softmax(q kᵀ / √D) with the future left out.

    Args:
        q, k: queries and keys (B, H, T, D), as `CausalSelfAttention.project` makes them.

    Returns:
        (B, H, T, T) in float32; rows sum to 1.
    """
    with torch.autocast(q.device.type, enabled=False):  # which would round the products to q's own precision
        scores = q.float() @ k.float().transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, T, T)
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(-1)


def attention_output(attention: CausalSelfAttention, x: Tensor) -> Tensor:
    """What `attention(x)` gives, (B, T, C), by way of `attention_weights`: the check that these are its own."""
    q, k, v = attention.project(x)
    return attention.merge((attention_weights(q, k) @ v.float()).to(v.dtype))


def guess(logits: Tensor, ids: Tensor, count: int) -> Guess:
    """The likeliest `count` tokens after each position, from logits (T, V) over the tokens `ids` (T,)."""
    logits = logits.cpu().double()  # as the sampler has it
    logp = F.log_softmax(logits, dim=-1)  # (T, V)
    probs = logp.exp()
    best = probs.topk(min(count, probs.size(-1)), dim=-1)
    came = ids[1:].cpu().long()[:, None]  # (T - 1, 1)
    entropy = -(probs * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(-1)
    return Guess(best.indices, best.values, entropy, -logp[:-1].gather(1, came)[:, 0])


@torch.no_grad()
def look(model: GPT, ids: Tensor, count: int) -> Inside:
    """Run the model over the tokens `ids` (T,) and look into every layer.

    Args:
        model: in eval mode.
        ids: at least one token and at most `block_size`, on the model's device.
        count: K, how many guesses to keep of each layer and position.
    """
    attention, guesses = [], []
    x = model.embed(ids[None].long())  # (1, T, C)
    guesses.append(guess(model.lm_head(model.ln_f(x))[0], ids, count))
    for block in model.blocks:
        assert isinstance(block, Block)
        q, k, _ = block.attention.project(block.ln1(x))
        attention.append(attention_weights(q, k)[0].cpu())  # (H, T, T)
        x = block(x)
        guesses.append(guess(model.lm_head(model.ln_f(x))[0], ids, count))
    return Inside(ids.cpu(), torch.stack(attention), guesses)


def focus(weights: Tensor) -> Focus | None:
    """Where a head (T, T) looks; over the positions from the third on, which have three to tell apart."""
    T = weights.size(-1)
    if T < 3:
        return None
    rows = weights[2:]  # (T - 2, T)
    back = torch.arange(2, T)[:, None] - torch.arange(T)  # (T - 2, T)
    return Focus(
        itself=rows[back == 0].mean().item(),
        previous=rows[back == 1].mean().item(),
        first=rows[:, 0].mean().item(),
        distance=(rows * back.clamp(min=0)).sum(-1).mean().item(),
    )


def packed(attention: Tensor) -> bytes:
    """Attention (L, H, T, T) as bytes: of each head the lower triangle, row by row; 255 · √share: most are small."""
    rows, columns = torch.tril_indices(attention.size(-2), attention.size(-1))
    return (attention[..., rows, columns].sqrt() * 255).round().to(torch.uint8).numpy().tobytes()


def to_json(seen: Inside, name: Callable[[int], str]) -> dict[str, Any]:
    """All of it for a page: numbers of four digits, the attention packed and in base64, names of the tokens in it."""
    guesses = [
        {
            "tokens": guess.tokens.tolist(),
            "probs": _rounded(guess.probs),
            "entropy": _rounded(guess.entropy),
            "losses": _rounded(guess.losses),
        }
        for guess in seen.guesses
    ]
    used = {*seen.ids.tolist(), *(token for guess in seen.guesses for token in guess.tokens.unique().tolist())}
    found = [[focus(head) for head in layer] for layer in seen.attention]
    return {
        "ids": seen.ids.tolist(),
        "names": {str(token): name(token) for token in sorted(used)},
        "layers": seen.attention.size(0),
        "heads": seen.attention.size(1),
        "attention": base64.b64encode(packed(seen.attention)).decode(),
        "focus": [[head and asdict(head) | {"name": head.name()} for head in layer] for layer in found],
        "guesses": guesses,
    }


def _rounded(values: Tensor) -> Any:
    return (values * 10_000).round().div(10_000).tolist()
