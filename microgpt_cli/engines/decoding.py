"""The next token's logits from a key/value cache: the model's weights prepared once, `prefill`, `decode_one_token`.

The small functions are those of gpt-fast (Meta, 2023). What a token costs is the number of operations for a small model
and the bytes of its weights for a large one, so: matrices lie in memory as they are multiplied fastest (`products.py`),
what a norm has learnt is taken into the matrix after it, keys and values have their place from the start, and what
doesn't depend on the token (views, positions) is made once. No gradient is kept; under `torch.inference_mode` it is
faster still.

Shapes as in `gpt.py`; rows of products are (B·T, …), the samples one after the other. Logits are those of the model but
for an amount common to all tokens (`products.pack_head`).
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
    """All of a model's weights, prepared. They do not follow the model when it learns."""

    n_head: int
    token_embedding: Tensor  # (V, C)
    prev_token_bias: Tensor | None  # (V + 1, C): what a token adds to the one after it; of none, the last row, nothing
    position_embedding: Tensor | None  # (block_size, C)
    rotary_matrices: Tensor | None  # (block_size, D, D): rotary positions as matrices
    qk_norm: Norm | None  # of each head's D numbers
    activation: Callable[[Tensor], Tensor]
    layers: list[Layer]
    ln_f: Norm
    lm_head: PackedLinear


def prepare(model: GPT, dtype: torch.dtype, num_samples: int = 1) -> Weights:
    """The weights of a model for decoding.

    Args:
        model: on its device.
        dtype: of the products; on a CPU the rest is float32 (see `products.py`).
        num_samples: how many will be decoded at once, about.
    """
    config, device = model.config, model.lm_head.weight.device
    inner = torch.float32 if device.type == "cpu" else dtype

    def product(layer: nn.Linear, norm: nn.Module | None = None) -> PackedLinear:
        return pack_linear(*fold_norm(norm, layer), dtype, num_samples)

    blocks = [block for block in model.blocks if isinstance(block, Block)]
    layers = [
        Layer(
            _norm(block.ln1, inner), product(block.attention.qkv, block.ln1), product(block.attention.proj),
            _norm(block.ln2, inner), product(block.mlp.fc, block.ln2), product(block.mlp.proj),
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
    """What a LayerNorm or RMSNorm does before its learnt gain and bias, without what a module costs at each call."""
    if isinstance(norm, nn.RMSNorm):
        assert norm.eps is not None
        return _rms_norm(norm.normalized_shape[0], norm.eps, norm.weight.device, dtype)
    assert isinstance(norm, nn.LayerNorm)
    shape, eps = list(norm.normalized_shape), norm.eps
    return lambda x: torch.layer_norm(x, shape, eps=eps)


def _rms_norm(size: int, eps: float, device: torch.device, dtype: torch.dtype) -> Norm:
    """x → x / sqrt(mean(x²) + eps), over the last `size` numbers."""
    if device.type != "cpu":
        return lambda x: torch.rms_norm(x, [size], None, eps)
    # torch's own takes 9 µs on a CPU, and these three calls 4
    nothing = torch.zeros((), dtype=dtype)
    root_size, least = size**0.5, torch.tensor((size * eps) ** 0.5, dtype=dtype)

    def norm(x: Tensor) -> Tensor:
        length = torch.hypot(torch.linalg.vector_norm(x, 2, -1, True), least)
        return torch.addcdiv(nothing, x, length, value=root_size)

    return norm


def rotary_matrices(rotary: Rotary) -> Tensor:
    """Matrices (T, D, D): a row times the t-th of them is the row turned for position t, in one product."""
    cos, sin = torch.diag_embed(rotary.cos), torch.diag_embed(rotary.sin)  # (T, D/2, D/2)
    return torch.cat((torch.cat((cos, sin), dim=-1), torch.cat((-sin, cos), dim=-1)), dim=-2)


@dataclass(frozen=True)
class Scratch:
    """Where queries, keys and values of T positions are worked out."""

    qkv: Tensor  # (B·T, 3C)
    qk: Tensor  # (B, T, 2H, D), of qkv
    q: Tensor  # (B, H, T, D), of qkv
    kv: Tensor  # (2, B, H, T, D), of qkv


@dataclass(frozen=True)
class PositionSlot:
    """What T positions from `start` on add to their tokens, and what each layer writes there and sees."""

    position_embedding: Tensor | None  # (B·T, C), or (1, C) for all samples
    rotary_matrices: Tensor | None  # (T, D, D)
    scratch: Scratch
    layers: list[tuple[Tensor, Tensor, Tensor]]  # where kv goes; keys and values (B, H, start + T, D)


class Cache:
    """Keys and values of `batch_size` samples at the first `positions`, in every layer."""

    def __init__(self, weights: Weights, batch_size: int, positions: int) -> None:
        C, H = weights.token_embedding.size(1), weights.n_head
        shape = (len(weights.layers), 2, batch_size, H, positions, C // H)
        self.weights = weights
        V = weights.token_embedding.size(0)
        # the tokens that were taken in, after one that stands for none
        self.tokens = torch.full((batch_size, positions + 1), V, device=weights.token_embedding.device)
        self.kv = weights.token_embedding.new_zeros(shape)  # (L, 2, B, H, positions, D)
        self._layers = [(kv, kv[0], kv[1]) for kv in self.kv]
        self._scratches: dict[int, Scratch] = {}
        self._slots: dict[tuple[int, int], PositionSlot] = {}

    def slot(self, start: int, T: int) -> PositionSlot:
        """Room for T tokens; it is kept, since the windows of a long text come back to it."""
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
    """Take in the first tokens (B, T) of every sample in one pass → logits (B, V) after the last."""
    B, T = idx.shape
    x = _through_blocks(weights, cache.slot(0, T), _embed(weights, cache, idx, 0))
    return weights.lm_head(weights.ln_f(x.view(B, T, -1)[:, -1]))


def decode_one_token(weights: Weights, cache: Cache, tokens: Tensor, position: int) -> Tensor:
    """One more token (B,) of every sample, at a position after those taken in → logits (B, V)."""
    x = _through_blocks(weights, cache.slot(position, 1), _embed(weights, cache, tokens[:, None], position))
    return weights.lm_head(weights.ln_f(x))


def _embed(weights: Weights, cache: Cache, idx: Tensor, start: int) -> Tensor:
    """Tokens (B, T), the first at position `start`, as vectors (B·T, C), without their positions."""
    x = weights.token_embedding.index_select(0, idx.reshape(-1))
    if weights.prev_token_bias is not None:
        end = start + idx.size(1)
        cache.tokens[:, start + 1 : end + 1] = idx
        x += weights.prev_token_bias.index_select(0, cache.tokens[:, start:end].reshape(-1))
    return x


def _through_blocks(weights: Weights, slot: PositionSlot, x: Tensor) -> Tensor:
    """What the blocks make of tokens as vectors (B·T, C), in place. Their keys and values are kept."""
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
        layer.proj.add_to(x, y.view_as(x) if one else y.transpose(1, 2).reshape_as(x))  # as a shape costs 2 µs
        layer.fc_proj.add_to(x, activation(layer.fc(layer.ln2(x))))
    return x
