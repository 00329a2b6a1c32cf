"""Lower the recorded calls of a forward pass to operations of the CPU engine.

Each recorded tensor gets a symbol: where its values are and which computation is still pending. A rule per torch
function maps the symbols of the arguments to that of the result, or declines; then the call runs in torch under
autograd. So an unsupported part of a model is slower but gives the same result.

    linear(y, weight, bias)          Product: the operation that reads it adds the bias
    x + product                      Sum: the norm that reads it computes the sum
    view, permute, unbind, rms_norm  Part: queries, keys or values inside their common product
    chunk, mul, sub, add, cat        a part rotated by its position
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from microgpt_cli.engines.autograd import autocast
from microgpt_cli.engines.cpu import ops
from microgpt_cli.engines.cpu.kernels import MAX_ATTENTION, Heads, Kernels
from microgpt_cli.engines.cpu.record import IDX, TARGETS, Node, Recording, Ref, refs, tensors

Shape = tuple[int, ...]
RANDOM = ("rand", "bernoulli", "normal", "dropout", "multinomial")


@dataclass(frozen=True)
class Ids:
    """The targets, in any shape."""


@dataclass(frozen=True)
class Rows:
    """Computed values, in float32 or in the dtype of the products."""

    number: int
    shape: Shape
    is_float32: bool


@dataclass(frozen=True)
class Product:
    """A matrix product whose bias is not yet added."""

    number: int
    shape: Shape
    bias: Tensor | None
    uses: int


@dataclass(frozen=True)
class Sum:
    """x + more, not yet computed."""

    x: Rows
    more: Product


@dataclass(frozen=True)
class Positive:
    """max(x, 0), not yet computed: its square is a single activation, relu2."""

    x: Product


@dataclass(frozen=True)
class Parts:
    """A product as queries, keys and values (3, B, H, T, D)."""

    of: Product


@dataclass(frozen=True)
class Part:
    """Queries (0), keys (1) or values (2) of all heads (B, H, T, D), with optional norm and rotation."""

    of: Product
    index: int
    eps: float = 0.0
    angles: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Term:
    """An expression over the two halves a and b of each head's channels."""

    of: Part
    text: str
    factors: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Attended:
    """Outputs of attention (B, H, T, D), stored as (B, T, H, D)."""

    number: int
    shape: Shape


