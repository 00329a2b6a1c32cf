"""Functions with gradients of their own: the plain ones' values and gradients, to float64's rounding."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import preset
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from microgpt_cli.model import kernels
from microgpt_cli.model.gpt import GPT
from microgpt_cli.model.layers import CausalSelfAttention, RMSNorm, Rotary, attend_written_out

sizes = st.integers(1, 5)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def agree(ours: Callable[..., Tensor], plain: Callable[..., Tensor], *given: Tensor) -> None:
    """Both give the same values, and send the same gradients back."""
    y, expected = ours(*given), plain(*given)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    dy = torch.randn_like(y)
    for found, wanted in zip(torch.autograd.grad(y, given, dy), torch.autograd.grad(expected, given, dy), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@given(sizes, sizes, sizes, st.sampled_from([1e-6, 0.1]))
def test_rms_norm(B: int, T: int, C: int, eps: float) -> None:
    agree(
        lambda x, gain: kernels.rms_norm(x, gain, eps),
        lambda x, gain: F.rms_norm(x, (C,), gain, eps),
        drawn(B, T, C),
        drawn(C),
    )


@given(sizes, sizes)
def test_squared_relu(rows: int, columns: int) -> None:
    agree(kernels.squared_relu, lambda x: F.relu(x).square(), drawn(rows, columns))


@given(sizes, sizes, sizes, sizes, st.booleans(), st.booleans())
def test_heads(B: int, T: int, H: int, half: int, qk_norm: bool, rotary: bool) -> None:
    turned = Rotary(2 * half, T).double() if rotary else None
    if turned is not None:  # a gradient that is exact needs cos² + sin² to be 1 to float64's rounding
        angle = torch.atan2(turned.sin, turned.cos)
        turned.cos, turned.sin = angle.cos(), angle.sin()
    eps = 1e-6 if qk_norm else None
    angles = None if turned is None else turned.angles(0, T, torch.float64)

    def plain(qkv: Tensor) -> Tensor:
        q, k, v = qkv.view(B, T, 3, H, 2 * half).permute(2, 0, 3, 1, 4)
        if qk_norm:
            q, k = F.rms_norm(q, (2 * half,), eps=1e-6), F.rms_norm(k, (2 * half,), eps=1e-6)
        if turned is not None:
            q, k = turned(q), turned(k)
        return torch.stack((q, k, v))

    agree(lambda qkv: torch.stack(kernels.heads(qkv, H, eps, angles)), plain, drawn(B, T, 3 * H * 2 * half))


@given(sizes, sizes, sizes, sizes)
def test_attend(B: int, H: int, T: int, D: int) -> None:
    q, k, v = (drawn(B, H, T, D) for _ in range(3))
    agree(lambda *qkv: kernels.attend(*qkv, 0.0), lambda *qkv: attend_written_out(*qkv, 0.0), q, k, v)


@pytest.mark.parametrize(("autocast", "bound"), [(False, 1e-5), (True, 0.05)])
def test_a_model_made_of_them_trains_as_one_of_the_plain_ones(
    autocast: bool, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients of `arch=modern`: float32 to rounding; with bfloat16 products within 5% of their norm."""
    torch.manual_seed(0)
    model = GPT(preset("micro", "modern"), 65)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    idx, targets = torch.randint(65, (64, 32)), torch.randint(65, (64, 32))
    assert kernels.pay(model.embed(idx))

    def gradients() -> list[Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            _, loss = model(idx, targets)
        assert loss is not None
        loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    ours = gradients()
    monkeypatch.setattr(CausalSelfAttention, "project_by_hand", CausalSelfAttention.project)
    monkeypatch.setattr(kernels, "attend", attend_written_out)
    monkeypatch.setattr(RMSNorm, "forward", torch.nn.RMSNorm.forward)
    monkeypatch.setattr(kernels, "squared_relu", lambda x: F.relu(x).square())
    for found, wanted in zip(ours, gradients(), strict=True):
        assert (found - wanted).norm() <= bound * wanted.norm()
