"""Attention weights of every head and next-token predictions of every layer in one forward pass.

Attention weights are recomputed from the model's own queries and keys. The predictions of a layer are the model's final
norm and head applied to the residual stream after that layer ("logit lens", nostalgebraist, 2020).

L layers, H heads, T positions, V vocabulary, K predictions per position.
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
from microgpt_cli.model.layers import Block


@dataclass(frozen=True)
class Prediction:
    """The next-token predictions of one layer."""

    tokens: Tensor  # (T, K) ids, the most probable first
    probs: Tensor  # (T, K)
    entropy: Tensor  # (T,) nats, of the whole distribution
    losses: Tensor  # (T - 1,) nats, of the actual next token


@dataclass(frozen=True)
class LayerProbe:
    """Attention and predictions of all layers in one forward pass."""

    ids: Tensor  # (T,)
    attention: Tensor  # (L, H, T, T): from position (row) to position (column)
    predictions: list[Prediction]  # L + 1: of the embedding, then after each block; the last is the model's output


@dataclass(frozen=True)
class HeadPattern:
    """Where a head attends, as fractions of its attention averaged over positions."""

    itself: float
    previous: float  # the preceding token
    first: float  # the first token of the context
    distance: float  # mean number of tokens back

    def name(self) -> str:
        """The largest of the three fractions if it is at least a third, else "spread"."""
        shares = {"previous": self.previous, "itself": self.itself, "first": self.first}
        best = max(shares, key=lambda key: shares[key])
        return best if shares[best] >= 1 / 3 else "spread"


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """Causal attention weights, softmax(q kᵀ / √D) with later positions masked.

    Args:
        q, k: queries and keys (B, H, T, D), as `CausalSelfAttention.project` makes them.

    Returns:
        (B, H, T, T) in float32; rows sum to 1.
    """
    with torch.autocast(q.device.type, enabled=False):  # it would round the products to q's precision
        scores = q.float() @ k.float().transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, T, T)
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(-1)


def predict(logits: Tensor, ids: Tensor, count: int) -> Prediction:
    """The `count` most probable tokens after each position, from the logits (T, V) for the tokens `ids` (T,)."""
    logits = logits.cpu().double()  # as in sampling
    logp = F.log_softmax(logits, dim=-1)  # (T, V)
    probs = logp.exp()
    best = probs.topk(min(count, probs.size(-1)), dim=-1)
    targets = ids[1:].cpu().long()[:, None]  # (T - 1, 1)
    entropy = -(probs * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(-1)
    return Prediction(best.indices, best.values, entropy, -logp[:-1].gather(1, targets)[:, 0])


@torch.no_grad()
def probe_layers(model: GPT, ids: Tensor, count: int) -> LayerProbe:
    """Run the model on the tokens `ids` (T,) and record attention and predictions of every layer.

    Args:
        model: in eval mode.
        ids: at least one token and at most `block_size`, on the model's device.
        count: K, the number of predictions to keep for each layer and position.
    """
    attention, predictions = [], []
    x = model.embed(ids[None].long())  # (1, T, C)
    predictions.append(predict(model.lm_head(model.ln_f(x))[0], ids, count))
    for block in model.blocks:
        assert isinstance(block, Block)
        q, k, _ = block.attention.project(block.ln1(x))
        attention.append(attention_weights(q, k)[0].cpu())  # (H, T, T)
        x = block(x)
        predictions.append(predict(model.lm_head(model.ln_f(x))[0], ids, count))
    return LayerProbe(ids.cpu(), torch.stack(attention), predictions)


def head_pattern(weights: Tensor) -> HeadPattern | None:
    """Summarise the attention (T, T) of a head over the positions from the third on; None if there are fewer."""
    T = weights.size(-1)
    if T < 3:
        return None
    rows = weights[2:]  # (T - 2, T)
    back = torch.arange(2, T)[:, None] - torch.arange(T)  # (T - 2, T)
    return HeadPattern(
        itself=rows[back == 0].mean().item(),
        previous=rows[back == 1].mean().item(),
        first=rows[:, 0].mean().item(),
        distance=(rows * back.clamp(min=0)).sum(-1).mean().item(),
    )


def pack_attention(attention: Tensor) -> bytes:
    """Attention (L, H, T, T) as bytes 255 · √weight: the lower triangle of each head, row by row."""
    rows, columns = torch.tril_indices(attention.size(-2), attention.size(-1))
    return (attention[..., rows, columns].sqrt() * 255).round().to(torch.uint8).numpy().tobytes()


def to_json(probe: LayerProbe, name: Callable[[int], str]) -> dict[str, Any]:
    """The data of the page: numbers rounded to four decimals, the attention packed in base64, names of the tokens."""
    predictions = [
        {
            "tokens": layer.tokens.tolist(),
            "probs": _rounded(layer.probs),
            "entropy": _rounded(layer.entropy),
            "losses": _rounded(layer.losses),
        }
        for layer in probe.predictions
    ]
    used = {*probe.ids.tolist(), *(token for layer in probe.predictions for token in layer.tokens.unique().tolist())}
    found = [[head_pattern(head) for head in layer] for layer in probe.attention]
    return {
        "ids": probe.ids.tolist(),
        "names": {str(token): name(token) for token in sorted(used)},
        "layers": probe.attention.size(0),
        "heads": probe.attention.size(1),
        "attention": base64.b64encode(pack_attention(probe.attention)).decode(),
        "patterns": [[head and asdict(head) | {"name": head.name()} for head in layer] for layer in found],
        "predictions": predictions,
    }


def _rounded(values: Tensor) -> Any:
    return (values * 10_000).round().div(10_000).tolist()