class Planner:
    """Turns a recording into `plan`, a list of operations.

    Args:
        recording: of the model's forward pass.
        kernels: for the dtype of the products.
        rounded: gives a weight in that dtype, as it is in each step.
        weights: the dtype of the model's parameters.
    """

    def __init__(
        self,
        recording: Recording,
        kernels: Kernels,
        rounded: Callable[[Tensor], Tensor],
        weights: torch.dtype = torch.float32,
    ) -> None:
        self.weights = weights
        self.recording, self.kernels, self.rounded = recording, kernels, rounded
        self.plan: list[ops.Op] = []
        self.nodes = {number: node for node in recording.nodes for number in node.outputs}
        self.symbols: dict[int, Any] = {TARGETS: Ids()}
        self.constants: dict[int, Tensor] = {}  # functions of buffers only
        self.computed = {IDX, TARGETS}  # numbers of tensors that the plan computes
        self.by_torch: dict[int, ops.Torch] = {}
        for node in recording.nodes:
            self._lower(node)
        self.use(recording.loss)

    def _lower(self, node: Node) -> None:
        """Assign symbols to the outputs of a call."""
        if self._folded(node):
            return
        rule = getattr(self, f"_{node.name.strip('_')}", None) if node.with_grad else None
        given = self._symbolic(node.args), self._symbolic(node.kwargs)
        try:
            found = rule(node, *given[0], **given[1]) if rule is not None else None
        except TypeError:  # arguments that the rule does not support
            found = None
        if found is None:
            shapes = self.recording.shapes
            found = [Rows(n, shapes[n], True) if n in self.recording.floats else None for n in node.outputs]
        self.symbols.update(zip(node.outputs, found if isinstance(found, list) else [found], strict=True))

    def _folded(self, node: Node) -> bool:
        """Constant folding: evaluate a call whose tensors are all buffers."""
        given = tensors((node.args, node.kwargs))
        of_pass = refs((node.args, node.kwargs))
        known = all(ref.number in self.constants for ref in of_pass) and not any(t.requires_grad for t in given)
        if not (given or of_pass) or not known or any(word in node.name for word in RANDOM):
            return False
        with torch.no_grad():
            made = node.func(*ops.resolved(node.args, self.constants), **ops.resolved(node.kwargs, self.constants))
        self.constants.update(zip(node.outputs, [made] if isinstance(made, Tensor) else made, strict=True))
        return True

    def _symbolic(self, thing: Any) -> Any:
        if isinstance(thing, Ref):
            return self.constants.get(thing.number, self.symbols.get(thing.number))
        if isinstance(thing, dict):
            return {key: self._symbolic(value) for key, value in thing.items()}
        return [self._symbolic(inner) for inner in thing] if type(thing) in (tuple, list) else thing

    def use(self, number: int) -> int:
        """Ensure that the tensor of this number is available to the next operation."""
        self._make(number)
        if number in self.by_torch:
            self.by_torch[number].outputs.add(number)
        return number

    def _make(self, number: int) -> None:
        """Ensure that the plan computes the tensor of this number."""
        if number not in self.computed and number not in self.constants:
            symbol, node = self.symbols.get(number), self.nodes.get(number)
            match symbol:
                case Sum(x, more):
                    self._emit(ops.Add(self.kernels, self.use(x.number), more.number, more.bias, number), number)
                    self.symbols[number] = Rows(number, x.shape, True)
                case Positive(x):
                    self._emit(ops.Activation(self.kernels, "relu", x.number, x.bias, number), number)
                    self.symbols[number] = Rows(number, x.shape, False)
                case Product(base, _, bias, _):
                    self._emit(ops.AddBias(base, bias, number), number)
                case Rows(base, _, _) if base != number and base in self.computed and base not in self.by_torch:
                    self._emit(ops.AddBias(base, None, number), number)
                case _:
                    assert node is not None
                    self._emit_torch(node)

    def _emit(self, op: ops.Op, *made: int) -> None:
        self.plan.append(op)
        self.computed.update(made)

    def _emit_torch(self, node: Node) -> None:
        """Append a call to the `Torch` operation at the end of the plan."""
        given = [ref.number for ref in refs((node.args, node.kwargs))]
        for number in given:
            self._make(number)
        if not self.plan or not isinstance(self.plan[-1], ops.Torch):
            self.plan.append(ops.Torch(self.recording.shapes, self.autocast, {}))
        last = self.plan[-1]
        assert isinstance(last, ops.Torch)
        for number in given:
            if number in self.constants:
                last.constants[number] = self.constants[number]
            elif self.by_torch.get(number) is not last:
                last.inputs.add(self.use(number))
        last.nodes.append(node)
        self.computed.update(node.outputs)
        self.by_torch.update(dict.fromkeys(node.outputs, last))

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The autocast context of torch functions."""
        return autocast("cpu", self.kernels.dtype)

    # rules: symbols of arguments → symbol of the result, or None

    def _linear(self, node: Node, x: Any, weight: Any, bias: Any = None) -> Any:
        if isinstance(x, Positive):
            x = self.symbols[self.use(node.args[0].number)]
        if not isinstance(x, Rows) or x.is_float32 or not self._are_parameters(weight, bias):
            return None
        [y], uses = node.outputs, self.recording.uses
        self._emit(ops.Linear(self.kernels, x.number, weight, bias, _raw(y), self.rounded(weight)), _raw(y))
        return Product(_raw(y), self.recording.shapes[y], bias, uses.get(y, 0))

    def _add(self, node: Node, x: Any, y: Any) -> Any:
        if isinstance(x, Term) and isinstance(y, Term) and x.of == y.of:
            return Term(x.of, f"{x.text} + {y.text}", x.factors + y.factors)
        first, second = node.args
        if isinstance(x, Product):
            x, y, first = y, x, second
        if isinstance(x, Sum):
            x = self.symbols[self.use(first.number)]
        if not isinstance(x, Rows) or not x.is_float32 or not isinstance(y, Product) or x.shape != y.shape:
            return None
        return Sum(x, y)

    def _sub(self, node: Node, x: Any, y: Any) -> Any:
        if isinstance(x, Term) and isinstance(y, Term) and x.of == y.of:
            return Term(x.of, f"{x.text} - {y.text}", x.factors + y.factors)
        return None

    def _mul(self, node: Node, x: Any, factor: Any) -> Any:
        if isinstance(x, Term) and isinstance(factor, Tensor) and not factor.requires_grad:
            return Term(x.of, f"({x.text})", (*x.factors, factor))
        return None

    def _layer_norm(
        self, node: Node, x: Any, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
    ) -> Any:
        return self._norm(node, x, shape, weight, bias, eps, is_centred=True)

    def _rms_norm(self, node: Node, x: Any, shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Any:
        if eps is None:
            return None
        if isinstance(x, Part) and weight is None:
            plain = x.index < 2 and not x.eps and x.angles is None
            return replace(x, eps=eps) if plain and tuple(shape) == x.of.shape[-1:] else None
        return self._norm(node, x, shape, weight, None, eps, is_centred=False)

    def _norm(
        self, node: Node, x: Any, shape: Sequence[int], weight: Any, bias: Any, eps: float, is_centred: bool
    ) -> Any:
        plain = x.x if isinstance(x, Sum) else x
        if not isinstance(plain, Rows) or not plain.is_float32 or not self._are_parameters(weight, bias):
            return None
        if tuple(shape) != plain.shape[-1:]:
            return None
        [y], more = node.outputs, x.more if isinstance(x, Sum) else None
        total = node.args[0].number if more is not None else plain.number
        given = self.use(plain.number), None if more is None else more.number, None if more is None else more.bias
        self._emit(ops.Norm(self.kernels, *given, total, y, weight, bias, eps, is_centred), total, y)
        if more is not None:
            self.symbols[total] = Rows(total, plain.shape, True)
        return Rows(y, plain.shape, False)

    def _gelu(self, node: Node, x: Any, approximate: str = "none") -> Any:
        return self._activation(node, "gelu", x) if approximate == "tanh" else None

    def _relu(self, node: Node, x: Any, inplace: bool = False) -> Any:
        return Positive(x) if isinstance(x, Product) and x.uses == 1 else None

    def _square(self, node: Node, x: Any) -> Any:
        is_only_use = self.recording.uses.get(node.args[0].number) == 1
        return self._activation(node, "relu2", x.x) if isinstance(x, Positive) and is_only_use else None

    def _activation(self, node: Node, kind: str, x: Any) -> Any:
        if not isinstance(x, Product) or x.uses != 1:
            return None
        [y] = node.outputs
        self._emit(ops.Activation(self.kernels, kind, x.number, x.bias, y), y)
        return Rows(y, x.shape, False)

    def _dropout(self, node: Node, x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        return self._in_shape(node, x) if p == 0 or not training else None

    def _view(self, node: Node, x: Any, *shape: Any) -> Any:
        return self._in_shape(node, x)

    _reshape = _flatten = _unflatten = _view_as = _view

    def _in_shape(self, node: Node, x: Any) -> Any:
        [y] = node.outputs
        shape = self.recording.shapes[y]
        match x:
            case Ids():
                return x
            case Rows():
                return replace(x, shape=shape)
            case Product():
                return replace(x, shape=shape, uses=max(x.uses, self.recording.uses.get(y, 0)))
        return None

    def _permute(self, node: Node, x: Any, *dims: Any) -> Any:
        if isinstance(x, Product) and x.shape[2:3] == (3,) and list(dims) in ([2, 0, 3, 1, 4], [[2, 0, 3, 1, 4]]):
            return Parts(x)
        return None

    def _unbind(self, node: Node, x: Any, dim: int = 0) -> Any:
        return [Part(x.of, index) for index in range(3)] if isinstance(x, Parts) and dim == 0 else None

    def _chunk(self, node: Node, x: Any, chunks: int, dim: int = 0) -> Any:
        if isinstance(x, Part) and x.angles is None and chunks == 2 and dim == -1:
            return [Term(x, "a"), Term(x, "b")]
        return None

    def _cat(self, node: Node, xs: Any, dim: int = 0) -> Any:
        match xs:
            case [Term(part, "(a) - (b)", (cos, sin)), Term(other, "(b) + (a)", (cos_2, sin_2))]:
                T, D = part.of.shape[1], part.of.shape[-1]
                fit = all(t.shape == (T, D // 2) and t.is_contiguous() for t in (cos, sin))
                if dim == -1 and part == other and fit and _same((cos, sin), (cos_2, sin_2)):
                    return replace(part, angles=(cos, sin))
        return None

    def _scaled_dot_product_attention(
        self, node: Node, q: Any, k: Any, v: Any, dropout_p: float = 0.0, is_causal: bool = False
    ) -> Any:
        if not all(isinstance(part, Part) for part in (q, k, v)) or not is_causal or dropout_p:
            return None
        alike = q.of == k.of == v.of and q.eps == k.eps and _same(q.angles, k.angles)
        B, T, _, H, D = q.of.shape
        if not alike or (q.index, k.index) != (0, 1) or v != Part(q.of, 2) or T > MAX_ATTENTION:
            return None
        [y] = node.outputs
        heads = Heads(B, T, H, D, q.of.bias, q.eps, q.angles)
        self._emit(ops.Attention(self.kernels, q.of.number, heads, _raw(y)), _raw(y))
        return Attended(_raw(y), (B, T, H, D))

    def _transpose(self, node: Node, x: Any, dim0: int, dim1: int) -> Any:
        return Rows(x.number, x.shape, False) if isinstance(x, Attended) and {dim0, dim1} == {1, 2} else None

    def _cross_entropy(self, node: Node, logits: Any, targets: Any, **kwargs: Any) -> Any:
        usual = {"ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0}
        if not isinstance(logits, Product) or not isinstance(targets, Ids) or len(logits.shape) != 2:
            return None
        if logits.uses != 1 or node.outputs[0] != self.recording.loss:
            return None
        if any(value is not None and value != usual.get(key) for key, value in kwargs.items()):
            return None
        [loss] = node.outputs
        self._emit(ops.CrossEntropy(self.kernels, logits.number, logits.bias, TARGETS, loss), loss)
        return Rows(loss, (), True)

    def _are_parameters(self, weight: Any, bias: Any) -> bool:
        """Whether these are a layer's own weight and bias, which may be None."""
        given = [weight] if bias is None else [weight, bias]
        return all(
            isinstance(t, Tensor) and t.is_leaf and t.requires_grad and t.dtype == self.weights and t.is_contiguous()
            for t in given
        )


def _raw(number: int) -> int:
    """The number of an intermediate result for the tensor of this number."""
    return -1 - number


def _same(xs: Sequence[Tensor] | None, ys: Sequence[Tensor] | None) -> bool:
    """Whether all tensors are equal."""
    if xs is None or ys is None:
        return xs is ys
    return all(x is y or torch.equal(x, y) for x, y in zip(xs, ys, strict=True))
