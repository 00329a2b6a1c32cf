"""The loss in chunks is the loss, and the logits of all tokens are never there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import preset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from microgpt_cli.compute import choose
from microgpt_cli.data.dataset import windows
from microgpt_cli.insight.token_losses import token_losses
from microgpt_cli.model import loss
from microgpt_cli.model.gpt import GPT
from microgpt_cli.model.layers import Head
from microgpt_cli.training.trainer import evaluate

V = 5003  # large, and no multiple of 64


@contextmanager
def chunks_of(rows: int, multiple: int = 1) -> Iterator[None]:
    """Chunks of so many rows of a vocabulary of V."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "CHUNK_LOGITS", rows * V)
        patch.setattr(loss, "ROWS_MULTIPLE", multiple)
        yield


class Largest(TorchDispatchMode):
    """Sees every tensor that is made, in the backward pass too, and notes how many numbers the largest one has."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in tree_leaves(made) if isinstance(t, torch.Tensor))])
        return made


def losses_and_gradients(head: Head, x: torch.Tensor, targets: torch.Tensor, chunked: bool) -> list[torch.Tensor]:
    """The loss times 3, and its gradients by x and the head's weights."""
    x = x.clone().requires_grad_()
    head.zero_grad()
    mean = loss.chunked_cross_entropy(x, head, targets) if chunked else F.cross_entropy(head(x), targets)
    (3 * mean).backward()
    return [mean.detach(), *(p.grad for p in (x, *head.parameters()) if p.grad is not None)]


@settings(max_examples=25, deadline=None)
@given(
    N=st.integers(1, 40),
    C=st.integers(1, 20),
    vocab_size=st.integers(2, 200),
    rows=st.integers(1, 50),
    bias=st.booleans(),
    extra=st.sampled_from([0, 3]),
    seed=st.integers(0, 9),
)
def test_loss_and_gradients_are_those_of_the_plain_path(
    N: int, C: int, vocab_size: int, rows: int, bias: bool, extra: int, seed: int
) -> None:
    """Whatever the sizes, a last chunk that is not whole, and a head that is made wider for its product."""
    torch.manual_seed(seed)
    head, x, targets = Head(C, vocab_size, bias=bias), 3 * torch.randn(N, C), torch.randint(vocab_size, (N,))
    expected = losses_and_gradients(head, x, targets, chunked=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "chunk_rows", lambda vocab_size: rows)
        patch.setattr(loss, "padding", lambda x, vocab_size: extra)
        found = losses_and_gradients(head, x, targets, chunked=True)
        with torch.no_grad():
            assert loss.chunked_cross_entropy(x, head, targets).item() == pytest.approx(found[0].item(), rel=1e-5)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def step(model: GPT, idx: torch.Tensor, targets: torch.Tensor, **autocast: Any) -> tuple[float, list[torch.Tensor]]:
    """The loss of two micro-batches, and all gradients."""
    model.zero_grad()
    total = 0.0
    for a, b in zip(idx.chunk(2), targets.chunk(2), strict=True):
        with torch.autocast("cpu", torch.bfloat16, **autocast):
            _, mean = model(a, b)
        (mean / 2).backward()
        total += mean.item() / 2
    return total, [p.grad.clone() for p in model.parameters() if p.grad is not None]


def model_and_batch(arch: str, B: int = 4) -> tuple[GPT, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = GPT(preset("micro", arch, n_layer=1), V)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model, torch.randint(V, (B, 32)), torch.randint(V, (B, 32))


@pytest.mark.parametrize(("low", "bound"), [(False, 1e-5), (True, 2e-2)], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("arch", ["gpt2", "article", "modern"])  # a tied head, one with a bias, and neither
def test_a_model_learns_the_same_from_chunks(arch: str, low: bool, bound: float) -> None:
    """In bfloat16 gradients differ by less than 2% of their length, which is what bfloat16 itself costs them."""
    model, idx, targets = model_and_batch(arch)
    expected, gradients = step(model, idx, targets, enabled=low)
    with chunks_of(48):
        assert model(idx, targets)[0] is None
        total, found = step(model, idx, targets, enabled=low)
    assert total == pytest.approx(expected, rel=bound / 10)
    assert len(found) == len(gradients) == len([*model.parameters()])
    for a, b, (name, _) in zip(found, gradients, model.named_parameters(), strict=True):
        assert (a - b).norm() <= bound * b.norm(), name


@pytest.mark.parametrize("low", [False, True])
def test_the_logits_of_all_tokens_are_never_there(low: bool) -> None:
    model, idx, targets = model_and_batch("gpt2", B=16)
    rows = 64
    head = model.lm_head.weight.numel()
    assert idx.numel() * V > 2 * max(rows * V, head)

    def largest() -> int:
        with Largest() as seen:
            step(model, idx, targets, enabled=low)
            with torch.no_grad():
                model(idx, targets)
        return seen.numel

    with chunks_of(rows):
        assert largest() == max(rows * V, head)
    assert largest() == idx.numel() * V


def test_a_small_vocabulary_or_few_tokens_have_their_logits_whole() -> None:
    rows = loss.chunk_rows(50_257)
    assert rows % 64 == 0
    assert rows * 50_257 <= loss.CHUNK_LOGITS
    assert loss.needs_chunks(rows + 1, 50_257)
    assert not loss.needs_chunks(rows, 50_257)
    assert not loss.needs_chunks(1 << 30, 256)
    assert loss.chunk_rows(1 << 30) == 64
    model, idx, targets = model_and_batch("gpt2")
    logits, mean = model(idx, targets)
    assert torch.equal(mean, F.cross_entropy(logits.view(-1, V), targets.view(-1)))


def test_an_evaluation_in_chunks_is_the_mean_of_the_losses_of_all_tokens() -> None:
    model, _, _ = model_and_batch("gpt2")
    model.eval()
    ids, compute = torch.randint(V, (1000,)), choose("cpu", "float32")
    exact = torch.cat([piece.losses.flatten() for piece in token_losses(model, ids, compute, 4)]).mean().item()
    with chunks_of(48):
        assert all(model(*pair)[0] is None for pair in [*windows(ids, 8, 32)][:-1])
        parts = [*evaluate(model, ids, compute, 8)]
    assert sum(nats.item() for nats, _ in parts) / 999 == pytest.approx(exact, rel=1e-6)


@pytest.mark.slow
def test_the_compiler_takes_it_whole() -> None:
    """Without a break of the graph, which `fullgraph` refuses."""
    model, idx, targets = model_and_batch("gpt2")
    with chunks_of(48):
        expected, gradients = step(model, idx, targets, enabled=True)
        total, found = step(torch.compile(model, backend="aot_eager", fullgraph=True), idx, targets, enabled=True)
    assert total == pytest.approx(expected, rel=1e-3)
    for a, b in zip(found, gradients, strict=True):
        assert (a - b).norm() <= 2e-2 * b.norm()
