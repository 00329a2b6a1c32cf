"""The trace is what ran: it adds up to what accounting.py says, and names sizes whatever numbers they share."""

import dataclasses
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import ARCHES, SIZES, preset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microgpt_cli.insight.trace import Call, Op, Step, Value, backward_flops, flops, fold, parameters, trace
from microgpt_cli.model import loss
from microgpt_cli.model.accounting import flops_per_token, meta_model, total_parameters
from microgpt_cli.model.gpt import GPT
from microgpt_cli.model.layers import CausalSelfAttention


def values(step: Step) -> list[Value]:
    own = [*step.inputs, *step.outputs]
    if isinstance(step, Op):
        return [*own, *(weight.value for weight in step.weights)]
    return own + [value for inner in step.steps for value in values(inner)]


def written(call: Call) -> list[tuple[str, list[tuple[int, ...]]]]:
    return [(op.name, [value.shape for value in values(op)]) for op in call.ops()]


def names(call: Call) -> list[tuple[str, ...]]:
    return [value.names for value in values(call)]


def worth(name: str, sizes: dict[str, int]) -> int:
    """`3C` → 3 times the size of C."""
    if name.isdigit():
        return int(name)
    if name == "D/2":
        return sizes["D"] // 2
    if "·" in name:
        return sizes[name[0]] * sizes[name[2]]
    factor, letter = re.fullmatch(r"(\d*)(\w+)", name).groups()  # type: ignore[union-attr]
    return int(factor or 1) * sizes[letter]


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("size", SIZES)
def test_it_adds_up_to_what_accounting_says(size: str, arch: str) -> None:
    model = meta_model(preset(size, arch, n_layer=2), 65)
    T = model.config.block_size
    call = trace(model, 2, T, backward=True)
    assert parameters(call) == total_parameters(model)
    assert flops(call) + backward_flops(call) == flops_per_token(model).value * 2 * T
    assert [len([*step.ops()]) for step in call.steps if isinstance(step, Call) and step.name == "lm_head"] == [1]


@pytest.mark.parametrize("arch", ARCHES)
def test_a_real_pass_and_one_of_shapes_alone_are_the_same(arch: str) -> None:
    config = preset("micro", arch)
    real, meta = (trace(model, 3, 20) for model in (GPT(config, 65), meta_model(config, 65)))
    assert written(real) == written(meta)
    assert names(real) == names(meta)


@settings(max_examples=20, deadline=None)
@given(
    arch=st.sampled_from(ARCHES),
    H=st.integers(1, 6),
    half=st.integers(1, 4),
    B=st.integers(1, 9),
    T=st.integers(1, 9),
    more=st.sampled_from([0, 1]),
    V=st.integers(1, 9),
)
def test_a_name_does_not_depend_on_the_numbers_and_is_worth_its_number(
    arch: str, H: int, half: int, B: int, T: int, more: int, V: int
) -> None:
    config = preset("micro", arch, n_layer=1, n_head=H, n_embd=2 * half * H, block_size=T + more)
    call = trace(GPT(config, V), B, T)
    apart = trace(GPT(preset("micro", arch, n_layer=1, n_head=7, n_embd=154, block_size=41), 23), 5, 17)
    assert names(call) == names(apart)
    sizes = {"B": B, "T": T, "C": config.n_embd, "H": H, "D": 2 * half, "V": V, "block_size": T + more}
    for value in values(call):
        assert tuple(worth(name, sizes) for name in value.names) == value.shape


def test_sizes_that_coincide_are_told_apart() -> None:
    """B, H, D and n_layer are 4, and C, T, V and block_size 16."""
    config = preset("micro", "article", n_head=4, n_embd=16, block_size=16)
    ops = list(trace(GPT(config, 16), 4, 16).ops())
    attention = next(op for op in ops if op.name == "scaled_dot_product_attention")
    assert attention.outputs[0].names == ("B", "H", "T", "D")
    assert attention.outputs[0].shape == (4, 4, 16, 4)
    assert ops[-1].outputs[0].names == ("B", "T", "V")


def by_hand(self: CausalSelfAttention, x: Tensor) -> Tensor:
    q, k, v = self.project(x)
    scores = (q @ k.transpose(-2, -1)).mul_(q.size(-1) ** -0.5)  # (B, H, T, T)
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).tril()
    return self.merge(torch.matmul(F.softmax(scores.masked_fill(~mask, -torch.inf), -1), v))


