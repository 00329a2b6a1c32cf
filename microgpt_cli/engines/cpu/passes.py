"""What stands between the matrix products of a block, forward and backward: norm, attention, activation, sums of rows.

On a CPU such passes over the data, and not the products, are half of what a step of a small model costs. `TorchPasses`
says what they are; `NativePasses` makes them in C, each in one visit to the memory (`native/`), in a third of the time,
and those of `arch=modern` too.

Products are in `dtype`, float32 or bfloat16, and so is what they are given and give; what runs along the blocks, and
gradients of parameters, are float32. In C, a product comes without its bias: the pass after it adds that.

B batch, T time (positions), C n_embd, H heads, D head size (C / H); N = B · T rows, one a token.
"""

import ctypes
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._profiler import _RecordFunctionFast

from microgpt_cli.config import ModelConfig
from microgpt_cli.engines.cpu import build
from microgpt_cli.model.layers import LONGEST_SCORES, QK_NORM_EPS, CausalSelfAttention

aten = torch.ops.aten
# Products of so many rows at most are summed one after another for the gradient of a small weight. Of more rows MKL
# (float32) and oneDNN (bfloat16) let threads sum a part each, and then the bits depend on the number of threads.
PIECE_ROWS = {torch.float32: 512, torch.bfloat16: 1024}
SMALL_WEIGHT = 65_536  # numbers; of larger ones the pieces cost 3% of a step and more
Biased = tuple[Tensor, Tensor | None]  # a product, and the bias that is still to be added


