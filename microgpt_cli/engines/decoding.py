"""Decoding with a key/value cache: prepared weights, `prefill` and `decode_one_token`, as in gpt-fast (Meta, 2023).

The time per token depends on the number of operations for a small model and on the bytes of the weights for a large
one. Therefore matrices are packed for the fastest kernel (`linear.py`), the gain and bias of a norm are folded into the
next matrix, the cache is preallocated, and views and positions are computed once. No gradient is recorded;
`torch.inference_mode` makes it faster.

Shapes as in `gpt.py`; inputs of matrix products are (B·T, …), sample by sample. The logits equal those of the model up
to a constant common to all tokens (`linear.pack_head`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microgpt_cli.engines.linear import PackedLinear, pack_head, pack_linear
from microgpt_cli.model.gpt import GPT
from microgpt_cli.model.layers import ACTIVATIONS, QK_NORM_EPS, Block, Rotary

Norm = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """The weights of one block."""

    ln1: Norm
    qkv: PackedLinear
    proj: PackedLinear
    ln2: Norm
    fc: PackedLinear
    fc_proj: PackedLinear


@dataclass(frozen=True)
class Weights:
    """All weights of a model, prepared. A copy: further training does not change it."""

    n_head: int
    token_embedding: Tensor  # (V, C)
    prev_token_bias: Tensor | None  # (V + 1, C): added to the next token's embedding; the last row is zero, for none
    position_embedding: Tensor | None  # (block_size, C)
    rotary_matrices: Tensor | None  # (block_size, D, D)
    qk_norm: Norm | None  # over the D channels of each head
    activation: Callable[[Tensor], Tensor]
    layers: list[Layer]
    ln_f: Norm
    lm_head: PackedLinear


def prepare(model: GPT, dtype: torch.dtype, num_samples: int = 1) -> Weights:
    """Prepare the weights of a model for decoding.

    Args:
        model: on its device.
        dtype: of the matrix products; on a CPU the rest is float32 (see `linear.py`).
        num_samples: expected batch size.
    """
    config, device = model.config, model.lm_head.weight.device
    inner = torch.float32 if device.type == "cpu" else dtype

    def linear(layer: nn.Linear, norm: nn.Module | None = None) -> PackedLinear:
        return pack_linear(*fold_norm(norm, layer), dtype, num_samples)

    blocks = [block for block in model.blocks if isinstance(block, Block)]
    layers = [
        Layer(
            _norm(block.ln1, inner), linear(block.attention.qkv, block.ln1), linear(block.attention.proj),
            _norm(block.ln2, inner), linear(block.mlp.fc, block.ln2), linear(block.mlp.proj),
        )
        for block in blocks
    ]  # fmt: skip
    embedding = model.token_embedding_table.weight.detach()
    learned, rotary = config.position == "learned", blocks[0].attention.rotary
    return Weights(
        n_head=config.n_head,
        token_embedding=embedding.to(inner),
        prev_token_bias=F.pad(model.token_shift.share.detach() * embedding, (0, 0, 0, 1)).to(inner)
        if config.token_shift
        else None,
        position_embedding=model.position_embedding_table.weight.detach().to(inner) if learned else None,
        rotary_matrices=None if rotary is None else rotary_matrices(rotary).to(inner),
        qk_norm=_rms_norm(config.n_embd // config.n_head, QK_NORM_EPS, device, inner) if config.qk_norm else None,
        activation=ACTIVATIONS[config.activation],
        layers=layers,
        ln_f=_norm(model.ln_f, inner),
        lm_head=pack_head(*fold_norm(model.ln_f, model.lm_head), dtype, num_samples),
    )


def fold_norm(norm: nn.Module | None, layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight (out, in) and bias of a layer, with gain and bias of the norm before it, if there is one, folded in."""
    weight, gain = layer.weight.detach(), getattr(norm, "weight", None)
    return (weight if gain is None else weight * gain.detach()), folded_bias(norm, layer)


