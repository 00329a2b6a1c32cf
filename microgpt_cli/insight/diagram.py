"""The contents of an architecture diagram, derived from the trace of a forward pass: boxes, sums, repeats, arrows.

In the style of the decoder figure of Vaswani et al. 2017 and Radford et al. 2018, from the token ids at the bottom to
the probabilities at the top. The code does not depend on the names of the model's modules. An addition of two results
is a ⊕; if one of them was computed earlier, the arrow that skips the modules in between is a residual connection.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from microgpt_cli.insight.trace import Call, Op, Step, Value, fold, parameters
from microgpt_cli.model.gpt import GPT

LAYOUT_OPS = {"view", "reshape", "permute", "transpose", "unbind", "flatten", "contiguous", "chunk", "split", "slice"}
SUMS = {"add", "add_"}
ATTEND = {"scaled_dot_product_attention", "softmax"}
ACTIVATIONS = {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU", "tanh": "tanh", "sigmoid": "sigmoid"}
NORMS = {"layer_norm": "LayerNorm", "rms_norm": "RMSNorm"}


@dataclass
class Part:
    """An element of the main path."""

    output: Value
    skips: list[int] = field(default_factory=list)  # earlier parts that are also inputs; -1 is the input of the path


@dataclass
class Box(Part):
    """A module, or an operation outside of modules."""

    name: str = ""  # in the code
    title: str = ""
    role: str = "other"  # embedding, norm, attention, mlp, head, other
    parameters: int = 0
    tied: str = ""  # the module whose weights it shares
    inside: list[str] = field(default_factory=list)


@dataclass
class Sum(Part):
    """⊕, and the boxes without inputs that it adds, such as the position embedding."""

    side_boxes: list[Box] = field(default_factory=list)


@dataclass
class Repeat(Part):
    """Consecutive equal modules, with the parts of one."""

    name: str = ""
    count: int = 1
    parameters: int = 0
    parts: list[Part] = field(default_factory=list)


@dataclass
class Diagram:
    """The path from `input` to the logits."""

    input: Value
    parts: list[Part]
    sizes: list[tuple[str, str, int]]  # B, batch, 4
    parameters: int

    @property
    def legend(self) -> list[str]:
        """Lines that explain the letters and numbers."""
        letters = [f"{letter} {meaning} {size}" for letter, meaning, size in self.sizes]
        half = len(letters) // 2
        parameters = f"number in a box: its parameters, {self.parameters:,} in total"
        return [" · ".join(letters[:half]), " · ".join(letters[half:]), parameters]


def diagram(model: GPT, call: Call) -> Diagram:
    """The diagram of a model.

    Args:
        model: the traced model.
        call: its trace, without the loss.
    """
    B, T = call.inputs[0].shape
    config = model.config
    sizes = [
        ("B", "batch", B),
        ("T", "time", T),
        ("C", "width", config.n_embd),
        ("H", "heads", config.n_head),
        ("D", "head size", config.n_embd // config.n_head),
        ("V", "vocabulary", model.vocab_size),
    ]
    return Diagram(call.inputs[0], _parts(call), sizes, parameters(call))


def format_shape(value: Value) -> str:
    """`(B, T, C) = (4, 32, 64)`."""
    names, numbers = (f"({', '.join(map(str, sizes))})" for sizes in (value.names, value.shape))
    return names if names == numbers else f"{names} = {numbers}"


def format_count(count: int) -> str:
    """`16,448`, `1.64M`."""
    return f"{count:,}" if count < 1_000_000 else f"{count / 1e6:,.3g}M"


def boxes(parts: Sequence[Part]) -> Iterator[Box]:
    """Every box, including nested ones."""
    for part in parts:
        if isinstance(part, Box):
            yield part
        elif isinstance(part, Repeat):
            yield from boxes(part.parts)
        elif isinstance(part, Sum):
            yield from part.side_boxes


def _parts(call: Call) -> list[Part]:
    """The steps of a call as parts, each with the earlier parts that its inputs come from."""
    parts: list[Part] = []
    made = {value.number: -1 for value in call.inputs}  # number of a value → part
    side_boxes: dict[int, Box] = {}
    for item in fold(list(_expand_containers(call))):
        step, outputs = item.step, item.last.outputs
        if not step.inputs:
            side_boxes |= {value.number: _box(step, call.path) for value in outputs}
            continue
        if isinstance(step, Op) and step.name in LAYOUT_OPS and not step.weights:
            made |= {value.number: made.get(step.inputs[0].number, -1) for value in outputs}
            continue
        sources = [made[value.number] for value in step.inputs if value.number in made]
        added = [side_boxes[value.number] for value in step.inputs if value.number in side_boxes]
        skips = sorted({part for part in sources if part != len(parts) - 1})
        if isinstance(step, Op) and step.name in SUMS and len(sources) + len(added) > 1:
            parts.append(Sum(outputs[0], skips, added))
        elif isinstance(step, Call) and _has_sums(step):
            inner = _parts(step)
            parts.append(Repeat(outputs[0], skips, step.kind, item.count, parameters(step), inner))
        else:
            box = _box(step, call.path)
            box.skips, box.output = skips, outputs[0]
            parts.append(box)
        made |= {value.number: len(parts) - 1 for value in outputs}
    return parts


def _expand_containers(call: Call) -> Iterator[Step]:
    """The steps of a call, with containers such as `Sequential` replaced by their steps."""
    for step in call.steps:
        if isinstance(step, Call) and step.steps and all(isinstance(inner, Call) for inner in step.steps):
            yield from _expand_containers(step)
        else:
            yield step


def _has_sums(call: Call) -> bool:
    """Whether it adds results of modules, like a transformer block."""
    modules = sum(isinstance(step, Call) for step in call.steps)
    return modules > 1 and any(isinstance(step, Op) and step.name in SUMS for step in call.steps)


def _box(step: Step, path: str) -> Box:
    ops = [step] if isinstance(step, Op) else list(step.ops())
    weights = [weight for op in ops for weight in op.weights]
    if isinstance(step, Op):
        name = weights[0].name.rpartition(".")[0].removeprefix(f"{path}.") if weights else step.name
        kind = step.name
    else:
        name, kind = step.name, step.kind
    called = {op.name for op in ops}
    foreign = [w for w in weights if isinstance(step, Call) and not w.name.startswith(f"{step.path}.")]
    box = Box(step.outputs[0], [], name, _title(name, kind), "other", parameters(step))
    box.tied = foreign[0].name.rpartition(".")[0] if foreign else ""
    if called & ATTEND:
        box.role, box.inside = "attention", _inside(step)
    elif called & NORMS.keys():
        box.role, box.title = "norm", NORMS[next(iter(called & NORMS.keys()))]
    elif "embedding" in called or "embedding" in name:
        box.role, box.inside = "embedding", [_sizes(weights[0].value)]
    elif sum(op.name == "linear" for op in ops) > 1:
        box.role, box.inside = "mlp", _inside(step)
    elif step.outputs[0].names[-1:] == ("V",):
        box.role, box.inside = "head", _inside(step)
    return box


def _title(name: str, kind: str) -> str:
    """`token_embedding_table` → `Token embedding`; `CausalSelfAttention` → `Causal self attention`."""
    if "embedding" in name:
        return name.removesuffix("_table").replace("_", " ").capitalize()
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z\d]+", kind)
    return " ".join([words[0], *(word if word.isupper() else word.lower() for word in words[1:])]) if words else kind


def _sizes(value: Value) -> str:
    """`V × C = 65 × 64`."""
    return f"{' × '.join(value.names)} = {' × '.join(map(str, value.shape))}"


def _inside(step: Step) -> list[str]:
    """The operations in a box, one line each, with the sizes of matrices."""
    lines: list[str] = []
    for item in fold(step.steps) if isinstance(step, Call) else []:
        inner = item.step
        if isinstance(inner, Call):
            only = next(inner.ops(), None)
            lines.append(
                f"{inner.name}: {_from_to(inner)}"
                if only is not None and only.name == "linear"
                else _title(inner.name, inner.kind).lower() + (": q and k" if item.count == 2 else "")
            )
        elif inner.name in ATTEND:
            heads = inner.inputs[0].shape[1]
            lines.append(f"{heads} heads: softmax(q kᵀ / √D) v" if heads > 1 else "softmax(q kᵀ / √D) v")
        elif inner.name in NORMS and len(inner.outputs[0].shape) == 4:
            lines.append(f"QK-norm: {NORMS[inner.name]}")
        elif inner.name in ACTIVATIONS:
            lines.append(ACTIVATIONS[inner.name])
        elif inner.name in ("square", "pow") and lines[-1:] == ["ReLU"]:
            lines[-1] = "ReLU²"
        elif inner.name == "linear":
            lines.append(_from_to(inner))
        elif inner.name == "dropout":
            lines.append("dropout")
    return list(dict.fromkeys(lines))


def _from_to(step: Step) -> str:
    """`C → 3C = 64 → 192`."""
    (before, after), (a, b) = zip(*((v.names[-1], v.shape[-1]) for v in (step.inputs[0], step.outputs[0])), strict=True)
    return f"{before} → {after} = {a} → {b}"
