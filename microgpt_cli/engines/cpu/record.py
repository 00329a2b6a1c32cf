"""Record a model's forward pass as a list of calls of torch functions.

The pass runs once under a `TorchFunctionMode`, which intercepts each call. Expensive functions (linear, norms,
attention) are not executed: only shapes are needed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from microgpt_cli.model.loss import chunked_cross_entropy

IDX, TARGETS = 0, 1  # numbers of the inputs
READS = {"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "data_ptr", "nonzero", "unique"}


class Unsupported(Exception):
    """The pass can't be recorded; the message says why."""


@dataclass(frozen=True)
class Ref:
    """A tensor of the pass, by its number."""

    number: int


@dataclass(frozen=True)
class Node:
    """One call; tensor arguments are `Ref`s, or parameters and buffers of the model."""

    func: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]
    with_grad: bool  # not under torch.no_grad()


@dataclass(frozen=True)
class Recording:
    """The calls of one pass, in order."""

    nodes: list[Node]
    loss: int  # the number of the loss
    shapes: dict[int, tuple[int, ...]]
    floats: set[int]  # numbers of floating-point tensors
    uses: dict[int, int]  # number → how often it is an argument


def record(model: nn.Module, batch: int, time: int) -> Recording:
    """Record the pass of `model(idx, targets)` for idx and targets (batch, time).

    Raises:
        Unsupported: it depends on values of tensors, modifies tensors in place, or has hooks.
    """
    for path, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            raise Unsupported(f"hooks are registered on {path or 'the model'}")
    weight = next(model.parameters())
    idx, targets = torch.zeros(2, batch, time, dtype=torch.long, device=weight.device).unbind()
    recorder = _Recorder((*model.parameters(), *model.buffers()), idx, targets)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]), recorder:
        _, loss = model(idx, targets)
    return recorder.recording(loss)


def _empty_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.size(0))


def _empty_like_first(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.empty_like(x)


def _empty_loss(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x.new_empty(())


# functions that are not executed, and their results without values
SHAPES_ONLY: dict[Any, Callable[..., Tensor]] = {
    F.linear: _empty_product,
    F.layer_norm: _empty_like_first,
    F.rms_norm: _empty_like_first,
    F.gelu: _empty_like_first,
    F.relu: _empty_like_first,
    F.scaled_dot_product_attention: _empty_like_first,
    chunked_cross_entropy: _empty_loss,
}


class _Recorder(TorchFunctionMode):
    """Records each call of a torch function."""

    def __init__(self, own: tuple[Tensor, ...], idx: Tensor, targets: Tensor) -> None:
        super().__init__()
        self.own = {id(t) for t in own}  # parameters and buffers
        self.numbers = {id(idx): IDX, id(targets): TARGETS}
        self.kept = [idx, targets]  # keeps ids unique
        self.nodes: list[Node] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        given = [t for t in tensors((args, kwargs)) if id(t) in self.numbers or id(t) in self.own]
        if name in READS and any(id(t) in self.numbers for t in given):
            raise Unsupported(f"it depends on the values of a tensor ({name})")
        if given and ((name.endswith("_") and not name.endswith("__")) or name in ("__setitem__", "__iadd__")):
            raise Unsupported(f"it modifies a tensor in place ({name})")
        if kwargs.get("inplace") or kwargs.get("out") is not None:
            raise Unsupported(f"it modifies a tensor in place ({name})")
        result = SHAPES_ONLY.get(func, func)(*args, **kwargs)
        if isinstance(result, Tensor) and any(result is t for t in given):
            result = result.view_as(result)  # a new tensor, as after a conversion
        made = [t for t in tensors(result) if id(t) not in self.own]
        if made:
            outputs = tuple(self._number(t) for t in made)
            args, kwargs = self._with_refs(args), self._with_refs(kwargs)
            self.nodes.append(Node(func, name, args, kwargs, outputs, torch.is_grad_enabled()))
        return result

    def _number(self, tensor: Tensor) -> int:
        self.kept.append(tensor)
        return self.numbers.setdefault(id(tensor), len(self.kept) - 1)

    def _with_refs(self, thing: Any) -> Any:
        if isinstance(thing, Tensor):
            return Ref(self.numbers[id(thing)]) if id(thing) in self.numbers else thing
        if isinstance(thing, dict):
            return {key: self._with_refs(value) for key, value in thing.items()}
        return type(thing)(map(self._with_refs, thing)) if type(thing) in (tuple, list) else thing

    def recording(self, loss: Any) -> Recording:
        if id(loss) not in self.numbers:
            raise Unsupported("its loss is not the result of a torch function")
        uses: dict[int, int] = {}
        for node in self.nodes:
            for ref in refs((node.args, node.kwargs)):
                uses[ref.number] = uses.get(ref.number, 0) + 1
        shapes = {number: tuple(self.kept[number].shape) for number in self.numbers.values()}
        floats = {number for number in shapes if self.kept[number].is_floating_point()}
        return Recording(self.nodes, self.numbers[id(loss)], shapes, floats, uses)


def name_of(func: Any) -> str:
    """The name of a torch function, or of an attribute such as `x.T`."""
    name: str = func.__name__
    return func.__self__.__name__ if name == "__get__" else name


def tensors(thing: Any) -> list[Tensor]:
    """The tensors in nested arguments, in order."""
    return list(_within(thing, Tensor))


def refs(thing: Any) -> list[Ref]:
    """The references in nested arguments, in order."""
    return list(_within(thing, Ref))


def _within(thing: Any, kind: type) -> Iterator[Any]:
    if isinstance(thing, kind):
        yield thing
    elif isinstance(thing, dict):
        yield from _within(list(thing.values()), kind)
    elif isinstance(thing, tuple | list):
        for inner in thing:
            yield from _within(inner, kind)
