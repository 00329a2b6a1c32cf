"""The formulas against what torch itself counts."""

import pytest
import torch
from conftest import ARCHES, SIZES, optim, preset
from torch.utils.flop_counter import FlopCounterMode

from microgpt_cli.engines.cpu import kernels
from microgpt_cli.model import loss
from microgpt_cli.model.accounting import (
    MAX_NATIVE_ATTENTION,
    embedding_parameters,
    flops_per_token,
    memory,
    meta_model,
    parameter_rows,
    total_parameters,
)
from microgpt_cli.model.gpt import GPT
from microgpt_cli.training.optimizers import make_optimizer


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("size", SIZES)
def test_rows_add_up_to_the_total_at_every_depth(size: str, arch: str) -> None:
    model = meta_model(preset(size, arch), 65)
    total = total_parameters(model)
    rows = parameter_rows(model, depth=3)
    assert sum(row.count for row in rows if row.depth == 0) == total
    blocks = next(row.count for row in rows if row.name == "blocks")
    assert sum(row.count for row in rows if row.depth == 1) == blocks
    assert all(eval_formula(row.formula) == row.count for row in rows)
    assert total - embedding_parameters(model) > 0


def eval_formula(text: str) -> int:
    """`4 × 49,792 + 3` → 199171."""
    if text.startswith("shared"):
        return 0
    total = 0
    for term in text.replace(",", "").split(" + "):
        product = 1
        for factor in term.split(" × "):
            product *= int(factor)
        total += product
    return total


@pytest.mark.parametrize("arch", ARCHES)
def test_flops_are_what_the_flop_counter_counts(arch: str) -> None:
    model = GPT(preset("micro", arch), 65)
    idx = torch.randint(65, (2, 32))
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        _, loss = model(idx, idx)
        loss.backward()
    assert flops_per_token(model).value == counter.get_total_flops() // idx.numel()


def saved_bytes(model: GPT, batch_size: int) -> int:
    """Bytes that autograd keeps of a forward pass, parameters and buffers apart."""
    T, V = model.config.block_size, model.vocab_size
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    idx, targets = torch.randint(V, (batch_size, T)), torch.randint(V, (batch_size, T))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(idx, targets)
    return sum(t.untyped_storage().nbytes() for t in saved.values())


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("V", [65, 5003])
def test_activation_bytes_are_what_autograd_saves_with_fused_attention(
    arch: str, batch_size: int, V: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 64 * 5003)  # of the larger vocabulary, three windows are two chunks
    model = GPT(preset("micro", arch), V)
    assert memory(model, batch_size, optim(), "torch")["activations"].value == saved_bytes(model, batch_size)


@pytest.mark.parametrize("T", [32, 257])
def test_the_native_engine_also_keeps_the_attention_weights_of_short_contexts(T: int) -> None:
    assert kernels.MAX_ATTENTION == MAX_NATIVE_ATTENTION
    model = meta_model(preset("micro", "article", block_size=T), 65)
    native, torchs = (memory(model, 2, optim(), engine)["activations"].value for engine in ("native", "torch"))
    kept = 4 * 4 * 2 * 4 * (T * T - T) if T <= MAX_NATIVE_ATTENTION else 0  # bytes, layers, B, H
    assert native - torchs == kept


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_optimizer_bytes_are_those_of_its_state(arch: str, kind: str) -> None:
    model = GPT(preset("micro", arch), 65)
    state = make_optimizer(model.named_parameters(), optim(kind=kind)).state()
    cost = memory(model, 1, optim(kind=kind), "torch")["optimizer"]
    assert cost.value == sum(tensor.nbytes for tensor in state.values()) == eval_formula(cost.formula)


def test_weights_gradients_and_state_are_four_bytes_each() -> None:
    costs = memory(meta_model(preset("micro", "article"), 65), 16, optim(), "torch")
    assert costs["weights"].value == costs["gradients"].value == 4 * 209_729
    assert costs["optimizer"].value == 8 * 209_729 + 4
    assert all(eval_formula(cost.formula) == cost.value for cost in costs.values())
