"""`microgpt shapes`: every operation of a forward pass, with the shapes of its inputs and outputs."""

import itertools
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from microgpt_cli.commands import Invocation
from microgpt_cli.commands.model_source import described, traced
from microgpt_cli.config import ShapesConfig
from microgpt_cli.insight.diagram import format_shape
from microgpt_cli.insight.trace import Call, Folded, Op, Step, Value, Weight, backward_flops, flops, fold, parameters
from microgpt_cli.model.accounting import total_parameters
from microgpt_cli.model.gpt import GPT

INDENT = "  "
UNBOUNDED = 1 << 30  # columns, if standard output is not a terminal


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    label: str
    step: Step
    level: int


def run(config: ShapesConfig, invocation: Invocation) -> None:
    """Trace the model given by the config groups or by a run."""
    model, call = traced(described(config, invocation), config.batch, config.time, config.device, config.backward)
    if config.format == "json":
        print(json.dumps(_json(model, call, config), indent=2, ensure_ascii=False))
    else:
        screen = shutil.get_terminal_size().columns if sys.stdout.isatty() else UNBOUNDED
        print("\n".join(_page(model, call, config, screen)))


def _page(model: GPT, call: Call, config: ShapesConfig, screen: int) -> Iterator[str]:
    size, device = model.config, model.token_embedding_table.weight.device.type
    B, T = call.inputs[0].shape
    where = {"cpu": "on the CPU", "meta": "on the meta device (shapes without data)"}[device]
    yield f"Operations of one forward pass, in order; {B} sequences of {T} tokens, {where}"
    yield (
        f"B batch {B}, T time {T}, C n_embd {size.n_embd}, H heads {size.n_head}, D head size "
        f"{size.n_embd // size.n_head}, V vocabulary {model.vocab_size}"
    )
    yield ""
    rows = [
        (
            INDENT * row.level + row.label,
            _shapes(_inputs(row.step)),
            _shapes(row.step.outputs),
            _count(parameters(row.step)),
            _count(flops(row.step)),
        )
        for row in _rows([Folded(call, call)], config.depth)
    ]
    yield from _table(("operation", "in", "out", "parameters", "FLOPs"), rows, screen)
    forward, tokens = flops(call), B * T
    yield ""
    products = f"{forward:,} FLOPs in matrix products, {forward // tokens:,} per token"
    yield f"{total_parameters(model):,} parameters; {products}"
    if config.backward:
        yield from _back(call, config, screen)
        both = forward + backward_flops(call)
        yield ""
        yield f"{both:,} FLOPs forward and backward, {both // tokens:,} per token"


def _back(call: Call, config: ShapesConfig, screen: int) -> Iterator[str]:
    yield from ("", "Backward pass: a gradient has the shape of its tensor", "")
    rows = [
        (
            INDENT * row.level + row.label,
            _shapes(_output_gradients(row.step)),
            ", ".join(
                f"{name.rpartition('.')[2]} {format_shape(gradient)}" for name, gradient in _weight_gradients(row.step)
            ),
            _count(backward_flops(row.step)),
        )
        for row in _rows([Folded(call, call)], config.depth, reverse=True)
        if _output_gradients(row.step)
    ]
    yield from _table(("operation", "gradient", "of weights", "FLOPs"), rows, screen)


def _rows(
    folded: Sequence[Folded], depth: int | None, reverse: bool = False, level: int = 0, path: str = ""
) -> Iterator[Row]:
    """The lines of the table; a module with a single operation shares its line with it."""
    for item in reversed(folded) if reverse else folded:
        step, times = item.step, "" if item.count == 1 else f" × {item.count}"
        if isinstance(step, Op):
            yield Row(f"{step.name}{_of(step.weights, path)}", step, level)
            continue
        name = step.name if step.name == item.last.name else f"{step.name} … {item.last.name}"
        if step.name and len(step.steps) == 1 and isinstance(step.steps[0], Op):
            only = step.steps[0]
            foreign = [weight for weight in only.weights if not weight.name.startswith(f"{step.path}.")]
            yield Row(f"{name}: {only.name}{times}{_of(foreign, step.path)}", step, level)
            continue
        yield Row(f"{name}: {step.kind}{times}" if name else step.kind, step, level)
        if depth is None or level <= depth:
            inner = fold(step.steps) if depth is None else [Folded(one, one) for one in step.steps]
            yield from _rows(inner, depth, reverse, level + 1, step.path)


