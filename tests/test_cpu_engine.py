"""The CPU engine: its loss and gradients against autograd's, for every kind of model and for edited ones."""

import dataclasses
import re
from typing import Any

import pytest
import torch
from conftest import preset
from support.engines import batch, by_autograd, distance, engine_of, gradients, loss_and_gradients
from support.models import EDITS, KINDS, V, apply_edit, disturbed, exact_gelu, in_place, written_out_attention
from torch import Tensor

from microgpt_cli.cli import main as cli
from microgpt_cli.compute import choose
from microgpt_cli.data.dataset import gather_windows, sample_starts
from microgpt_cli.engines.autograd import Autograd
from microgpt_cli.engines.cpu import ops
from microgpt_cli.engines.cpu.record import Unsupported
from microgpt_cli.model import loss as loss_module
from microgpt_cli.model.gpt import GPT
from microgpt_cli.model.layers import Block
from microgpt_cli.training.update import Update

DROPOUT = [("gpt2", {"dropout": 0.2}), ("modern", {"dropout": 0.1})]


@pytest.mark.parametrize("T", [32, 7])
@pytest.mark.parametrize(("arch", "changes"), KINDS + DROPOUT)
def test_float32_gradients_equal_autograds(arch: str, changes: dict[str, object], T: int) -> None:
    model = disturbed(preset("micro", arch, **changes))
    expected_loss, expected = by_autograd(model, torch.float32, T)
    loss, found = loss_and_gradients(model, torch.float32, T)
    torch.testing.assert_close(loss, expected_loss)
    for name, grad in found.items():
        assert distance(grad, expected[name]) < 1e-5, name


@pytest.mark.parametrize(("arch", "changes"), KINDS)
def test_bfloat16_gradients_are_as_near_to_float32_as_autocasts(arch: str, changes: dict[str, object]) -> None:
    """Stated bound: each gradient within 3% of the exact one's length plus what autocast's own is off."""
    model = disturbed(preset("micro", arch, **changes))
    exact_loss, exact = by_autograd(model, torch.float32)
    cast_loss, cast = by_autograd(model, torch.bfloat16)
    loss, found = loss_and_gradients(model, torch.bfloat16)
    assert abs(loss - exact_loss) <= abs(cast_loss - exact_loss) + 0.003 * exact_loss
    for name, grad in found.items():
        assert distance(grad, exact[name]) <= distance(cast[name], exact[name]) + 0.03, name


@pytest.mark.parametrize("changes", [{"block_size": 300}, {"dropout": 0.1}])
def test_longer_contexts_and_dropout_run_in_torch_inside_the_plan(changes: dict[str, object]) -> None:
    model = disturbed(preset("micro", "modern", **changes, n_layer=1))
    engine = engine_of(model)
    T = 300 if "block_size" in changes else 32
    kinds = [type(op) for op in engine.plan((4, T)).plan]
    assert kinds.count(ops.Torch) > 1
    assert kinds.count(ops.Attention) == 0
    assert kinds.count(ops.Norm) == 3
    expected_loss, expected = by_autograd(model, torch.float32, T)
    loss, found = loss_and_gradients(model, torch.float32, T)
    torch.testing.assert_close(loss, expected_loss)
    assert all(distance(grad, expected[name]) < 1e-5 for name, grad in found.items())


def test_a_model_of_ours_runs_in_kernels() -> None:
    """Only the embeddings are left to torch."""
    for arch in ("article", "gpt2", "modern"):
        plan = engine_of(GPT(preset("micro", arch), V)).plan((4, 32)).plan
        assert [type(op) for op in plan].count(ops.Torch) == 1
        assert len(plan) == 1 + 4 * 8 + 3


def test_a_large_vocabulary_has_its_loss_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", 4096 * 64)
    torch.manual_seed(0)
    model = GPT(preset("micro", "gpt2", n_layer=1), 4096)
    assert loss_module.needs_chunks(4 * 32, 4096)
    last = engine_of(model).plan((4, 32)).plan[-1]
    assert isinstance(last, ops.Torch)
    assert [node.func for node in last.nodes][-1] is loss_module.chunked_cross_entropy
    expected_loss, expected = by_autograd(model, torch.float32)
    loss, found = loss_and_gradients(model)
    torch.testing.assert_close(loss, expected_loss)
    assert all(distance(grad, expected[name]) < 1e-5 for name, grad in found.items())


def test_a_share_is_added_to_the_gradients_that_are_there() -> None:
    model = disturbed(preset("micro", "gpt2"))
    engine = engine_of(model)
    whole_loss, whole = loss_and_gradients(model)
    shares = []
    for idx, targets in zip(*(t.split(2) for t in batch()), strict=True):
        shares.append(engine.forward_pass(idx, targets, 0.5))
        engine.backward_pass()
    torch.testing.assert_close(sum(shares), whole_loss)
    for name, grad in gradients(model).items():
        assert distance(grad, whole[name]) < 1e-5, name


