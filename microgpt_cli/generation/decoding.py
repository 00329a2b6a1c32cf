"""The next token's logits from a key/value cache: the model's weights prepared once, `prefill`, `decode_one_token`.

The small functions are those of gpt-fast (Meta, 2023). What a token costs is the number of operations for a small model
and the bytes of its weights for a large one, so: products lie in memory as one row wants them, keys and values have
their place from the start, and what doesn't depend on the token (views, positions) is made once. No gradient is kept;
under `torch.inference_mode` it is faster still.

Shapes as in `gpt.py`; rows of products are (B·T, …), the samples one after the other.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microgpt_cli.model.gpt import GPT
from microgpt_cli.model.layers import ACTIVATIONS, Block, Rotary

QK_NORM_EPS = 1e-6  # as in layers.py


class Product:
    """x → x W + b on rows, the matrix turned so that one row is multiplied as fast as memory gives the weights."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        weight = layer.weight.detach().to(dtype)
        # MKL multiplies a float32 row 1.7 times as fast by (in, out); the half-precision kernels want (out, in)
        self.weight = weight.t().contiguous() if _is_cpu_float32(weight) else weight.t()
        self.bias = None if layer.bias is None else layer.bias.detach().to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.weight) if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def into(self, out: Tensor, x: Tensor) -> None:
        """out = x W + b"""
        if self.bias is None:
            torch.mm(x, self.weight, out=out)
        else:
            torch.addmm(self.bias, x, self.weight, out=out)

    def added_to(self, out: Tensor, x: Tensor) -> None:
        """out += x W + b"""
        if self.bias is not None:
            out.add_(self.bias)
        out.addmm_(x, self.weight)


class HalfProduct:
    """The same in float32, by weights that are kept in float16: half of the bytes to read (FBGEMM, on x86)."""

    def __init__(self, layer: nn.Linear) -> None:
        bias = None if layer.bias is None else layer.bias.detach()
        self.packed = torch.ops.quantized.linear_prepack_fp16(layer.weight.detach(), bias)

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        return y

    def into(self, out: Tensor, x: Tensor) -> None:
        out.copy_(self(x))

    def added_to(self, out: Tensor, x: Tensor) -> None:
        out.add_(self(x))


AnyProduct = Product | HalfProduct
Norm = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """The weights of one block."""

    ln1: Norm
    qkv: AnyProduct
    proj: AnyProduct
    ln2: Norm
    fc: AnyProduct
    fc_proj: AnyProduct


@dataclass(frozen=True)
class Weights:
    """All of a model's weights, prepared. They do not follow the model when it learns."""

    block_size: int
    n_head: int
    token_embedding: Tensor  # (V, C)
    shifted: Tensor | None  # (V + 1, C): what a token adds to the one after it; of none, the last row, nothing
    position_embedding: Tensor | None  # (block_size, C)
    turns: Tensor | None  # (block_size, D, D): rotary positions as matrices
    qk_norm: bool
    activation: Callable[[Tensor], Tensor]
    layers: list[Layer]
    ln_f: Norm
    lm_head: AnyProduct


def prepare(model: GPT, dtype: torch.dtype) -> Weights:
    """The weights of a model for decoding.

    Args:
        model: on its device.
        dtype: of weights and arithmetic; float16 on a CPU is of the weights alone (see `HalfProduct`).
    """
    config = model.config
    half = dtype == torch.float16 and model.lm_head.weight.device.type == "cpu"
    inner = torch.float32 if half else dtype

    def product(layer: nn.Linear) -> AnyProduct:
        return HalfProduct(layer) if half else Product(layer, inner)

    blocks = [block for block in model.blocks if isinstance(block, Block)]
    layers = [
        Layer(
            _norm(block.ln1, inner), product(block.attention.qkv), product(block.attention.proj),
            _norm(block.ln2, inner), product(block.mlp.fc), product(block.mlp.proj),
        )
        for block in blocks
    ]  # fmt: skip
    embedding = model.token_embedding_table.weight.detach()
    learned, rotary = config.position == "learned", blocks[0].attention.rotary
    return Weights(
        block_size=config.block_size,
        n_head=config.n_head,
        token_embedding=embedding.to(inner),
        shifted=F.pad(model.token_shift.share.detach() * embedding, (0, 0, 0, 1)).to(inner)
        if config.token_shift
        else None,
        position_embedding=model.position_embedding_table.weight.detach().to(inner) if learned else None,
        turns=None if rotary is None else turns(rotary).to(inner),
        qk_norm=config.qk_norm,
        activation=ACTIVATIONS[config.activation],
        layers=layers,
        ln_f=_norm(model.ln_f, inner),
        lm_head=product(model.lm_head),
    )


def has_half_products() -> bool:
    """Can this CPU multiply by weights kept in float16?"""
    return "fbgemm" in torch.backends.quantized.supported_engines