def folded_bias(norm: nn.Module | None, layer: nn.Linear) -> Tensor | None:
    """The bias of a layer, with that of the norm before it folded in."""
    bias: Tensor | None = None if layer.bias is None else layer.bias.detach()
    shift = getattr(norm, "bias", None)
    if shift is None:
        return bias
    shifted: Tensor = layer.weight.detach() @ shift.detach()
    return shifted if bias is None else bias + shifted


def _norm(norm: nn.Module, dtype: torch.dtype) -> Norm:
    """A LayerNorm or RMSNorm without gain and bias, as a plain function, which is faster to call than a module."""
    if isinstance(norm, nn.RMSNorm):
        assert norm.eps is not None
        return _rms_norm(norm.normalized_shape[0], norm.eps, norm.weight.device, dtype)
    assert isinstance(norm, nn.LayerNorm)
    shape, eps = list(norm.normalized_shape), norm.eps
    return lambda x: torch.layer_norm(x, shape, eps=eps)


def _rms_norm(size: int, eps: float, device: torch.device, dtype: torch.dtype) -> Norm:
    """x → x / sqrt(mean(x²) + eps), over the last dimension of this size."""
    if device.type != "cpu":
        return lambda x: torch.rms_norm(x, [size], None, eps)
    # torch.rms_norm takes 9 µs on a CPU, these three calls 4
    zero = torch.zeros((), dtype=dtype)
    root_size, least = size**0.5, torch.tensor((size * eps) ** 0.5, dtype=dtype)

    def norm(x: Tensor) -> Tensor:
        length = torch.hypot(torch.linalg.vector_norm(x, 2, -1, True), least)
        return torch.addcdiv(zero, x, length, value=root_size)

    return norm


def rotary_matrices(rotary: Rotary) -> Tensor:
    """Matrices (T, D, D): multiplication by the t-th one rotates a row for position t."""
    cos, sin = torch.diag_embed(rotary.cos), torch.diag_embed(rotary.sin)  # (T, D/2, D/2)
    return torch.cat((torch.cat((cos, sin), dim=-1), torch.cat((-sin, cos), dim=-1)), dim=-2)


@dataclass(frozen=True)
class Scratch:
    """Buffers for queries, keys and values of T positions."""

    qkv: Tensor  # (B·T, 3C)
    qk: Tensor  # (B, T, 2H, D), of qkv
    q: Tensor  # (B, H, T, D), of qkv
    kv: Tensor  # (2, B, H, T, D), of qkv


@dataclass(frozen=True)
class PositionSlot:
    """Position embeddings and views of the cache for T positions from `start` on."""

    position_embedding: Tensor | None  # (B·T, C), or (1, C) shared by all samples
    rotary_matrices: Tensor | None  # (T, D, D)
    scratch: Scratch
    layers: list[tuple[Tensor, Tensor, Tensor]]  # destination of kv; keys and values (B, H, start + T, D)


