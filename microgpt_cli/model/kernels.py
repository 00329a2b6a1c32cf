"""Functions whose gradients are written by hand: autograd's own take two to five times as many passes over the data.

On a CPU such passes, and not the matrix products, are half of a training step of `arch=modern`. Each function equals
the plain one of layers.py, and its gradient that of autograd: tests/test_kernels.py.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST_NUMBERS = 1 << 17  # in a tensor (B, T, C): below, what a call costs outweighs the passes saved


def pay(x: Tensor) -> bool:
    """Whether these functions are faster than the plain ones for x (B, T, C): on a CPU, if it is large."""
    return x.device.type == "cpu" and x.numel() >= LEAST_NUMBERS


def heads(
    qkv: Tensor, n_head: int, eps: float | None = None, angles: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, H, T, D) out of what one product has made of x.

    Args:
        qkv: (B, T, 3 · C).
        n_head: H; C = H · D.
        eps: if given, queries and keys are divided by their root mean square (QK-norm).
        angles: if given, cosines and sines (T, D/2) of the angles by which they are turned (rotary positions).
    """
    cos, sin = angles if angles is not None else (None, None)
    return _Heads.apply(qkv, n_head, eps, cos, sin)  # type: ignore[no-any-return]


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Causal attention of (B, H, T, D), all scores at once, scaled and masked as they are made."""
    T, D = q.shape[-2:]
    ahead = torch.full((T, T), -math.inf, dtype=q.dtype).triu_(1)  # added: filling takes far longer
    scores = torch.baddbmm(ahead, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=1 / math.sqrt(D))  # (B · H, T, T)
    weights = scores.softmax(-1)
    if dropout:
        weights = F.dropout(weights, dropout)
    return (weights @ v.flatten(0, 1)).view(v.shape)


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)², any shape."""
    return _SquaredRelu.apply(x)  # type: ignore[no-any-return]


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x (…, C) over its root mean square, times `gain` (C)."""
    return _RMSNorm.apply(x, gain, eps)  # type: ignore[no-any-return]


class _RMSNorm(torch.autograd.Function):
    """y = x / r · g with r = rms(x); dx = (dy · g - x / r · mean(dy · y)) / r, dg the sum of dy · x / r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        per_rms = _per_rms(x, eps)
        scaled = x * per_rms
        ctx.save_for_backward(scaled, per_rms, gain)
        y: Tensor = scaled * gain
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        scaled, per_rms, gain = ctx.saved_tensors
        C = gain.numel()
        each = (dy * scaled).reshape(-1, C)
        share = (each @ gain).div_(C).view(per_rms.shape)
        dx = (dy * gain).addcmul_(scaled, share, value=-1).mul_(per_rms)
        return dx, each.sum(0), None


def _per_rms(x: Tensor, eps: float) -> Tensor:
    """1 / rms over the last dimension, which stays, of size 1; summed in float32 at least, as torch does."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    per_rms: Tensor = norm.square_().div_(x.size(-1)).add_(eps).rsqrt_().to(x.dtype)
    return per_rms


class _Heads(torch.autograd.Function):
    """With r = rms(x): y = x / r, turned. A turn keeps products, so mean(dy · y) is the same before and after it:

    dx = (dy - y · mean(dy · y)) / r, turned back.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, n_head: int, eps: float | None, cos: Tensor | None, sin: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        B, T, _ = qkv.shape
        parts = qkv.view(B, T, 3, n_head, -1).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
        qk, v = parts.clone(memory_format=torch.contiguous_format).split((2, 1))
        per_rms = None
        if eps is not None:
            per_rms = _per_rms(qk, eps)  # (2, B, H, T, 1)
            qk.mul_(per_rms)
        if cos is not None and sin is not None:
            qk = _turn(qk, cos, sin, torch.empty_like(qk))
        ctx.save_for_backward(qk, per_rms, cos, sin)
        return qk[0], qk[1], v[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor, None, None, None, None]:
        qk, per_rms, cos, sin = ctx.saved_tensors
        B, H, T, D = dv.shape
        dqkv = dv.new_empty(B, T, 3, H, D)
        to_q, to_k, to_v = dqkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        for i, (dy, to) in enumerate(((dq, to_q), (dk, to_k))):
            if per_rms is not None:
                share = (dy * qk[i]).mean(-1, keepdim=True)
                dy = torch.addcmul(dy, qk[i], share, value=-1).mul_(per_rms[i])
            if cos is not None:
                _turn(dy, cos, -sin, to)
            else:
                to.copy_(dy)
        to_v.copy_(dv)
        return dqkv.view(B, T, 3 * H * D), None, None, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> Tensor:
    """(a, b) → (a cos - b sin, b cos + a sin) for the two halves a, b of the last dimension."""
    (a, b), (to_a, to_b) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(a, cos, out=to_a).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=to_b).addcmul_(a, sin)
    return out


class _SquaredRelu(torch.autograd.Function):
    """y = p² with p = max(x, 0); dx = 2 p dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        squared: Tensor = positive * positive
        return squared

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        dx: Tensor = (dy * positive).mul_(2)
        return dx