def _is_cpu_float32(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def _norm(norm: nn.Module, dtype: torch.dtype) -> Norm:
    """The function of a LayerNorm or RMSNorm, without what a module costs at each call."""
    shape: list[int] = list(norm.normalized_shape)  # type: ignore[arg-type]
    gain: Tensor = norm.weight.detach().to(dtype)  # type: ignore[operator]
    if isinstance(norm, nn.RMSNorm):
        eps = norm.eps
        return lambda x: torch.rms_norm(x, shape, gain, eps)
    assert isinstance(norm, nn.LayerNorm)
    bias = None if norm.bias is None else norm.bias.detach().to(dtype)
    return lambda x: torch.layer_norm(x, shape, gain, bias)


def turns(rotary: Rotary) -> Tensor:
    """Matrices (T, D, D): a row times the t-th of them is the row turned for position t, in one product."""
    cos, sin = torch.diag_embed(rotary.cos), torch.diag_embed(rotary.sin)  # (T, D/2, D/2)
    return torch.cat((torch.cat((cos, sin), dim=-1), torch.cat((-sin, cos), dim=-1)), dim=-2)


@dataclass(frozen=True)
class Place:
    """Where T positions from `start` on are worked out: scratch, and what each layer writes and sees."""

    position_embedding: Tensor | None  # (B·T, C)
    turns: Tensor | None  # (T, D, D)
    qkv: Tensor  # (B·T, 3C)
    qk: Tensor  # (B, T, 2H, D), of qkv
    q: Tensor  # (B, H, T, D), of qkv
    kv: Tensor  # (2, B, H, T, D), of qkv
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
        self._places: dict[tuple[int, int], Place] = {}

    def place(self, start: int, T: int) -> Place:
        """Room for T tokens; it is kept, since the windows of a long text come back to it."""
        if (start, T) not in self._places:
            self._places[start, T] = self._make_place(start, T)
        return self._places[start, T]

    def _make_place(self, start: int, T: int) -> Place:
        L, _, B, H, _, D = self.kv.shape
        weights = self.weights
        qkv = self.kv.new_empty(B * T, 3 * H * D)
        parts = qkv.view(B, T, 3, H, D)
        end = start + T
        return Place(
            position_embedding=None
            if weights.position_embedding is None
            else weights.position_embedding[start:end].repeat(B, 1),
            turns=None if weights.turns is None else weights.turns[start:end],
            qkv=qkv,
            qk=parts[:, :, :2].flatten(2, 3),
            q=parts[:, :, 0].transpose(1, 2),
            kv=parts[:, :, 1:].permute(2, 0, 3, 1, 4),
            layers=[
                (self.kv[layer, ..., start:end, :], self.kv[layer, 0, ..., :end, :], self.kv[layer, 1, ..., :end, :])
                for layer in range(L)
            ],
        )


def prefill(weights: Weights, cache: Cache, idx: Tensor) -> Tensor:
    """Take in the first tokens (B, T) of every sample in one pass → logits (B, V) after the last."""
    B, T = idx.shape
    x = _through_blocks(weights, cache.place(0, T), _embed(weights, cache, idx, 0), T)
    return weights.lm_head(weights.ln_f(x.view(B, T, -1)[:, -1]))


def decode_one_token(weights: Weights, cache: Cache, tokens: Tensor, position: int) -> Tensor:
    """One more token (B,) of every sample, at a position after those taken in → logits (B, V)."""
    x = _through_blocks(weights, cache.place(position, 1), _embed(weights, cache, tokens[:, None], position), 1)
    return weights.lm_head(weights.ln_f(x))


def _embed(weights: Weights, cache: Cache, idx: Tensor, start: int) -> Tensor:
    """Tokens (B, T), the first at position `start`, as vectors (B·T, C), without their positions."""
    x = weights.token_embedding.index_select(0, idx.reshape(-1))
    if weights.shifted is not None:
        end = start + idx.size(1)
        cache.tokens[:, start + 1 : end + 1] = idx
        x += weights.shifted.index_select(0, cache.tokens[:, start:end].reshape(-1))
    return x


def _through_blocks(weights: Weights, place: Place, x: Tensor, T: int) -> Tensor:
    """What the blocks make of tokens as vectors (B·T, C), in place. Their keys and values are kept."""
    if place.position_embedding is not None:
        x.add_(place.position_embedding)
    q, kv, causal, activation = place.q, place.kv, T > 1, weights.activation
    for layer, (here, keys, values) in zip(weights.layers, place.layers, strict=True):
        layer.qkv.into(place.qkv, layer.ln1(x))
        if weights.qk_norm:
            place.qk.copy_(torch.rms_norm(place.qk, place.qk.shape[-1:], None, QK_NORM_EPS))
        if place.turns is not None:
            place.qk.copy_(torch.matmul(place.qk, place.turns))
        here.copy_(kv)
        y = F.scaled_dot_product_attention(q, keys, values, is_causal=causal)  # (B, H, T, D)
        layer.proj.added_to(x, y.view(x.shape) if T == 1 else y.transpose(1, 2).reshape(x.shape))
        layer.fc_proj.added_to(x, activation(layer.fc(layer.ln2(x))))
    return x
