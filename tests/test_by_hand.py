"""The backward pass written out, against autograd's."""

import dataclasses

import pytest
import torch
from conftest import preset

from microgpt_cli.cli import main as cli
from microgpt_cli.compute import choose
from microgpt_cli.config import ModelConfig
from microgpt_cli.data.dataset import draw_starts
from microgpt_cli.engines.cpu.build import Unavailable
from microgpt_cli.engines.cpu.by_hand import ByHand
from microgpt_cli.engines.cpu.passes import NativePasses, Passes, TorchPasses
from microgpt_cli.model.gpt import GPT
from microgpt_cli.training import update
from microgpt_cli.training.optimizers import make_optimizer

V = 65
KINDS = [
    ("article", {}),
    ("gpt2", {}),
    ("article", {"bias": False, "head_bias": False, "activation": "gelu"}),
    ("article", {"qkv_bias": True, "tied_head": True}),
]
ONLY_IN_C = [
    ("modern", {}),
    ("modern", {"n_embd": 72, "n_head": 3, "bias": True, "qkv_bias": True}),  # no multiples of 16
    ("modern", {"position": "learned", "token_shift": False, "activation": "gelu", "tied_head": True}),
    ("article", {"qk_norm": True, "norm": "rmsnorm"}),
    ("gpt2", {"position": "rotary", "activation": "relu2", "n_embd": 40, "n_head": 2}),
]


def passes_of(kind: type[Passes], dtype: torch.dtype) -> Passes:
    try:
        return kind(dtype)
    except Unavailable as why:
        pytest.skip(str(why))


IN_EACH = [
    *((TorchPasses, *kind) for kind in KINDS),
    *((NativePasses, *kind) for kind in KINDS + ONLY_IN_C),
]


def disturbed(config: ModelConfig) -> GPT:
    """A model with no weight at 0, biases and gains among them, so that every path carries something."""
    torch.manual_seed(0)
    model = GPT(config, V)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def batch(T: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(1)
    return torch.randint(V, (4, T), generator=drawn), torch.randint(V, (4, T), generator=drawn)


def gradients(model: GPT) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    assert all(grad is not None for grad in found.values())
    return found  # type: ignore[return-value]


def by_autograd(model: GPT, dtype: torch.dtype, T: int = 32) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        _, loss = model(*batch(T))
    assert loss is not None
    loss.backward()
    return loss.detach(), gradients(model)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("T", [32, 7])
@pytest.mark.parametrize(("kind", "arch", "changes"), IN_EACH)
def test_in_float32_it_is_autograds_to_rounding(
    kind: type[Passes], arch: str, changes: dict[str, object], T: int
) -> None:
    model = disturbed(preset("micro", arch, **changes))
    expected_loss, expected = by_autograd(model, torch.float32, T)
    loss = ByHand(model, passes_of(kind, torch.float32)).backward(*batch(T))
    torch.testing.assert_close(loss, expected_loss)
    for name, grad in gradients(model).items():
        assert distance(grad, expected[name]) < 1e-5, name


@pytest.mark.parametrize(("kind", "arch", "changes"), IN_EACH)
def test_in_bfloat16_it_is_as_near_to_float32_as_autocast_is(
    kind: type[Passes], arch: str, changes: dict[str, object]
) -> None:
    """Stated bound: each gradient within 3% of the exact one's length plus what autocast's own is off."""
    model = disturbed(preset("micro", arch, **changes))
    exact_loss, exact = by_autograd(model, torch.float32)
    cast_loss, cast = by_autograd(model, torch.bfloat16)
    loss = ByHand(model, passes_of(kind, torch.bfloat16)).backward(*batch())
    assert abs(loss - exact_loss) <= abs(cast_loss - exact_loss) + 0.003 * exact_loss
    for name, grad in gradients(model).items():
        assert distance(grad, exact[name]) <= distance(cast[name], exact[name]) + 0.03, name


@pytest.mark.parametrize("kind", [TorchPasses, NativePasses])
def test_it_adds_a_share_to_what_is_there(kind: type[Passes]) -> None:
    model = disturbed(preset("micro", "gpt2"))
    hand = ByHand(model, passes_of(kind, torch.float32))
    whole_loss, whole = hand.backward(*batch()), gradients(model)
    halves = [hand.backward(idx, targets, 0.5) for idx, targets in zip(*(t.split(2) for t in batch()), strict=True)]
    torch.testing.assert_close(sum(halves), whole_loss)
    for name, grad in gradients(model).items():
        assert distance(grad, whole[name]) < 1e-5, name


@pytest.mark.parametrize("kind", [TorchPasses, NativePasses])
def test_it_sees_weights_that_have_changed(kind: type[Passes]) -> None:
    model = disturbed(preset("micro", "article"))
    hand = ByHand(model, passes_of(kind, torch.bfloat16))
    first = hand.backward(*batch())
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    expected, _ = by_autograd(model, torch.bfloat16)
    changed = hand.backward(*batch())
    assert changed.item() == pytest.approx(expected.item(), rel=1e-3)
    assert changed.item() != pytest.approx(first.item(), rel=1e-2)


def test_other_kinds_are_left_to_autograd() -> None:
    article = preset("micro", "article")
    only_in_c = {"qk_norm": True, "token_shift": True, "norm": "rmsnorm", "activation": "relu2", "position": "rotary"}
    for passes in (TorchPasses, NativePasses):
        assert passes.serve(article)
        assert passes.serve(preset("small", "gpt2"))
        for change in ({"dropout": 0.1}, {"block_size": 257}):
            assert not passes.serve(dataclasses.replace(article, **change)), change  # type: ignore[arg-type]
    for change in ({key: value} for key, value in only_in_c.items()):
        changed = dataclasses.replace(article, **change)  # type: ignore[arg-type]
        assert NativePasses.serve(changed)
        assert not TorchPasses.serve(changed)


@pytest.mark.parametrize("compile", ["native", "false"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_training_by_hand_is_training_by_autograd(kind: str, compile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = cli.load_config("train", [f"optim={kind}", "model.n_layer=2", "batch_size=4", "grad_accum_steps=2"])
    ids = torch.randint(V, (2000,), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    if compile == "native":
        passes_of(NativePasses, torch.float32)
    compute = choose("cpu", "float32", compile, trained=config.model)

    def train() -> tuple[list[float], dict[str, torch.Tensor], bool]:
        torch.manual_seed(0)
        model = GPT(config.model, V)
        made = update.Update(model, make_optimizer(model.named_parameters(), config.optim), ids, config, compute)
        numbers = []
        for step in range(3):
            done = made(draw_starts(len(ids), 8, 32, 0, step), 1e-3, 1.0, lambda: False)
            assert done is not None
            numbers += done.tolist()
        return numbers, dict(model.named_parameters()), made.is_by_hand

    numbers, weights, was_by_hand = train()
    monkeypatch.setattr(update, "choose_passes", lambda model, compute: None)
    expected_numbers, expected, was_autograd = train()
    assert was_by_hand
    assert not was_autograd
    assert numbers[:2] == pytest.approx(expected_numbers[:2], rel=1e-5)
    # Both updates magnify rounding: Adam's first steps are signs, Muon multiplies in bfloat16 where a CPU does.
    assert numbers == pytest.approx(expected_numbers, rel=0.02)
    for name, weight in weights.items():
        assert distance(weight.detach(), expected[name].detach()) < 0.05, name
