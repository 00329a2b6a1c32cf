"""Loss and gradients of a batch, by the CPU engine and by autograd."""

import pytest
import torch
from torch import Tensor

from microgpt_cli.engines.cpu.build import Unavailable
from microgpt_cli.engines.cpu.engine import CpuEngine
from microgpt_cli.model.gpt import GPT
from support.models import V


def engine_of(model: GPT, dtype: torch.dtype = torch.float32) -> CpuEngine:
    try:
        return CpuEngine(model, dtype)
    except Unavailable as why:
        pytest.skip(str(why))


def loss_and_gradients(model: GPT, dtype: torch.dtype = torch.float32, T: int = 32) -> tuple[Tensor, dict[str, Tensor]]:
    """By the engine, drawing the dropout that `by_autograd` draws."""
    engine = engine_of(model, dtype)
    torch.manual_seed(2)
    loss = engine.forward_pass(*batch(T))
    engine.backward_pass()
    return loss, gradients(model)


def batch(T: int = 32) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(1)
    return torch.randint(V, (4, T), generator=drawn), torch.randint(V, (4, T), generator=drawn)


def gradients(model: GPT) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    assert all(grad is not None for grad in found.values())
    return found  # type: ignore[return-value]


def by_autograd(model: GPT, dtype: torch.dtype, T: int = 32) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        _, loss = model(*batch(T))
    assert loss is not None
    loss.backward()
    return loss.detach(), gradients(model)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