def _of(weights: Sequence[Weight], path: str) -> str:
    """The weights that are read, unless the label of the line names them."""
    names = [weight.name.removeprefix(f"{path}.") for weight in weights]
    return f" ({', '.join(names)})" if names else ""


def _ops(step: Step) -> list[Op]:
    return [step] if isinstance(step, Op) else list(step.ops())


def _inputs(step: Step) -> list[Value]:
    """The input tensors, or the weights of an operation without inputs."""
    return step.inputs or [weight.value for op in _ops(step) for weight in op.weights]


def _output_gradients(step: Step) -> list[Value]:
    """The gradients of a step's outputs."""
    if isinstance(step, Op):
        return step.gradients
    numbers = {value.number for value in step.outputs}
    return [g for op in step.ops() for value in op.outputs if value.number in numbers for g in op.gradients]


def _weight_gradients(step: Step) -> Iterator[tuple[str, Value]]:
    """The gradients of the weights, if the step is a single operation."""
    ops = _ops(step)
    for weight in ops[0].weights if len(ops) == 1 else []:
        if weight.gradient is not None:
            yield weight.name, replace(weight.value, shape=weight.gradient)


def _shapes(values: Sequence[Value]) -> str:
    """Formatted shapes, with consecutive equal ones grouped."""
    texts = [format_shape(value) for value in values]
    groups = [(text, len(list(same))) for text, same in itertools.groupby(texts)]
    return ", ".join(text if count == 1 else f"{count} × {text}" for text, count in groups)


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], screen: int) -> Iterator[str]:
    """Columns, the last two right-aligned; on a narrow terminal the shapes are on separate lines."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    wide = sum(widths) + 2 * (len(widths) - 1) <= screen
    for row in [head, *rows]:
        texts = [
            f"{text:{'<' if i < 3 else '>'}{width}}" for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        if wide:
            yield "  ".join(texts).rstrip()
            continue
        yield "  ".join([texts[0], *texts[3:]]).rstrip()
        if row is not head:
            indent = " " * (len(row[0]) - len(row[0].lstrip()) + 4)
            marks = [f"{words:{max(map(len, head[1:3]))}}" for words in head[1:3]]
            yield from (f"{indent}{mark} {text}" for mark, text in zip(marks, row[1:3], strict=True) if text)


def _json(model: GPT, call: Call, config: ShapesConfig) -> dict[str, Any]:
    """The complete trace, without grouping of equal blocks."""
    return {
        "device": model.token_embedding_table.weight.device.type,
        "batch": call.inputs[0].shape[0],
        "time": call.inputs[0].shape[1],
        "parameters": total_parameters(model),
        "flops": flops(call),
        **({"backward_flops": backward_flops(call)} if config.backward else {}),
        "path": _json_step(call),
    }


def _json_step(step: Step) -> dict[str, Any]:
    figures = {"parameters": parameters(step), "flops": flops(step)}
    page = {"in": [*map(_json_value, step.inputs)], "out": [*map(_json_value, step.outputs)], **figures}
    if isinstance(step, Call):
        return {"module": step.path, "class": step.kind, **page, "steps": [_json_step(inner) for inner in step.steps]}
    page["weights"] = [{"name": w.name, **_json_value(w.value)} for w in step.weights]
    if step.gradients:
        page |= {"gradients": [*map(_json_value, step.gradients)], "backward_flops": step.backward_flops}
        page["weight_gradients"] = {w.name: list(w.gradient) for w in step.weights if w.gradient is not None}
    return {"operation": step.name, **page}


def _json_value(value: Value) -> dict[str, Any]:
    return {"names": list(value.names), "shape": list(value.shape)}
