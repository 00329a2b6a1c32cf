"""The loss of a GPT and all of its gradients, the backward pass written out part by part as the chain rule gives it.

`ByHand(model, dtype).backward(idx, targets)` does what `model(idx, targets)[1].backward()` does under autocast, in
fewer operations and without autograd between them, which is what a small model's step on a CPU is bound by: each weight
is rounded to `dtype` once, not at each use, and scaling and masking of the scores are part of their product. What runs
along the blocks, norms, loss and gradients are float32, as autocast has them.

Each part keeps from `forward` what its `backward` needs. For a part y = f(x), `backward` is given dy, the gradient of
the loss with respect to y, adds to `.grad` of the part's parameters, and returns dx.

B batch, T time (positions), C n_embd, H heads, D head size (C / H), V vocabulary; N = B · T rows, one a token.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microgpt_cli.config import ModelConfig
from microgpt_cli.model.gpt import GPT
from microgpt_cli.model.layers import LONGEST_SCORES, MLP, CausalSelfAttention

aten = torch.ops.aten


def serves(config: ModelConfig) -> bool:
    """Whether models of this kind have their backward pass here: the article's and GPT-2's, without dropout."""
    return (
        config.position == "learned"
        and config.norm == "layernorm"
        and config.activation in ("relu", "gelu")
        and not (config.qk_norm or config.token_shift or config.dropout)
        and config.block_size <= LONGEST_SCORES
    )


class ByHand:
    """A model's loss and gradients; its weights may change between two calls.

    Args:
        model: of a kind that is served, on a CPU.
        dtype: of the matrix products.
    """

    def __init__(self, model: GPT, dtype: torch.dtype) -> None:
        assert serves(model.config)
        self.model, self.dtype = model, dtype
        self.blocks = [BlockByHand(block, dtype) for block in model.blocks]
        self.ln_f = NormByHand(model.ln_f, dtype)
        self.lm_head = LinearByHand(model.lm_head, dtype)

    def backward(self, idx: Tensor, targets: Tensor, share: float = 1.0) -> Tensor:
        """Both passes: add `share` of the gradients of the loss to `.grad` of every parameter."""
        loss = self.forward_pass(idx, targets, share)
        self.backward_pass()
        return loss

    @torch.no_grad()
    def forward_pass(self, idx: Tensor, targets: Tensor, share: float = 1.0) -> Tensor:
        """The loss, with what `backward_pass` needs kept.

        Args:
            idx: token ids (B, T).
            targets: the tokens that did come next (B, T).
            share: of a micro-batch in its step.

        Returns:
            `share` of the mean cross-entropy in nats a token, float32 ().
        """
        T, N = idx.size(1), idx.numel()
        ahead = torch.full((T, T), -math.inf, dtype=self.dtype).triu_(1)  # added to scores: nothing looks ahead
        x = self.model.embed(idx).view(N, -1)  # (N, C)
        for block in self.blocks:
            x = block.forward(x, ahead)  # (N, C)
        logits = self.lm_head.forward(self.ln_f.forward(x)).float()  # (N, V)
        asked = targets.reshape(N, 1)
        logp = logits.log_softmax(-1)  # (N, V)
        loss: Tensor = -logp.gather(1, asked).mean() * share
        dlogits = logp.exp_().mul_(share / N)  # what was expected less what came, a share of one token in N
        dlogits.scatter_add_(1, asked, torch.full((N, 1), -share / N))
        self.idx, self.dlogits = idx, dlogits.to(self.dtype)
        return loss

    @torch.no_grad()
    def backward_pass(self) -> None:
        """Add the gradients of what `forward_pass` was given to `.grad` of every parameter."""
        for p in self.model.parameters():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        (B, T), N = self.idx.shape, self.idx.numel()
        dx = self.ln_f.backward(self.lm_head.backward(self.dlogits))
        for block in reversed(self.blocks):
            dx = block.backward(dx)
        dx = dx.view(B, T, -1)  # (B, T, C)
        _gradient(self.model.position_embedding_table.weight)[:T].add_(dx.sum(0))
        _gradient(self.model.token_embedding_table.weight).index_add_(0, self.idx.reshape(N), dx.flatten(0, 1))


class BlockByHand:
    """x + attention(ln1(x)), and then x + mlp(ln2(x))."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:  # a Block
        self.ln1, self.attention = NormByHand(block.ln1, dtype), AttentionByHand(block.attention, dtype)
        self.ln2, self.mlp = NormByHand(block.ln2, dtype), MLPByHand(block.mlp, dtype)

    def forward(self, x: Tensor, ahead: Tensor) -> Tensor:
        x = x + self.attention.forward(self.ln1.forward(x), ahead)
        return x + self.mlp.forward(self.ln2.forward(x))

    def backward(self, dx: Tensor) -> Tensor:
        """A sum hands its gradient on to both of its terms."""
        dx = dx + self.ln2.backward(self.mlp.backward(dx.to(self.mlp.proj.dtype)))
        return dx + self.ln1.backward(self.attention.backward(dx.to(self.attention.proj.dtype)))


