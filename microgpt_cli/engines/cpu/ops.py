"""The operations of the CPU engine, each with a forward pass, which saves what is needed, and a backward pass.

`Values` maps numbers to tensors, mostly rows (N, C), one per token. Matrix products, their inputs and outputs are in
the engine's dtype (float32 or bfloat16); the residual stream, norms, the loss and the gradients of parameters are
float32, as with autocast. Biases are added by the operation that reads the product.

N rows (B · T), C channels, H heads, D head size, V vocabulary.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from microgpt_cli.engines.cpu.kernels import Heads, Kernels
from microgpt_cli.engines.cpu.record import Node, Ref

Values = dict[int, Tensor]


class Gradients(dict[int, Tensor]):
    """The gradients of values by number. Operations do not modify them in place."""

    def accumulate(self, number: int, gradient: Tensor) -> None:
        """Add to the gradient of a value."""
        self[number] = self[number] + gradient if number in self else gradient


class Op(ABC):
    """One operation of a plan."""

    @abstractmethod
    def forward(self, values: Values) -> None:
        """Read inputs from `values` and store outputs there."""

    @abstractmethod
    def backward(self, gradients: Gradients) -> None:
        """Pop the gradients of outputs; accumulate those of inputs and parameters."""


@dataclass
class Linear(Op):
    """y = x weight'. The reader of y adds the bias."""

    kernels: Kernels
    x: int
    weight: Tensor
    bias: Tensor | None
    y: int
    rounded: Tensor  # the weight in the engine's dtype, updated every step

    def forward(self, values: Values) -> None:
        self._x = values[self.x]
        values[self.y] = F.linear(self._x, self.rounded)

    def backward(self, gradients: Gradients) -> None:
        dy = gradients.pop(self.y, None)
        if dy is None:
            return
        self.kernels.add_product(dy, self._x, grad_of(self.weight))
        if self.bias is not None:
            self.kernels.add_rows(dy, grad_of(self.bias))
        gradients.accumulate(self.x, dy @ self.rounded)


@dataclass
class Norm(Op):
    """total = x + more + bias; y = LayerNorm or RMSNorm of total. Without `more`, total is x."""

    kernels: Kernels
    x: int
    more: int | None
    more_bias: Tensor | None
    total: int
    y: int
    weight: Tensor
    bias: Tensor | None
    eps: float
    is_centred: bool

    def forward(self, values: Values) -> None:
        x, more = values[self.x], None if self.more is None else values[self.more]
        settings = self.more_bias, self.weight, self.bias, self.eps, self.is_centred
        values[self.total], values[self.y], self._kept = self.kernels.norm(x, more, *settings)

    def backward(self, gradients: Gradients) -> None:
        dy, dtotal = gradients.pop(self.y, None), gradients.pop(self.total, None)
        if dy is None:
            dx, rounded = dtotal, None if dtotal is None else dtotal.to(self.kernels.dtype)
        else:
            grads = grad_of(self.weight), None if self.bias is None else grad_of(self.bias)
            dx, rounded = self.kernels.norm_backward(dy, dtotal, self._kept, self.weight, *grads, self.is_centred)
        if dx is None:
            return
        gradients.accumulate(self.x, dx)
        if self.more is not None:
            assert rounded is not None
            gradients.accumulate(self.more, rounded)


@dataclass
class Attention(Op):
    """softmax(q k' / sqrt(D)) v of each head, from q, k and v side by side (N, 3C) to (N, C)."""

    kernels: Kernels
    qkv: int
    heads: Heads
    y: int

    def forward(self, values: Values) -> None:
        self._qkv = values[self.qkv]
        values[self.y], self._weights = self.kernels.attention(self._qkv, self.heads)

    def backward(self, gradients: Gradients) -> None:
        dy = gradients.pop(self.y, None)
        if dy is not None:
            gradients.accumulate(self.qkv, self.kernels.attention_backward(dy, self._qkv, self._weights, self.heads))


@dataclass
class Activation(Op):
    """y = f(x + bias). x is overwritten by the derivative of f, so nothing else may read it."""

    kernels: Kernels
    kind: str
    x: int
    bias: Tensor | None
    y: int

    def forward(self, values: Values) -> None:
        self._slopes = values.pop(self.x)
        values[self.y] = self.kernels.activate(self.kind, self._slopes, self.bias)

    def backward(self, gradients: Gradients) -> None:
        dy = gradients.pop(self.y, None)
        if dy is not None:
            gradients.accumulate(self.x, dy * self._slopes)


