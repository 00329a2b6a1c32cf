"""Check that a model's code matches the cached decoders, which read its weights and never call its forward pass.

The forward pass is recorded and planned as for training (`cpu/record.py`, `cpu/plan.py`), which needs no compiler. The
decoders support it if its operations are those of a GPT, in order, with the expected weights and inputs.
"""

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microgpt_cli.engines.cpu import ops
from microgpt_cli.engines.cpu.kernels import Kernels
from microgpt_cli.engines.cpu.plan import Planner
from microgpt_cli.engines.cpu.record import IDX, Unsupported, record
from microgpt_cli.model.gpt import GPT
from microgpt_cli.model.layers import QK_NORM_EPS, Block, CausalSelfAttention

RECORDED_TOKENS = 8
FALLBACK = "sampling by the model's own forward pass, without a cache"


def difference(model: GPT) -> str | None:
    """Describe what the decoders do not support in a model; None if they support it."""
    was_training, frozen = model.training, [p for p in model.parameters() if not p.requires_grad]
    for p in frozen:
        p.requires_grad_()
    try:
        T = min(RECORDED_TOKENS, model.config.block_size)
        plan = Planner(
            record(model.eval(), 1, T), cast(Kernels, _Exact()), lambda weight: weight, model.lm_head.weight.dtype
        ).plan
        where = next(_unlike(model, iter(plan), T), None)
    except Unsupported as why:
        return f"the model's code can't be recorded: {why}; {FALLBACK}"
    finally:
        model.train(was_training)
        for p in frozen:
            p.requires_grad_(False)
    return None if where is None else f"{where} is not supported by the decoders; {FALLBACK}"


class _Exact:
    """Stands in for `Kernels` in a plan that is not run."""

    dtype = torch.float32


def _unlike(model: GPT, plan: Iterator[ops.Op], T: int) -> Iterator[str]:
    """Yield the parts of the model that differ; only the first one is reliable."""
    config, end = model.config, cast(ops.Op, None)
    x, embedded = _embedded(model, next(plan, end), T)
    if not embedded:
        yield "the code of GPT.embed, or of what blocks.0 does first,"
    y = x  # output of the last operation
    before: tuple[int | None, Tensor | None] = None, None  # to be added to x, and its bias

    def norm(layer: Any) -> bool:
        nonlocal x, y, before
        op, centred = next(plan, end), isinstance(layer, nn.LayerNorm)
        if not isinstance(op, ops.Norm) or (op.x, op.more, op.more_bias) != (x, *before):
            return False
        x, y, before = op.total, op.y, (None, None)
        own = op.weight is layer.weight and op.bias is getattr(layer, "bias", None)
        return own and (op.eps, op.is_centred) == (layer.eps, centred)

    def linear(layer: nn.Linear) -> bool:
        nonlocal y
        op = next(plan, end)
        if not isinstance(op, ops.Linear) or op.x != y:
            return False
        y = op.y
        return op.weight is layer.weight and op.bias is layer.bias

    def attention(layer: CausalSelfAttention) -> bool:
        nonlocal y
        op = next(plan, end)
        if not isinstance(op, ops.Attention) or op.qkv != y:
            return False
        y, heads = op.y, op.heads
        eps, angles = QK_NORM_EPS if config.qk_norm else 0.0, None
        if layer.rotary is not None:
            angles = layer.rotary.angles(0, T, layer.qkv.weight.dtype)
        return (
            heads.bias is layer.qkv.bias
            and (heads.H, heads.eps) == (config.n_head, eps)
            and _equal(heads.angles, angles)
        )

    def activation(bias: Tensor | None) -> bool:
        nonlocal y
        op = next(plan, end)
        if not isinstance(op, ops.Activation) or op.x != y:
            return False
        y = op.y
        return op.kind == config.activation and op.bias is bias

    for i, block in enumerate(cast(Iterable[Block], model.blocks)):
        if not norm(block.ln1):
            yield f"the code of blocks.{i}.ln1 or of the block around it"
        if not (linear(block.attention.qkv) and attention(block.attention) and linear(block.attention.proj)):
            yield f"the code of blocks.{i}.attention"
        before = y, block.attention.proj.bias
        if not norm(block.ln2):
            yield f"the code of blocks.{i}.ln2 or of the block around it"
        if not (linear(block.mlp.fc) and activation(block.mlp.fc.bias) and linear(block.mlp.proj)):
            yield f"the code of blocks.{i}.mlp"
        before = y, block.mlp.proj.bias
    if not (norm(model.ln_f) and linear(model.lm_head)):
        yield "the code of ln_f, of lm_head or of what is around them"
    op = next(plan, end)
    if not isinstance(op, ops.CrossEntropy) or (op.logits, op.bias) != (y, model.lm_head.bias) or next(plan, end):
        yield "the code of GPT.forward"


def _embedded(model: GPT, op: ops.Op, T: int) -> tuple[int, bool]:
    """The number of the embedded tokens, and whether they equal the decoders' embedding."""
    if not isinstance(op, ops.Torch) or len(op.outputs) != 1 or op.inputs != {IDX}:
        return IDX, False
    [x] = op.outputs
    device = model.token_embedding_table.weight.device
    idx = torch.arange(T, device=device).remainder(model.vocab_size)[None]
    values: ops.Values = {IDX: idx}
    op.forward(values)
    with torch.no_grad():
        expected = model.token_embedding_table.weight[idx[0]]
        if model.config.token_shift:
            expected = expected + model.token_shift.share * F.pad(expected, (0, 0, 1, -1))
        if model.config.position == "learned":
            expected = expected + model.position_embedding_table.weight[:T]
    return x, torch.equal(values[x], expected.float())


def _equal(xs: tuple[Tensor, Tensor] | None, ys: tuple[Tensor, Tensor] | None) -> bool:
    if xs is None or ys is None:
        return xs is ys
    return all(torch.equal(x, y) for x, y in zip(xs, ys, strict=True))