class AttentionByHand:
    """softmax(q k' / sqrt(D)) v for each head, and the projections before and after."""

    def __init__(self, layer: CausalSelfAttention, dtype: torch.dtype) -> None:
        self.n_head = layer.n_head
        self.qkv, self.proj = LinearByHand(layer.qkv, dtype), LinearByHand(layer.proj, dtype)

    def forward(self, x: Tensor, ahead: Tensor) -> Tensor:
        (N, C), T, H = x.shape, len(ahead), self.n_head
        B, D = N // T, C // H
        qkv = self.qkv.forward(x).view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
        self.q, self.k, self.v = q, k, v = qkv.reshape(3, B * H, T, D).unbind()
        self.weights = torch.baddbmm(ahead, q, k.mT, alpha=D**-0.5).softmax(-1)  # (B·H, T, T)
        heads = (self.weights @ v).view(B, H, T, D)
        return self.proj.forward(heads.transpose(1, 2).reshape(N, C))

    def backward(self, dy: Tensor) -> Tensor:
        (N, C), (BH, T, D), H = dy.shape, self.q.shape, self.n_head
        dheads = self.proj.backward(dy).view(-1, T, H, D).transpose(1, 2).reshape(BH, T, D)
        dweights = dheads @ self.v.mT
        dscores = aten._softmax_backward_data(dweights, self.weights, -1, dweights.dtype)  # (B·H, T, T)
        dq, dk, dv = dqkv = torch.empty(3, BH, T, D, dtype=dy.dtype)
        torch.baddbmm(dq, dscores, self.k, beta=0, alpha=D**-0.5, out=dq)
        torch.baddbmm(dk, dscores.mT, self.q, beta=0, alpha=D**-0.5, out=dk)
        torch.bmm(self.weights.mT, dheads, out=dv)
        return self.qkv.backward(dqkv.view(3, -1, H, T, D).permute(1, 3, 0, 2, 4).reshape(N, 3 * C))


class MLPByHand:
    """Widen, ReLU or GELU, narrow."""

    def __init__(self, layer: MLP, dtype: torch.dtype) -> None:
        self.fc, self.proj = LinearByHand(layer.fc, dtype), LinearByHand(layer.proj, dtype)
        self.is_relu = layer.activation is F.relu

    def forward(self, x: Tensor) -> Tensor:
        self.h = self.fc.forward(x)  # (N, 4C)
        return self.proj.forward(self.h.relu_() if self.is_relu else F.gelu(self.h, approximate="tanh"))

    def backward(self, dy: Tensor) -> Tensor:
        dh = self.proj.backward(dy)
        if self.is_relu:
            return self.fc.backward(aten.threshold_backward(dh, self.h, 0))
        return self.fc.backward(aten.gelu_backward(dh, self.h, approximate="tanh"))


class NormByHand:
    """(x - mean) / std · weight + bias, row by row in float32; y is rounded for the product that follows."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        self.layer, self.dtype = layer, dtype  # an nn.LayerNorm

    def forward(self, x: Tensor) -> Tensor:
        self.x, weight, bias = x, self.layer.weight, self.layer.bias
        y, self.mean, self.rstd = torch.native_layer_norm(x, weight.shape, weight, bias, self.layer.eps)
        return y.to(self.dtype)

    def backward(self, dy: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        wanted = (True, True, bias is not None)
        dx: Tensor
        dx, dweight, dbias = aten.native_layer_norm_backward(
            dy.float(), self.x, weight.shape, self.mean, self.rstd, weight, bias, wanted
        )
        _gradient(weight).add_(dweight)
        if bias is not None:
            _gradient(bias).add_(dbias)
        return dx


class LinearByHand:
    """x weight' + bias."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        self.layer, self.dtype = layer, dtype

    def forward(self, x: Tensor) -> Tensor:
        bias = self.layer.bias
        self.x, self.weight = x, self.layer.weight.to(self.dtype)
        return F.linear(x, self.weight, None if bias is None else bias.to(self.dtype))  # (N, out)

    def backward(self, dy: Tensor) -> Tensor:
        _gradient(self.layer.weight).add_(dy.mT @ self.x)
        if self.layer.bias is not None:
            _gradient(self.layer.bias).add_(dy.sum(0))
        return dy @ self.weight  # (N, in)


def _gradient(parameter: Any) -> Tensor:
    gradient: Tensor = parameter.grad
    return gradient