@dataclass
class Add(Op):
    """y = x + more + bias, where more is a matrix product."""

    kernels: Kernels
    x: int
    more: int
    more_bias: Tensor | None
    y: int

    def forward(self, values: Values) -> None:
        total = values[self.x] + values[self.more]
        values[self.y] = total if self.more_bias is None else total.add_(self.more_bias)

    def backward(self, gradients: Gradients) -> None:
        dy = gradients.pop(self.y, None)
        if dy is not None:
            gradients.accumulate(self.x, dy)
            gradients.accumulate(self.more, dy.to(self.kernels.dtype))


@dataclass
class AddBias(Op):
    """y = x + bias, for a torch function that reads y."""

    x: int
    bias: Tensor | None
    y: int

    def forward(self, values: Values) -> None:
        x = values[self.x]
        values[self.y] = x if self.bias is None else x + self.bias.to(x.dtype)

    def backward(self, gradients: Gradients) -> None:
        dy = gradients.pop(self.y, None)
        if dy is not None:
            gradients.accumulate(self.x, dy)


@dataclass
class CrossEntropy(Op):
    """`share` of the mean loss of logits (N, V); the forward pass also computes the gradient."""

    kernels: Kernels
    logits: int
    bias: Tensor | None
    targets: int
    loss: int
    share: float = 1.0

    def forward(self, values: Values) -> None:
        logits = values.pop(self.logits)
        logits = logits.float() if self.bias is None else logits.float() + self.bias
        N, target = len(logits), values[self.targets].reshape(-1, 1)
        log_p = logits.log_softmax(-1)  # (N, V)
        values[self.loss] = -log_p.gather(1, target).mean() * self.share
        dlogits = log_p.exp_().mul_(self.share / N)  # (p - one_hot(target)) · share / N
        dlogits.scatter_add_(1, target, torch.full((N, 1), -self.share / N))
        self._dlogits = dlogits.to(self.kernels.dtype)

    def backward(self, gradients: Gradients) -> None:
        gradients.accumulate(self.logits, self._dlogits)
        del self._dlogits


@dataclass
class Torch(Op):
    """Calls of torch functions for which the engine has no operation, under autograd."""

    shapes: dict[int, tuple[int, ...]]
    autocast: Callable[[], contextlib.AbstractContextManager[object]]
    constants: Values
    nodes: list[Node] = field(default_factory=list)
    inputs: set[int] = field(default_factory=set)
    outputs: set[int] = field(default_factory=set)  # read by other operations

    def forward(self, values: Values) -> None:
        given = {number: values[number].detach().view(self.shapes[number]) for number in self.inputs}
        self._leaves = {n: t.requires_grad_() for n, t in given.items() if t.is_floating_point()}
        self._shapes = {number: values[number].shape for number in self._leaves}
        own = self.constants | given
        with torch.enable_grad(), self.autocast():
            for node in self.nodes:
                with contextlib.nullcontext() if node.with_grad else torch.no_grad():
                    made = node.func(*resolved(node.args, own), **resolved(node.kwargs, own))
                own.update(zip(node.outputs, [made] if isinstance(made, Tensor) else made, strict=True))
        self._made = {number: own[number] for number in self.outputs}
        values.update({number: rows(t.detach()) for number, t in self._made.items()})

    def backward(self, gradients: Gradients) -> None:
        ends = [
            (t, gradients.pop(number).view(t.shape).to(t.dtype))
            for number, t in self._made.items()
            if t.requires_grad and number in gradients
        ]
        if ends:
            made, given = zip(*ends, strict=True)
            with torch.enable_grad():
                _End.apply(given, *made).backward()
        for number, leaf in self._leaves.items():
            if leaf.grad is not None:
                gradients.accumulate(number, leaf.grad.reshape(self._shapes[number]).contiguous())
        del self._made, self._leaves


class _End(torch.autograd.Function):
    """One number at the end of tensors whose gradients are known.

    torch.autograd.backward(tensors, gradients) would do, and imports sympy: half a second before the first step.
    """

    @staticmethod
    def forward(ctx: Any, gradients: tuple[Tensor, ...], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.gradients


def rows(t: Tensor) -> Tensor:
    """A tensor as contiguous float32 rows (N, C); indices and scalars unchanged."""
    return t.reshape(-1, t.size(-1)).float().contiguous() if t.dim() and t.is_floating_point() else t


def resolved(thing: Any, values: Values) -> Any:
    """Arguments of a node, with references replaced by tensors."""
    if isinstance(thing, Ref):
        return values[thing.number]
    if isinstance(thing, dict):
        return {key: resolved(value, values) for key, value in thing.items()}
    return type(thing)(resolved(inner, values) for inner in thing) if type(thing) in (tuple, list) else thing


def grad_of(parameter: Tensor) -> Tensor:
    """The gradient of a parameter, created as zeros if missing."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
