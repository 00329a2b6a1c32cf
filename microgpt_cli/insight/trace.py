"""Trace one forward pass: its operations, the modules that call them, shapes and FLOPs.

The trace does not depend on the model's code. A function mode records each call of a torch function, and module hooks
record the module that made it. A second pass through a model of the same architecture with distinct sizes identifies
the dimensions of each shape: in the first pass alone, a 4 could be B or H.

B batch, T time (positions), C n_embd, H heads, D head size (C / H), V vocabulary.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from microgpt_cli.config import ModelConfig
from microgpt_cli.model.accounting import meta_model
from microgpt_cli.model.gpt import GPT
from microgpt_cli.model.loss import LARGE_VOCABULARY, chunked_cross_entropy

# Sizes of the second model. Its B, T and block_size are at least those of the traced model, so that code that branches
# on them takes the same branch, and the smallest ones for which all expressions below have distinct values.
TWIN = {"C": 154, "H": 7, "D": 22, "V": 23}
MIN_SIZE = 5  # shapes may contain 1 to 4 as constants
MULTIPLES, PAIRS = (("C", 2), ("C", 3), ("C", 4), ("D", 2)), (("B", "T"), ("B", "H"))
SHORT = {"__getitem__": "slice", "__add__": "add", "__mul__": "mul", "__matmul__": "matmul"}
PRODUCTS = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm")


@dataclass(frozen=True)
class Value:
    """A tensor in the pass."""

    number: int  # identity, which connects the output of one operation to the input of another
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()  # of its dimensions; the number itself if the dimension is unknown


@dataclass(frozen=True)
class Weight:
    """A parameter or a buffer that an operation reads."""

    name: str  # as in the state dict
    value: Value
    count: int  # parameters that no earlier operation has read; 0 for a buffer
    gradient: tuple[int, ...] | None = None  # the shape of its gradient after the backward pass


@dataclass
class Op:
    """One call of a torch function."""

    name: str
    inputs: list[Value]  # without weights
    outputs: list[Value]
    weights: list[Weight]
    flops: int = 0  # of matrix products; a multiply-add is two
    backward_flops: int = 0
    gradients: list[Value] = field(default_factory=list)  # of its outputs


@dataclass
class Call:
    """One call of a module, and the steps in it."""

    path: str  # its name in the model: `blocks.0.mlp`
    name: str  # its name within the module that called it
    kind: str  # its class
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    steps: list["Op | Call"] = field(default_factory=list)

    def ops(self) -> Iterator[Op]:
        """Every operation in it, in order of execution."""
        for step in self.steps:
            if isinstance(step, Op):
                yield step
            else:
                yield from step.ops()


Step = Op | Call


@dataclass(frozen=True)
class Folded:
    """Consecutive equal steps, such as the blocks: the first, the last, and their number."""

    step: Step
    last: Step
    count: int = 1


def fold(steps: Sequence[Step]) -> list[Folded]:
    """Group consecutive modules with the same operations and shapes."""
    folded: list[Folded] = []
    for step in steps:
        last = folded[-1] if folded else None
        if last is not None and isinstance(step, Call) and _signature(step) == _signature(last.step):
            folded[-1] = Folded(last.step, step, last.count + 1)
        else:
            folded.append(Folded(step, step))
    return folded


def _signature(step: Step) -> tuple[Any, ...]:
    shapes = [value.shape for value in (*step.inputs, *step.outputs)]
    if isinstance(step, Op):
        return (step.name, shapes, [weight.value.shape for weight in step.weights], parameters(step))
    return (step.kind, shapes, [_signature(inner) for inner in step.steps])


def parameters(step: Step) -> int:
    """Number of parameters that are first read in this step."""
    return sum(weight.count for op in _ops(step) for weight in op.weights)


def flops(step: Step) -> int:
    """FLOPs of the matrix products in the forward pass."""
    return sum(op.flops for op in _ops(step))


def backward_flops(step: Step) -> int:
    """FLOPs of the matrix products in the backward pass."""
    return sum(op.backward_flops for op in _ops(step))


def _ops(step: Step) -> Iterable[Op]:
    return [step] if isinstance(step, Op) else step.ops()


def trace(model: GPT, batch: int, time: int, backward: bool = False) -> Call:
    """Run a model once and record its operations.

    Args:
        model: with weights, or on the meta device; its gradients are cleared.
        batch: number of sequences.
        time: tokens per sequence.
        backward: compute the loss, run the backward pass, and record the gradients.
    """
    own = _sizes(model.config, model.vocab_size, batch, time)
    other = _twin_sizes(own)
    with torch.random.fork_rng(devices=[]):
        call = _run(model, batch, time, backward)
        config = dataclasses.replace(model.config, n_embd=other["C"], n_head=other["H"], block_size=other["block_size"])
        device = model.token_embedding_table.weight.device
        twin = model_to_trace(config, other["V"], real=device.type != "meta").to(device).train(model.training)
        _name(call, _run(twin, other["B"], other["T"], backward), own, other)
    return call


def model_to_trace(config: ModelConfig, vocab_size: int, real: bool) -> GPT:
    """A newly initialised model, or one on the meta device without data."""
    return GPT(config, vocab_size) if real else meta_model(config, vocab_size)


def _run(model: GPT, batch: int, time: int, backward: bool) -> Call:
    device = model.token_embedding_table.weight.device
    ids = torch.empty(batch, time, dtype=torch.long, device=device)
    if device.type != "meta":
        ids = torch.arange(batch * time, device=device).view(batch, time) % model.vocab_size
    tracer = _Tracer(model, backward)
    handles = [handle for name, module in model.named_modules() for handle in tracer.watch(name, module)]
    try:
        with torch.set_grad_enabled(backward), tracer:
            _, loss = model(ids, ids if backward else None)
        if backward:
            loss.backward()
            _record_gradients(model, tracer.root)
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)
    return tracer.root


def _record_gradients(model: GPT, call: Call) -> None:
    shapes = {name: tuple(p.grad.shape) for name, p in model.named_parameters() if p.grad is not None}
    for op in call.ops():
        op.weights = [dataclasses.replace(weight, gradient=shapes.get(weight.name)) for weight in op.weights]


class _Tracer(TorchFunctionMode):
    """Records every call of a torch function and of the watched modules."""

    def __init__(self, model: nn.Module, backward: bool) -> None:
        super().__init__()
        self.backward = backward
        self.open: list[tuple[str, Call]] = []
        self.numbers: dict[int, int] = {}  # id of a tensor → number of its `Value`
        self.kept: list[Tensor] = []  # keeps ids unique
        self.unread = {id(p): p.numel() for p in model.parameters()}
        self.weights = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}

    def watch(self, path: str, module: nn.Module) -> list[RemovableHandle]:
        """Record the calls of a module."""

        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            above = self.open[-1] if self.open else None
            name = path.removeprefix(f"{above[0]}.") if above else path
            call = Call(path, name, type(module).__name__, [self.value(t) for t in _tensors((args, kwargs))])
            if above is None:
                self.root = call
            else:
                above[1].steps.append(call)
            self.open.append((path, call))

        def end(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            _, call = self.open.pop()
            call.outputs = [self.value(t) for t in _tensors(result)]

        return [
            module.register_forward_pre_hook(begin, with_kwargs=True),
            module.register_forward_hook(end, with_kwargs=True),
        ]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is chunked_cross_entropy:  # shown as the operations that it equals, on all logits at once
            x, head, targets = args
            with self:
                return F.cross_entropy(head(x), targets)
        given = _tensors((args, kwargs or {}))
        before = [self.value(t) for t in given]  # an in-place operation creates another value of the same tensor
        result = func(*args, **(kwargs or {}))
        made = _tensors(result)
        in_place = _name_of(func).endswith("_")
        if not self.open or not made or (not in_place and any(t is other for t in made for other in given)):
            return result  # a query, or a no-op such as inactive dropout
        op = Op(
            _name_of(func),
            [value for value, t in zip(before, given, strict=True) if id(t) not in self.weights],
            [self.value(t, new=True) for t in made],
            [self._read(t) for t in given if id(t) in self.weights],
        )
        op.flops = _flops(op.name, given, made)
        op.backward_flops = op.flops * _operands_with_gradient(given) if self.backward else 0
        self.open[-1][1].steps.append(op)
        for t in made:
            if t.requires_grad:
                t.register_hook(lambda gradient, op=op: op.gradients.append(Value(-1, tuple(gradient.shape))))
        return result

    def value(self, tensor: Tensor, new: bool = False) -> Value:
        if new or id(tensor) not in self.numbers:
            self.kept.append(tensor)
            self.numbers[id(tensor)] = len(self.kept)
        return Value(self.numbers[id(tensor)], tuple(tensor.shape))

    def _read(self, tensor: Tensor) -> Weight:
        return Weight(self.weights[id(tensor)], self.value(tensor), self.unread.pop(id(tensor), 0))


def _name_of(func: Any) -> str:
    name: str = func.__name__
    if name == "__get__":  # an attribute, such as x.T
        name = func.__self__.__name__
    return SHORT.get(name, name)


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in nested arguments, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return _tensors(list(value.values()))
    return [t for inner in value for t in _tensors(inner)] if isinstance(value, tuple | list) else []


def _flops(name: str, given: list[Tensor], made: list[Tensor]) -> int:
    """Two for each multiply-add of a matrix product."""
    if name == "scaled_dot_product_attention":  # q k^T, then the weights times v
        q, k, v = given[:3]
        return 2 * q.shape[:-1].numel() * k.shape[-2] * (k.shape[-1] + v.shape[-1])
    if name in PRODUCTS:
        left = given[1] if name in ("addmm", "baddbmm") else given[0]
        return 2 * made[0].numel() * left.shape[-1]
    return 0


def _operands_with_gradient(given: list[Tensor]) -> int:
    """The number of matrix products in the backward pass: one for each operand that needs a gradient."""
    return min(2, sum(t.requires_grad for t in given if t.dim() > 1))


def _sizes(config: ModelConfig, vocab_size: int, batch: int, time: int) -> dict[str, int]:
    C, H = config.n_embd, config.n_head
    return {"B": batch, "T": time, "C": C, "H": H, "D": C // H, "V": vocab_size, "block_size": config.block_size}


def _twin_sizes(own: dict[str, int]) -> dict[str, int]:
    sizes = dict(TWIN)
    for name in ("V", "T", "B", "block_size") if own["V"] >= LARGE_VOCABULARY else ("T", "B", "block_size"):
        least = max(own[name], MIN_SIZE, sizes["T"] + 1 if name == "block_size" else 0)
        sizes[name] = next(n for n in itertools.count(least) if _distinct(sizes | {name: n}))
    return sizes


def _distinct(sizes: dict[str, int]) -> bool:
    return all(len(names) == 1 for names in _expressions(sizes).values())


def _expressions(sizes: dict[str, int]) -> dict[int, list[str]]:
    """Size → the expressions with this value: `T`, `3C`, `D/2`, `B·T`."""
    found: dict[int, list[str]] = {}
    for name, size in sizes.items():
        found.setdefault(size, []).append(name)
    found.setdefault(sizes["D"] // 2, []).append("D/2")
    for name, factor in MULTIPLES:
        found.setdefault(factor * sizes[name], []).append(f"{factor}{name}")
    for a, b in PAIRS:
        if a in sizes and b in sizes:
            found.setdefault(sizes[a] * sizes[b], []).append(f"{a}·{b}")
    return found


def _name(call: Call, twin: Call, own: dict[str, int], other: dict[str, int]) -> None:
    """Name the dimensions of a pass from the pass of the twin.

    If the two executed different operations, only the sizes with a single possible expression are named.
    """
    ops, twins = list(call.ops()), list(twin.ops())
    same_operations = [_kind(op) for op in ops] == [_kind(op) for op in twins]
    expressions = _expressions(other if same_operations else own)
    names: dict[int, tuple[str, ...]] = {}
    for op, named in zip(ops, twins if same_operations else ops, strict=True):
        for value, shown in zip(_values(op), _values(named), strict=True):
            sizes = zip(shown.shape, value.shape, strict=True)
            names[value.number] = tuple(_only(expressions.get(size, []), str(number)) for size, number in sizes)
    _put_names(call, names)


def _kind(op: Op) -> tuple[str, list[int]]:
    return op.name, [len(value.shape) for value in _values(op)]


def _only(names: list[str], otherwise: str) -> str:
    return names[0] if len(names) == 1 else otherwise


def _values(op: Op) -> list[Value]:
    return [*op.inputs, *op.outputs, *(weight.value for weight in op.weights)]


def _put_names(step: Step, names: dict[int, tuple[str, ...]]) -> None:
    def named(value: Value) -> Value:
        return dataclasses.replace(value, names=names.get(value.number, tuple(map(str, value.shape))))

    step.inputs, step.outputs = [*map(named, step.inputs)], [*map(named, step.outputs)]
    if isinstance(step, Call):
        for inner in step.steps:
            _put_names(inner, names)
        return
    step.weights = [dataclasses.replace(weight, value=named(weight.value)) for weight in step.weights]
    shapes = {value.shape: value.names for value in step.outputs}
    step.gradients = [
        dataclasses.replace(g, names=shapes.get(g.shape, tuple(map(str, g.shape)))) for g in step.gradients
    ]