def test_it_follows_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention written in another way is traced in that way, and its products are counted."""
    config = preset("micro", "article")
    before = trace(GPT(config, 65), 4, 32)
    monkeypatch.setattr(CausalSelfAttention, "forward", by_hand)
    after = trace(GPT(config, 65), 4, 32)
    called = [op.name for op in after.ops()]
    assert "scaled_dot_product_attention" not in called
    assert called.count("softmax") == called.count("mul_") == 4
    assert next(op for op in after.ops() if op.name == "softmax").outputs[0].names == ("B", "H", "T", "T")
    assert flops(after) == flops(before)


def test_code_that_looks_at_sizes_still_has_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = CausalSelfAttention.forward
    monkeypatch.setattr(
        CausalSelfAttention, "forward", lambda self, x: (by_hand if x.size(-1) == 64 else fused)(self, x)
    )
    call = trace(GPT(preset("micro", "article"), 65), 4, 32)
    softmax = next(op for op in call.ops() if op.name == "softmax")
    assert softmax.outputs[0].shape == (4, 4, 32, 32)
    assert softmax.outputs[0].names == ("4", "4", "32", "32")  # B or H, T or block_size
    assert [*call.ops()][-1].outputs[0].names == ("4", "32", "V")


def test_gradients_come_back_in_the_shapes_of_what_they_belong_to() -> None:
    model = GPT(preset("micro", "gpt2"), 65)
    call = trace(model, 2, 8, backward=True)
    seen: dict[str, tuple[int, ...] | None] = {}
    for op in call.ops():
        assert all(g.shape in [value.shape for value in op.outputs] for g in op.gradients)
        assert all(g.names and "" not in g.names for g in op.gradients if g.shape)
        seen |= {weight.name: weight.gradient for weight in op.weights}
    assert seen == {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert sum(len(op.gradients) for op in call.ops()) > 4 * 15
    assert all(p.grad is None for p in model.parameters())
    assert not any(op.gradients or op.backward_flops for op in trace(model, 2, 8).ops())


def test_equal_blocks_fold_and_others_do_not() -> None:
    model = GPT(preset("micro", "article"), 65)
    blocks = next(step for step in trace(model, 1, 4).steps if isinstance(step, Call) and step.name == "blocks")
    [folded] = fold(blocks.steps)
    assert (folded.step.name, folded.last.name, folded.count) == ("0", "3", 4)
    model.blocks[2] = torch.nn.Identity()
    blocks = next(step for step in trace(model, 1, 4).steps if isinstance(step, Call) and step.name == "blocks")
    assert [item.count for item in fold(blocks.steps)] == [2, 1, 1]


def test_a_tied_head_reads_the_weights_of_the_table() -> None:
    call = trace(GPT(preset("micro", "gpt2"), 65), 1, 4)
    [head] = [op for op in call.ops() if op.outputs[0].names == ("B", "T", "V")]
    assert [(weight.name, weight.count) for weight in head.weights] == [("token_embedding_table.weight", 0)]


def test_dropout_is_on_the_path_where_there_is_some() -> None:
    config = preset("micro", "article", dropout=0.1)
    model = GPT(config, 65)
    called = [op.name for op in trace(model, 1, 4).ops()]
    assert called.count("dropout") == 8  # that of the attention's weights is part of scaled_dot_product_attention
    assert "dropout" not in [op.name for op in trace(model.eval(), 1, 4).ops()]
    whole = GPT(dataclasses.replace(config, dropout=0.0), 65)
    assert "dropout" not in [op.name for op in trace(whole, 1, 4).ops()]


def test_a_loss_in_chunks_is_traced_as_the_head_and_the_loss_of_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 4096 * 64)
    model = GPT(preset("micro", "gpt2"), 4096)
    assert loss.needs_chunks(4 * 32, 4096)
    *_, head, end = trace(model, 4, 32, backward=True).ops()
    assert (head.name, head.outputs[0].names) == ("linear", ("B·T", "V"))
    assert head.flops == 2 * 4 * 32 * 64 * 4096
    assert head.backward_flops == 2 * head.flops
    assert [weight.gradient for weight in head.weights] == [(4096, 64)]
    assert end.name == "cross_entropy"
    assert [value.names for value in end.inputs] == [("B·T", "V"), ("B·T",)]


def test_tracing_draws_nothing_and_changes_nothing() -> None:
    model = GPT(preset("micro", "article", dropout=0.5), 65)
    weights, state = [p.clone() for p in model.parameters()], torch.get_rng_state()
    trace(model, 2, 8, backward=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