class Cache:
    """Keys and values of `batch_size` samples at the first `positions`, for every layer."""

    def __init__(self, weights: Weights, batch_size: int, positions: int) -> None:
        C, H = weights.token_embedding.size(1), weights.n_head
        shape = (len(weights.layers), 2, batch_size, H, positions, C // H)
        self.weights = weights
        V = weights.token_embedding.size(0)
        # the tokens so far, after V, which stands for none
        self.tokens = torch.full((batch_size, positions + 1), V, device=weights.token_embedding.device)
        self.kv = weights.token_embedding.new_zeros(shape)  # (L, 2, B, H, positions, D)
        self._layers = [(kv, kv[0], kv[1]) for kv in self.kv]
        self._scratches: dict[int, Scratch] = {}
        self._slots: dict[tuple[int, int], PositionSlot] = {}

    def slot(self, start: int, T: int) -> PositionSlot:
        """The slot for T tokens, cached, since the windows of a long text reuse it."""
        if (start, T) not in self._slots:
            self._slots[start, T] = self._make_slot(start, T)
        return self._slots[start, T]

    def _make_slot(self, start: int, T: int) -> PositionSlot:
        if T not in self._scratches:
            self._scratches[T] = self._make_scratch(T)
        weights, B, end = self.weights, self.kv.size(2), start + T
        positions = None if weights.position_embedding is None else weights.position_embedding[start:end]
        return PositionSlot(
            position_embedding=positions if positions is None or B == 1 or T == 1 else positions.repeat(B, 1),
            rotary_matrices=None if weights.rotary_matrices is None else weights.rotary_matrices[start:end],
            scratch=self._scratches[T],
            layers=[(kv[:, :, :, start:end], k[:, :, :end], v[:, :, :end]) for kv, k, v in self._layers],
        )

    def _make_scratch(self, T: int) -> Scratch:
        _, _, B, H, _, D = self.kv.shape
        qkv = self.kv.new_empty(B * T, 3 * H * D)
        parts = qkv.view(B, T, 3, H, D)
        return Scratch(
            qkv=qkv,
            qk=parts[:, :, :2].flatten(2, 3),
            q=parts[:, :, 0].transpose(1, 2),
            kv=parts[:, :, 1:].permute(2, 0, 3, 1, 4),
        )


def prefill(weights: Weights, cache: Cache, idx: Tensor) -> Tensor:
    """Process the first tokens (B, T) of every sample in one pass → logits (B, V) after the last."""
    B, T = idx.shape
    x = _through_blocks(weights, cache.slot(0, T), _embed(weights, cache, idx, 0))
    return weights.lm_head(weights.ln_f(x.view(B, T, -1)[:, -1]))


def decode_one_token(weights: Weights, cache: Cache, tokens: Tensor, position: int) -> Tensor:
    """Process the next token (B,) of every sample at this position → logits (B, V)."""
    x = _through_blocks(weights, cache.slot(position, 1), _embed(weights, cache, tokens[:, None], position))
    return weights.lm_head(weights.ln_f(x))


def _embed(weights: Weights, cache: Cache, idx: Tensor, start: int) -> Tensor:
    """Embed tokens (B, T), the first at position `start`, as vectors (B·T, C), without position embedding."""
    x = weights.token_embedding.index_select(0, idx.reshape(-1))
    if weights.prev_token_bias is not None:
        end = start + idx.size(1)
        cache.tokens[:, start + 1 : end + 1] = idx
        x += weights.prev_token_bias.index_select(0, cache.tokens[:, start:end].reshape(-1))
    return x


def _through_blocks(weights: Weights, slot: PositionSlot, x: Tensor) -> Tensor:
    """Apply the blocks to vectors (B·T, C), in place, and store their keys and values."""
    if slot.position_embedding is not None:
        x.add_(slot.position_embedding)
    qkv, qk, q, kv = slot.scratch.qkv, slot.scratch.qk, slot.scratch.q, slot.scratch.kv
    one, activation = q.size(2) == 1, weights.activation
    for layer, (here, keys, values) in zip(weights.layers, slot.layers, strict=True):
        layer.qkv.write_to(qkv, layer.ln1(x))
        if weights.qk_norm is not None:
            qk.copy_(weights.qk_norm(qk))
        if slot.rotary_matrices is not None:
            qk.copy_(torch.matmul(qk, slot.rotary_matrices))
        here.copy_(kv)
        y = F.scaled_dot_product_attention(q, keys, values, is_causal=not one)  # (B, H, T, D)
        layer.proj.add_to(
            x, y.view_as(x) if one else y.transpose(1, 2).reshape_as(x)
        )  # view_as is 2 µs faster than a shape
        layer.fc_proj.add_to(x, activation(layer.fc(layer.ln2(x))))
    return x
