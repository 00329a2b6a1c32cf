"""The fused kernels of a training step, in C: norm, attention, activation, sums (`layer_ops.c`, `attention.c`).

Everything but the matrix products. Each kernel makes one pass over memory, forward or backward; gradients of parameters
are accumulated in float32.

N rows (B · T), one per token; C channels, T positions, H heads, D head size.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._profiler import _RecordFunctionFast

from microgpt_cli.engines.cpu import build

DEFINES: dict[torch.dtype, list[str]] = {torch.float32: [], torch.bfloat16: ["BFLOAT16"]}
ACTIVATIONS = ("relu", "gelu", "relu2")  # in the order of the enum in activations.h
# The gradient of a small weight is summed over pieces of this many rows. With more rows MKL (float32) and oneDNN
# (bfloat16) split the sum among threads, so that the bits would depend on their number.
PIECE_ROWS = {torch.float32: 512, torch.bfloat16: 1024}
SMALL_WEIGHT = 65_536  # elements; for larger weights the pieces take 3% or more of a step
MAX_ATTENTION = 256  # positions; the attention weights are saved


class _Heads(ctypes.Structure):
    """As in attention.c."""

    _fields_ = (
        *((name, ctypes.c_long) for name in "BTHD"),
        *((name, ctypes.c_void_p) for name in ("bias", "cos", "sin")),
        ("eps", ctypes.c_float),
    )


@dataclass(frozen=True)
class Heads:
    """Parameters of the attention of one layer.

    Args:
        B, T, H, D: sizes.
        bias: of queries, keys and values (3C,).
        eps: of the norm of queries and keys; 0 for none.
        angles: cosines and sines (T, D/2) of the rotary positions.
    """

    B: int
    T: int
    H: int
    D: int
    bias: Tensor | None = None
    eps: float = 0.0
    angles: tuple[Tensor, Tensor] | None = None

    def as_c(self) -> _Heads:
        cosines, sines = self.angles or (None, None)
        given = address(self.bias), address(cosines), address(sines)
        return _Heads(self.B, self.T, self.H, self.D, *given, self.eps)


ADDRESS, LONG, FLOAT, INT, HEADS = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int, ctypes.POINTER(_Heads)
ARGUMENTS: dict[str, list[Any]] = {
    "norm": [ADDRESS] * 9 + [LONG, LONG, FLOAT, INT],
    "norm_backward": [ADDRESS] * 10 + [LONG, LONG, INT],
    "activate": [ADDRESS] * 3 + [LONG, LONG, INT],
    "add": [ADDRESS] * 2 + [LONG],
    "add_rows": [ADDRESS] * 2 + [LONG, LONG],
    "attention": [ADDRESS] * 3 + [HEADS],
    "attention_backward": [ADDRESS] * 4 + [HEADS],
}


ALLOCATING = ("norm_backward", "add_rows", "attention", "attention_backward")  # these return a status


class Kernels:
    """The kernels for one precision. They raise MemoryError if they can't allocate memory.

    Args:
        dtype: of the matrix products, their inputs and outputs, float32 or bfloat16.

    Raises:
        build.Unavailable: the kernels can't be compiled or loaded.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        libraries = {file: build.load(file, *DEFINES[dtype]) for file in ("layer_ops", "attention")}

        self.note = next((library.note for library in libraries.values() if library.note), "")  # for a person

        def function(name: str) -> Callable[..., None]:
            found = getattr(libraries["attention" if name.startswith("attention") else "layer_ops"].functions, name)
            found.argtypes, found.restype = ARGUMENTS[name], ctypes.c_int if name in ALLOCATING else None
            mark = _RecordFunctionFast(f"native::{name}")  # shown by the profiler

            def call(*arguments: Any) -> None:
                with mark:
                    build.check_status(found(*arguments))

            return call

        self._norm, self._norm_backward = function("norm"), function("norm_backward")
        self._attention, self._attention_backward = function("attention"), function("attention_backward")
        self._activate, self._add, self._add_rows = function("activate"), function("add"), function("add_rows")

    def norm(
        self,
        x: Tensor,
        more: Tensor | None,
        more_bias: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        is_centred: bool,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """total = x + more + more_bias (N, C), float32; its norm, in dtype; tensors for the backward pass."""
        N, C = x.shape
        total = x if more is None else torch.empty_like(x)
        y, mean, rstd = torch.empty(N, C, dtype=self.dtype), torch.empty(N), torch.empty(N)
        given = address(x), address(more), address(more_bias), address(total), address(weight), address(bias)
        self._norm(*given, address(y), address(mean), address(rstd), N, C, eps, is_centred)
        return total, y, (total, mean, rstd)

    def norm_backward(
        self,
        dy: Tensor,
        dtotal: Tensor | None,
        kept: tuple[Tensor, ...],
        weight: Tensor,
        weight_grad: Tensor,
        bias_grad: Tensor | None,
        is_centred: bool,
    ) -> tuple[Tensor, Tensor]:
        """The gradient of `total`, in float32 and in dtype: `dtotal` plus the gradient through the norm."""
        total, mean, rstd = kept
        N, C = total.shape
        dx = torch.empty_like(total)
        rounded = dx if self.dtype == torch.float32 else torch.empty_like(dx, dtype=self.dtype)
        given = address(dy), address(dtotal), address(total), address(mean), address(rstd), address(weight)
        grads = address(weight_grad), address(bias_grad)
        self._norm_backward(*given, address(dx), address(rounded), *grads, N, C, is_centred)
        return dx, rounded

    def attention(self, qkv: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
        """Queries, keys and values (N, 3C) → softmax(q k' / sqrt(D)) v of each head (N, C), and the weights."""
        N, C = len(qkv), heads.H * heads.D
        y, weights = qkv.new_empty(N, C), qkv.new_empty(heads.B, heads.H, heads.T, heads.T)
        self._attention(address(qkv), address(y), address(weights), heads.as_c())
        return y, weights

    def attention_backward(self, dy: Tensor, qkv: Tensor, weights: Tensor, heads: Heads) -> Tensor:
        """dy (N, C) → the gradient of qkv (N, 3C)."""
        dqkv = torch.empty_like(qkv)
        self._attention_backward(address(dy), address(qkv), address(weights), address(dqkv), heads.as_c())
        return dqkv

    def activate(self, kind: str, x: Tensor, bias: Tensor | None) -> Tensor:
        """The activation of x + bias (N, C). x is overwritten by the derivative."""
        y = torch.empty_like(x)
        self._activate(address(x), address(bias), address(y), *y.shape, ACTIVATIONS.index(kind))
        return y

    def add_product(self, dy: Tensor, x: Tensor, sums: Tensor) -> None:
        """Add dy' x, for dy (N, out) and x (N, in), to float32 sums (out, in)."""
        if sums.numel() > SMALL_WEIGHT:
            self.add(dy.mT @ x, sums)
            return
        rows = PIECE_ROWS[self.dtype]
        for some_dy, some_x in zip(dy.split(rows), x.split(rows), strict=True):
            if self.dtype == torch.float32:
                sums.addmm_(some_dy.mT, some_x)
            else:
                self.add(some_dy.mT @ some_x, sums)

    def add(self, x: Tensor, sums: Tensor) -> None:
        """Add x to float32 sums of the same shape."""
        self._add(address(x), address(sums), x.numel())

    def add_rows(self, x: Tensor, sums: Tensor) -> None:
        """Add the sum of the rows of x (N, C) to float32 sums (C,)."""
        self._add_rows(address(x), address(sums), *x.shape)


def address(x: Tensor | None) -> int | None:
    """The address of a contiguous tensor; None for None."""
    if x is None:
        return None
    assert x.is_contiguous()
    return x.data_ptr()