def test_weights_that_change_between_passes_count() -> None:
    model = disturbed(preset("micro", "gpt2"))
    engine = engine_of(model, torch.bfloat16)
    before = engine.forward_pass(*batch())
    with torch.no_grad():
        model.blocks[0].mlp.fc.weight.mul_(2)
    assert engine.forward_pass(*batch()) != before


def first_step(model: GPT, engine: str) -> tuple[float, float]:
    """Loss and gradient norm of the first step of a run."""
    words = ["optim=adamw", "batch_size=4", "device=cpu", "dtype=float32"]
    config = dataclasses.replace(cli.load_config("train", words), model=model.config)
    compute = choose("cpu", "float32", engine, trained=model.config)
    if compute.engine != engine:
        pytest.skip(compute.reasons["engine"])
    ids = torch.randint(V, (2000,), generator=torch.Generator().manual_seed(3))
    made = Update.fresh(model, ids, config, compute)
    assert made.check_engine(ids[None, :32], ids[None, 1:33]) is None
    numbers = made(sample_starts(len(ids), 4, 32, 0, 0), 1e-3, 1.0, lambda: False)
    assert numbers is not None
    loss, norm = numbers.tolist()
    return loss, norm


@pytest.mark.parametrize("engine", ["torch", "native"])
@pytest.mark.parametrize("how", ["monkeypatch", "subclass", "instance"])
@pytest.mark.parametrize(("arch", "owner", "edit"), EDITS)
def test_an_edit_changes_the_first_step_as_autograd_says(
    monkeypatch: pytest.MonkeyPatch, arch: str, owner: type[Any], edit: Any, how: str, engine: str
) -> None:
    model = disturbed(preset("micro", arch))
    before = first_step(disturbed(model.config), engine)
    apply_edit(monkeypatch, model, owner, edit, how)
    found = first_step(model, engine)
    if edit not in (exact_gelu, written_out_attention):  # these two say the same, almost
        assert abs(found[0] - before[0]) > 1e-4
    ids = torch.randint(V, (2000,), generator=torch.Generator().manual_seed(3))
    model.zero_grad()
    model.load_state_dict(disturbed(model.config).state_dict())  # as before the step
    idx, targets = gather_windows(ids, sample_starts(len(ids), 4, 32, 0, 0), 32, torch.device("cpu"))
    _, loss = model(idx, targets)
    assert loss is not None
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert found == pytest.approx((loss.item(), norm.item()), rel=1e-4)


def looks_at_numbers(self: Block, x: Tensor) -> Tensor:
    return x * 2 if x.max() > 1e9 else x


class Negated(torch.autograd.Function):
    """The identity, whose gradient is turned round: no recording of a forward pass shows that."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> Tensor:
        return -dy[0]


def with_own_gradient(self: Block, x: Tensor) -> Tensor:
    return Negated.apply(x + self.attention(self.ln1(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (in_place, r"modifies a tensor in place \(add_\)"),
        (looks_at_numbers, r"depends on the values of a tensor \(__bool__\)"),
        (with_own_gradient, "the gradient of .* by engine=native differs from autograd"),
    ],
)
def test_what_cannot_be_followed_goes_on_in_torch_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, edit: Any, why: str
) -> None:
    monkeypatch.setattr(Block, "forward", edit)
    model = disturbed(preset("micro", "gpt2"))
    engine_of(model)
    compute = choose("cpu", "float32", "native", trained=model.config)
    config = dataclasses.replace(cli.load_config("train", ["optim=adamw", "batch_size=4"]), model=model.config)
    made = Update.fresh(model, torch.zeros(100, dtype=torch.long), config, compute)
    warning = made.check_engine(*batch())
    assert warning is not None
    assert re.search(why, warning)
    assert "continuing with engine=torch" in warning
    assert isinstance(made.engine, Autograd)


def test_hooks_are_not_passed_over() -> None:
    model = GPT(preset("micro", "gpt2"), V)
    model.blocks[1].mlp.register_forward_hook(lambda *_: None)
    with pytest.raises(Unsupported, match=r"hooks are registered on blocks.1.mlp"):
        engine_of(model).plan((4, 32))


def test_the_check_leaves_gradients_and_draws_as_they_were() -> None:
    model = disturbed(preset("micro", "gpt2", dropout=0.1))
    engine = engine_of(model)
    engine.forward_pass(*batch())
    engine.backward_pass()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    state = torch.get_rng_state()
    assert engine.difference(*batch()) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p.grad, before[name]) for name, p in model.named_parameters() if p.grad is not None)
