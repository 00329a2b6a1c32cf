"""x → x W + b on rows, the weights kept as a device multiplies the most rows a second by them.

What one row costs is reading the weights, so the bytes count and how the kernel walks over them; for many rows it is
arithmetic. Every product here takes and gives rows (N, in) → (N, out) of one precision, whatever its weights are in.
On a CPU that is float32: half precision is for the weights and what is multiplied by them, while norms, attention
(whose kernel is several times as slow in half precision) and the sum of what the blocks add stay exact.

Measured with two threads (AVX-512, torch 2.15), µs for a matrix of 1536 x 384, one of many:

    rows    MKL, float32    oneDNN packed, float32    the same, bfloat16    FBGEMM, float16    float16 as it is
    1                122                       135                    57                 30                  49
    4                271                        90                    53                 48                 169
    16               345                       157                    94                126                 303
    64               679                       418                   243                421                 658

and of 512 x 128, where a call costs what is saved: 7, 16, 19, 13, 12 for one row, 69, 56, 45, 58, 93 for 64.
FBGEMM packs a weight in 10 to 20 ns: 0.1 s for 10M parameters and 2 s for GPT-2, what it saves in 1,000 tokens of one
sample.
"""

from abc import ABC, abstractmethod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

LARGE = 100_000  # weights of a matrix; below, what a call of other kernels costs (up to 20 µs) is more than it saves


class PackedLinear(Protocol):
    """x → x W + b."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def write_to(self, out: Tensor, x: Tensor) -> None:
        """out = x W + b"""

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """out += x W + b"""


class PlainLinear:
    """In the precision of its weights, by torch's usual kernels."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        # MKL multiplies a float32 row 1.7 times as fast by (in, out); other kernels want (out, in)
        turned = weight.device.type == "cpu" and weight.dtype == torch.float32
        self.weight = weight.t().contiguous() if turned else weight.t()
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
    """From and to float32, whatever `_multiply` gives."""

    @abstractmethod
    def _multiply(self, x: Tensor) -> Tensor: ...

    def __call__(self, x: Tensor) -> Tensor:
        return self._multiply(x).float()

    def write_to(self, out: Tensor, x: Tensor) -> None:
        out.copy_(self._multiply(x))

    def add_to(self, out: Tensor, x: Tensor) -> None:
        out.add_(self._multiply(x))


class CastLinear(_Float32Linear):
    """By weights in another precision, and torch's usual kernels for it."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)

    def _multiply(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class OneDnnLinear(_Float32Linear):
    """By weights in oneDNN's own layout, in float32 or bfloat16: for several rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, rows: int) -> None:
        self.dtype = dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), rows)
        self.bias = None if bias is None else bias.to(dtype)

    def _multiply(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, "none", [], "")
        return y


class HalfLinear(_Float32Linear):
    """By weights in float16 as they are: one row in float16, whose sums are in float32; more in float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight.half()
        self.bias = bias

    def _multiply(self, x: Tensor) -> Tensor:
        if x.size(0) > 1:  # the prompt: torch multiplies several rows in float16 ten times as slowly
            return F.linear(x, self.weight.float(), self.bias)
        y = F.linear(x.half(), self.weight)
        return y if self.bias is None else y + self.bias


class FbgemmLinear(_Float32Linear):
    """By weights in float16, the arithmetic and the result in float32: for a few rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def _multiply(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        return y


def pack_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, rows: int) -> PackedLinear:
    """The product of a layer inside a block.

    Args:
        weight: (out, in), float32.
        dtype: of the weights; on a CPU, products are from and to float32 all the same.
        rows: how many there are at each token.
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
    """The product that gives logits: in half precision less what is common to all, which moves no probability.

    Large numbers are rounded far: near 100, float16 moves a logit by up to 0.03 and bfloat16 by 0.25. GPT-2's are that
    large together and differ by ten. Here no CPU is given the head in bfloat16: a call in float32 costs little more.
    """
    if weight.device.type == "cpu" and dtype == torch.bfloat16:
        dtype = torch.float32
    if dtype != torch.float32:
        weight, bias = weight - weight.mean(0), None if bias is None else bias - bias.mean()
    return pack_linear(weight, bias, dtype, rows)


def has_float16_linear() -> bool:
    """Can this CPU multiply by weights kept in float16? (x86 with AVX2, where torch has kernels for it.)"""
    return "fbgemm" in torch.backends.quantized.supported_engines


def can_pack(dtype: torch.dtype) -> bool:
    """Can oneDNN multiply by packed weights of this precision here?"""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