class Passes(ABC):
    """The passes of a training step. `kept` is what a pass backward needs of the one forward."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    @staticmethod
    @abstractmethod
    def serve(config: ModelConfig) -> bool:
        """Whether models of this kind can be trained with them."""

    @abstractmethod
    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Biased:
        """x weight' (N, out)."""

    @abstractmethod
    def norm(self, layer: Any, x: Tensor, more: Biased | None) -> tuple[Tensor, Tensor, Any]:
        """x + more (N, C), float32; the norm of that, in dtype; kept. `layer` is LayerNorm or RMSNorm."""

    @abstractmethod
    def norm_backward(self, layer: Any, kept: Any, dy: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
        """dx (N, C), the gradient that x has from elsewhere, and what comes through the norm; the same in dtype.

        Adds to the gradients of weight and bias, and may write to dx.
        """

    @abstractmethod
    def attention(self, layer: CausalSelfAttention, qkv: Tensor, T: int) -> tuple[Tensor, Any]:
        """Queries, keys, values (N, 3C) → softmax(q k' / sqrt(D)) v of each head, none looking ahead (N, C); kept."""

    @abstractmethod
    def attention_backward(self, layer: CausalSelfAttention, kept: Any, dy: Tensor) -> Tensor:
        """dy (N, C) → (N, 3C)."""

    @abstractmethod
    def activate(self, kind: str, x: Biased) -> tuple[Tensor, Any]:
        """The activation of this name, (N, 4C); kept. May write to x."""

    @abstractmethod
    def activate_backward(self, kind: str, kept: Any, dy: Tensor) -> Tensor:
        """dy (N, 4C), which may be written to → dx."""

    @abstractmethod
    def add(self, x: Tensor, sums: Tensor) -> None:
        """Add x to sums of its shape, float32."""

    @abstractmethod
    def add_rows(self, x: Tensor, sums: Tensor) -> None:
        """Add the sum of the rows of x (N, C) to sums (C), float32."""

    def add_product(self, dy: Tensor, x: Tensor, sums: Tensor) -> None:
        """Add dy' x, of dy (N, out) and x (N, in), to sums (out, in), float32."""
        if sums.numel() > SMALL_WEIGHT:
            self.add(dy.mT @ x, sums)
            return
        rows = PIECE_ROWS[self.dtype]
        for some_dy, some_x in zip(dy.split(rows), x.split(rows), strict=True):
            if self.dtype == torch.float32:
                sums.addmm_(some_dy.mT, some_x)
            else:
                self.add(some_dy.mT @ some_x, sums)


class TorchPasses(Passes):
    """In torch, for the article's kind and GPT-2's."""

    @staticmethod
    def serve(config: ModelConfig) -> bool:
        usual = config.position == "learned" and config.norm == "layernorm" and config.activation in ("relu", "gelu")
        return usual and not (config.qk_norm or config.token_shift) and NativePasses.serve(config)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Biased:
        return F.linear(x, weight, None if bias is None else bias.to(self.dtype)), None

    def norm(self, layer: Any, x: Tensor, more: Biased | None) -> tuple[Tensor, Tensor, Any]:
        if more is not None:
            x = x + more[0]
        y, mean, rstd = torch.native_layer_norm(x, layer.weight.shape, layer.weight, layer.bias, layer.eps)
        return x, y.to(self.dtype), (x, mean, rstd)

    def norm_backward(self, layer: Any, kept: Any, dy: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
        (x, mean, rstd), weight, bias = kept, layer.weight, layer.bias
        wanted = (True, True, bias is not None)
        through, dweight, dbias = aten.native_layer_norm_backward(
            dy.float(), x, weight.shape, mean, rstd, weight, bias, wanted
        )
        gradient(weight).add_(dweight)
        if bias is not None:
            gradient(bias).add_(dbias)
        dx = dx + through
        return dx, dx.to(self.dtype)

    def attention(self, layer: CausalSelfAttention, qkv: Tensor, T: int) -> tuple[Tensor, Any]:
        N, H = len(qkv), layer.n_head
        qkv = qkv.view(N // T, T, 3, H, -1).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
        q, k, v = qkv.flatten(1, 2)  # (B·H, T, D)
        ahead = torch.full((T, T), -math.inf, dtype=self.dtype).triu_(1)  # added to scores: nothing looks ahead
        weights = torch.baddbmm(ahead, q, k.mT, alpha=q.size(-1) ** -0.5).softmax(-1)  # (B·H, T, T)
        heads = (weights @ v).unflatten(0, (-1, H))  # (B, H, T, D)
        return heads.transpose(1, 2).reshape(N, -1), (q, k, v, weights)

    def attention_backward(self, layer: CausalSelfAttention, kept: Any, dy: Tensor) -> Tensor:
        q, k, v, weights = kept
        (BH, T, D), H = q.shape, layer.n_head
        dheads = dy.view(-1, T, H, D).transpose(1, 2).reshape(BH, T, D)
        dweights = dheads @ v.mT
        dscores = aten._softmax_backward_data(dweights, weights, -1, dweights.dtype)  # (B·H, T, T)
        dq, dk, dv = dqkv = torch.empty(3, BH, T, D, dtype=dy.dtype)
        torch.baddbmm(dq, dscores, k, beta=0, alpha=D**-0.5, out=dq)
        torch.baddbmm(dk, dscores.mT, q, beta=0, alpha=D**-0.5, out=dk)
        torch.bmm(weights.mT, dheads, out=dv)
        return dqkv.view(3, -1, H, T, D).permute(1, 3, 0, 2, 4).reshape(len(dy), -1)

    def activate(self, kind: str, x: Biased) -> tuple[Tensor, Any]:
        h, _ = x
        return (F.relu(h) if kind == "relu" else F.gelu(h, approximate="tanh")), h

    def activate_backward(self, kind: str, kept: Any, dy: Tensor) -> Tensor:
        if kind == "relu":
            return aten.threshold_backward(dy, kept, 0)  # type: ignore[no-any-return]
        return aten.gelu_backward(dy, kept, approximate="tanh")  # type: ignore[no-any-return]

    def add(self, x: Tensor, sums: Tensor) -> None:
        sums.add_(x)

    def add_rows(self, x: Tensor, sums: Tensor) -> None:
        sums.add_(x.sum(0))


class _Heads(ctypes.Structure):
    """As in attention.c."""

    _fields_ = (
        *((name, ctypes.c_long) for name in "BTHD"),
        *((name, ctypes.c_void_p) for name in ("bias", "cosines", "sines")),
        ("eps", ctypes.c_float),
    )


ADDRESS, LONG, FLOAT, INT, HEADS = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int, ctypes.POINTER(_Heads)
ARGUMENTS: dict[str, list[Any]] = {
    "norm": [ADDRESS] * 9 + [LONG, LONG, FLOAT, INT],
    "norm_backward": [ADDRESS] * 9 + [LONG, LONG, INT],
    "activate": [ADDRESS] * 3 + [LONG, LONG, INT],
    "add": [ADDRESS] * 2 + [LONG],
    "add_rows": [ADDRESS] * 2 + [LONG, LONG],
    "attention": [ADDRESS] * 3 + [HEADS],
    "attention_backward": [ADDRESS] * 4 + [HEADS],
}
KINDS = ("relu", "gelu", "relu2")  # by their number in passes.c


class NativePasses(Passes):
    """In C.

    Raises:
        library.Unavailable: there is no compiler, or it fails.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        defines = ["BFLOAT16"] if dtype == torch.bfloat16 else []
        made = {file: build.load(file, *defines) for file in ("passes", "attention")}

        def function(name: str) -> Callable[..., None]:
            found = getattr(made["attention" if name.startswith("attention") else "passes"], name)
            found.argtypes, found.restype = ARGUMENTS[name], None
            mark = _RecordFunctionFast(f"native::{name}")  # so that a profiler sees it

            def call(*arguments: Any) -> None:
                with mark:
                    found(*arguments)

            return call

        self._norm, self._norm_backward = function("norm"), function("norm_backward")
        self._attention, self._attention_backward = function("attention"), function("attention_backward")
        self._activate, self._add, self._add_rows = function("activate"), function("add"), function("add_rows")

    @staticmethod
    def serve(config: ModelConfig) -> bool:
        return not config.dropout and config.block_size <= LONGEST_SCORES

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Biased:
        return F.linear(x, weight), bias

    def norm(self, layer: Any, x: Tensor, more: Biased | None) -> tuple[Tensor, Tensor, Any]:
        (N, C), centred = x.shape, isinstance(layer, torch.nn.LayerNorm)
        product, bias = more if more is not None else (None, None)
        total = x if product is None else torch.empty_like(x)
        y, mean, rstd = torch.empty(N, C, dtype=self.dtype), torch.empty(N), torch.empty(N)
        own = _at(layer.weight), _at(getattr(layer, "bias", None))
        self._norm(
            _at(x), _at(product), _at(bias), _at(total), *own, _at(y), _at(mean), _at(rstd), N, C, layer.eps, centred
        )
        return total, y, (total, mean, rstd)

    def norm_backward(self, layer: Any, kept: Any, dy: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
        (N, C), centred, bias = dx.shape, isinstance(layer, torch.nn.LayerNorm), getattr(layer, "bias", None)
        rounded = dx if self.dtype == torch.float32 else torch.empty_like(dx, dtype=self.dtype)
        grads = _at(gradient(layer.weight)), _at(None if bias is None else gradient(bias))
        self._norm_backward(_at(dy), *map(_at, kept), _at(layer.weight), _at(dx), _at(rounded), *grads, N, C, centred)
        return dx, rounded

    def attention(self, layer: CausalSelfAttention, qkv: Tensor, T: int) -> tuple[Tensor, Any]:
        N, C, H = len(qkv), qkv.size(1) // 3, layer.n_head
        y, weights = qkv.new_empty(N, C), qkv.new_empty(N // T, H, T, T)
        heads = _Heads(N // T, T, H, C // H, _at(layer.qkv.bias), eps=QK_NORM_EPS if layer.qk_norm else 0)
        if layer.rotary is not None:
            heads.cosines, heads.sines = _at(layer.rotary.cos), _at(layer.rotary.sin)
        self._attention(_at(qkv), _at(y), _at(weights), heads)
        return y, (qkv, weights, heads)

    def attention_backward(self, layer: CausalSelfAttention, kept: Any, dy: Tensor) -> Tensor:
        qkv, weights, heads = kept
        dqkv = torch.empty_like(qkv)
        self._attention_backward(_at(dy), _at(qkv), _at(weights), _at(dqkv), heads)
        return dqkv

    def activate(self, kind: str, x: Biased) -> tuple[Tensor, Any]:
        y = torch.empty_like(x[0])
        self._activate(_at(x[0]), _at(x[1]), _at(y), *y.shape, KINDS.index(kind))
        return y, x[0]  # which now holds the slopes

    def activate_backward(self, kind: str, kept: Any, dy: Tensor) -> Tensor:
        return dy.mul_(kept)

    def add(self, x: Tensor, sums: Tensor) -> None:
        self._add(_at(x), _at(sums), x.numel())

    def add_rows(self, x: Tensor, sums: Tensor) -> None:
        self._add_rows(_at(x), _at(sums), *x.shape)


def _at(x: Tensor | None) -> int | None:
    """Where a tensor's numbers are; nowhere, if there is none."""
    if x is None:
        return None
    assert x.is_contiguous()
    return x.data_ptr()


def gradient(parameter: Any) -> Tensor:
    """The gradient of a parameter that has one."""
    found: Tensor = parameter.grad
    return found
