"""Linear layers for decoding, with weights packed for the fastest kernel of the device.

For one row the time is that of reading the weights, for many rows it is arithmetic. Every layer maps rows (N, in) to
(N, out) in one dtype, independent of the dtype of its weights. On a CPU that is float32: half precision is only for the
matrix products, while norms, attention (whose kernel is several times slower in half precision) and the residual stream
stay in float32.

Measured with two threads (AVX-512, torch 2.15), µs for a matrix of 1536 x 384, one of many:

    rows    MKL, float32    oneDNN packed, float32    the same, bfloat16    FBGEMM, float16    plain float16
    1                122                       135                    57                 30                  49
    4                271                        90                    53                 48                 169
    16               345                       157                    94                126                 303
    64               679                       418                   243                421                 658

and of 512 x 128, where call overhead dominates: 7, 16, 19, 13, 12 for one row, 69, 56, 45, 58, 93 for 64.
FBGEMM takes 10 to 20 ns to pack a weight: 0.1 s for 10M parameters and 2 s for GPT-2, as much as it saves in 1,000
tokens of one sample.
"""

from abc import ABC, abstractmethod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

LARGE = 100_000  # weights of a matrix; below, the call overhead of other kernels (up to 20 µs) exceeds the gain


class PackedLinear(Protocol):
    """x → x W + b."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def write_to(self, out: Tensor, x: Tensor) -> None:
        """out = x W + b"""

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """out += x W + b"""


class PlainLinear:
    """In the dtype of its weights, with torch's usual kernels."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        # with (in, out) MKL multiplies a float32 row 1.7 times as fast; other kernels prefer (out, in)
        transposed = weight.device.type == "cpu" and weight.dtype == torch.float32
        self.weight = weight.t().contiguous() if transposed else weight.t()
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.weight) if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def write_to(self, out: Tensor, x: Tensor) -> None:
        if self.bias is None:
            torch.mm(x, self.weight, out=out)
        else:
            torch.addmm(self.bias, x, self.weight, out=out)

    def add_to(self, out: Tensor, x: Tensor) -> None:
        if self.bias is not None:
            out.add_(self.bias)
        out.addmm_(x, self.weight)


class _Float32Linear(ABC):
    """From and to float32, for any dtype of `_multiply`."""

    @abstractmethod
    def _multiply(self, x: Tensor) -> Tensor: ...

    def __call__(self, x: Tensor) -> Tensor:
        return self._multiply(x).float()

    def write_to(self, out: Tensor, x: Tensor) -> None:
        out.copy_(self._multiply(x))

    def add_to(self, out: Tensor, x: Tensor) -> None:
        out.add_(self._multiply(x))


class CastLinear(_Float32Linear):
    """Weights in another dtype, with torch's usual kernels."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)

    def _multiply(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class OneDnnLinear(_Float32Linear):
    """Weights in oneDNN's packed layout, in float32 or bfloat16: for several rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, rows: int) -> None:
        self.dtype = dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), rows)
        self.bias = None if bias is None else bias.to(dtype)

    def _multiply(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, "none", [], "")
        return y


class HalfLinear(_Float32Linear):
    """Weights in plain float16: one row in float16, accumulated in float32; several rows in float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight.half()
        self.bias = bias

    def _multiply(self, x: Tensor) -> Tensor:
        if x.size(0) > 1:  # the prompt: several rows are ten times slower in float16
            return F.linear(x, self.weight.float(), self.bias)
        y = F.linear(x.half(), self.weight)
        return y if self.bias is None else y + self.bias


class FbgemmLinear(_Float32Linear):
    """Weights in float16, packed by FBGEMM, with float32 arithmetic: for a few rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def _multiply(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        return y


def pack_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, rows: int) -> PackedLinear:
    """Pack a layer of a block.

    Args:
        weight: (out, in), float32.
        dtype: of the weights; on a CPU, inputs and outputs are float32 in any case.
        rows: per decoded token.
    """
    if weight.device.type != "cpu":
        return PlainLinear(weight.to(dtype), None if bias is None else bias.to(dtype))
    large = weight.numel() >= LARGE
    if dtype == torch.float16 and large:
        return FbgemmLinear(weight, bias) if rows > 1 else HalfLinear(weight, bias)
    if dtype == torch.bfloat16 and not can_pack(dtype):
        return CastLinear(weight, bias, dtype)
    if dtype == torch.bfloat16 or (rows > 1 and large and can_pack(dtype)):
        return OneDnnLinear(weight, bias, dtype, rows)
    return PlainLinear(weight, bias)


def pack_head(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, rows: int) -> PackedLinear:
    """Pack the head; in half precision with centred logits, which changes no probability but reduces rounding errors.

    Near 100, as the logits of GPT-2 are, the rounding error is 0.03 in float16 and 0.25 in bfloat16. On a CPU the head
    is float32 rather than bfloat16, which is hardly slower.
    """
    if weight.device.type == "cpu" and dtype == torch.bfloat16:
        dtype = torch.float32
    if dtype != torch.float32:
        weight, bias = weight - weight.mean(0), None if bias is None else bias - bias.mean()
    return pack_linear(weight, bias, dtype, rows)


def has_float16_linear() -> bool:
    """Whether torch has kernels for float16 weights on this CPU (x86 with AVX2)."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN supports packed weights of this dtype on this CPU."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
