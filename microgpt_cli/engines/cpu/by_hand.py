"""The loss of a GPT and all of its gradients, the backward pass written out part by part as the chain rule gives it.

`ByHand(model, passes).backward(idx, targets)` does what `model(idx, targets)[1].backward()` does under autocast, in
fewer operations and without autograd between them, which is what a small model's step on a CPU is bound by: each weight
is rounded for its products once, not at each use, and what stands between the products is one pass each (`passes.py`).
What runs along the blocks, norms, loss and gradients are float32, as autocast has them.

Each part keeps from `forward` what its `backward` needs. For a part y = f(x), `backward` is given dy, the gradient of
the loss with respect to y, adds to `.grad` of the part's parameters, and returns dx.

B batch, T time (positions), C n_embd, H heads, D head size (C / H), V vocabulary; N = B · T rows, one a token.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microgpt_cli.engines.cpu.passes import Biased, Passes, gradient
from microgpt_cli.model.gpt import GPT
from microgpt_cli.model.layers import MLP, CausalSelfAttention


class ByHand:
    """A model's loss and gradients; its weights may change between two calls.

    Args:
        model: of a kind that is served, on a CPU.
        passes: what stands between the matrix products, in their precision.
    """

    def __init__(self, model: GPT, passes: Passes) -> None:
        assert passes.serve(model.config)
        self.model, self.dtype = model, passes.dtype
        self.parameters = list(model.parameters())  # to go through the modules takes a hundredth of a step
        self.blocks = [BlockByHand(block, passes, model.config.activation) for block in model.blocks]
        self.ln_f = NormByHand(model.ln_f, passes)
        self.lm_head = LinearByHand(model.lm_head, passes)
        parts = (part for block in self.blocks for part in (block.attention, block.mlp))
        self.linears = [self.lm_head, *(linear for part in parts for linear in part.linears)]

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
        if self.dtype != torch.float32:
            rounded, exact = [each.rounded for each in self.linears], [each.layer.weight for each in self.linears]
            torch._foreach_copy_(rounded, exact)
        x, more = self.model.embed(idx).view(N, -1), None  # (N, C)
        for block in self.blocks:
            x, more = block.forward(x, more, T)  # (N, C) each
        _, y = self.ln_f.forward(x, more)
        logits, bias = self.lm_head.forward(y)  # (N, V)
        logits = logits.float() if bias is None else logits.float() + bias
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
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        (B, T), N = self.idx.shape, self.idx.numel()
        nothing = torch.zeros(N, self.model.config.n_embd)
        dx, rounded = self.ln_f.backward(self.lm_head.backward(self.dlogits), nothing)
        for block in reversed(self.blocks):
            dx, rounded = block.backward(dx, rounded)
        self._embed_backward(dx.view(B, T, -1))

    def _embed_backward(self, dx: Tensor) -> None:
        """dx (B, T, C): each token has its row, and so has each position."""
        model, tokens = self.model, self.model.token_embedding_table.weight
        if model.config.position == "learned":
            gradient(model.position_embedding_table.weight)[: dx.size(1)].add_(dx.sum(0))
        if model.config.token_shift:
            share, after = model.token_shift.share, dx[:, 1:]  # of those that had a token before them
            gradient(share).add_((after * tokens[self.idx[:, :-1]]).sum((0, 1)))
            dx = dx + F.pad(after * share, (0, 0, 0, 1))
        gradient(tokens).index_add_(0, self.idx.flatten(), dx.flatten(0, 1))


class BlockByHand:
    """x + attention(ln1(x)), and then x + mlp(ln2(x)). Each sum is made by the norm that comes next."""

    def __init__(self, block: Any, passes: Passes, activation: str) -> None:  # a Block
        self.ln1, self.attention = NormByHand(block.ln1, passes), AttentionByHand(block.attention, passes)
        self.ln2, self.mlp = NormByHand(block.ln2, passes), MLPByHand(block.mlp, passes, activation)

    def forward(self, x: Tensor, more: Biased | None, T: int) -> tuple[Tensor, Biased]:
        """x, and what is still to be added to it."""
        x, y = self.ln1.forward(x, more)
        x, y = self.ln2.forward(x, self.attention.forward(y, T))
        return x, self.mlp.forward(y)

    def backward(self, dx: Tensor, rounded: Tensor) -> tuple[Tensor, Tensor]:
        """A sum hands its gradient on to both of its terms; beside it, the same rounded for the products."""
        dx, rounded = self.ln2.backward(self.mlp.backward(rounded), dx)
        return self.ln1.backward(self.attention.backward(rounded), dx)


class AttentionByHand:
    """softmax(q k' / sqrt(D)) v for each head, and the projections before and after."""

    def __init__(self, layer: CausalSelfAttention, passes: Passes) -> None:
        self.layer, self.passes = layer, passes
        self.linears = self.qkv, self.proj = LinearByHand(layer.qkv, passes), LinearByHand(layer.proj, passes)

    def forward(self, x: Tensor, T: int) -> Biased:
        qkv, _ = self.qkv.forward(x)  # (N, 3C)
        heads, self.kept = self.passes.attention(self.layer, qkv, T)  # (N, C)
        return self.proj.forward(heads)

    def backward(self, dy: Tensor) -> Tensor:
        return self.qkv.backward(self.passes.attention_backward(self.layer, self.kept, self.proj.backward(dy)))


class MLPByHand:
    """Widen, a nonlinearity, narrow."""

    def __init__(self, layer: MLP, passes: Passes, activation: str) -> None:
        self.linears = self.fc, self.proj = LinearByHand(layer.fc, passes), LinearByHand(layer.proj, passes)
        self.passes, self.activation = passes, activation

    def forward(self, x: Tensor) -> Biased:
        h, self.kept = self.passes.activate(self.activation, self.fc.forward(x))  # (N, 4C)
        return self.proj.forward(h)

    def backward(self, dy: Tensor) -> Tensor:
        return self.fc.backward(self.passes.activate_backward(self.activation, self.kept, self.proj.backward(dy)))


class NormByHand:
    """LayerNorm or RMSNorm of a sum, row by row in float32; y is rounded for the product that follows."""

    def __init__(self, layer: Any, passes: Passes) -> None:
        self.layer, self.passes = layer, passes

    def forward(self, x: Tensor, more: Biased | None) -> tuple[Tensor, Tensor]:
        """The sum, and the norm of it."""
        x, y, self.kept = self.passes.norm(self.layer, x, more)
        return x, y

    def backward(self, dy: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
        """Its share is added to dx, the gradient that the sum has from elsewhere; beside it, the same rounded."""
        return self.passes.norm_backward(self.layer, self.kept, dy, dx)


class LinearByHand:
    """x weight', and a bias for whoever takes it from there."""

    def __init__(self, layer: nn.Linear, passes: Passes) -> None:
        self.layer, self.passes = layer, passes
        self.rounded = torch.empty(layer.weight.shape, dtype=passes.dtype)  # the weight, before each forward pass

    def forward(self, x: Tensor) -> Biased:
        self.x = x
        self.weight = self.layer.weight if x.dtype == self.layer.weight.dtype else self.rounded
        return self.passes.product(x, self.weight, self.layer.bias)  # (N, out)

    def backward(self, dy: Tensor) -> Tensor:
        self.passes.add_product(dy, self.x, gradient(self.layer.weight))
        if self.layer.bias is not None:
            self.passes.add_rows(dy, gradient(self.layer.bias))
        return dy @ self.weight  # (N, in)
