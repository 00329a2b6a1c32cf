"""Our AdamW against torch's."""

import pytest
import torch
from conftest import optim, preset

from microgpt_cli.engines.cpu import muon
from microgpt_cli.engines.cpu.build import Unavailable
from microgpt_cli.engines.cpu.muon import NativeMuon
from microgpt_cli.model.gpt import GPT
from microgpt_cli.training import optimizers
from microgpt_cli.training.optimizers import (
    NEWTON_SCHULZ,
    STEPS,
    AdamW,
    Muon,
    make_optimizer,
    orthogonalize,
    total_norm,
)

NOTHING, ONE = torch.zeros(()), torch.ones(())


def models() -> tuple[GPT, GPT]:
    torch.manual_seed(0)
    a = GPT(preset("micro", "gpt2"), 65)
    b = GPT(preset("micro", "gpt2"), 65)
    b.load_state_dict(a.state_dict())
    return a, b


def backward(model: GPT, seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    idx = torch.randint(65, (2, 16), generator=drawn)
    model.zero_grad()
    model(idx, idx)[1].backward()


def test_it_is_torchs_adamw_with_decay_on_matrices_only() -> None:
    ours, theirs = models()
    config = optim(weight_decay=0.3)
    optimizer = AdamW(ours.named_parameters(), config)
    matrices = [p for p in theirs.parameters() if p.ndim >= 2]
    others = [p for p in theirs.parameters() if p.ndim < 2]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}],
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
    for step in range(5):
        rate = 1e-2 / (step + 1)
        backward(ours, step)
        backward(theirs, step)
        optimizer.step(rate, ONE, NOTHING)
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("shape", [(4, 64, 64), (2, 256, 64), (1, 64, 1)])
def test_orthogonalized_matrices_have_singular_values_near_one_and_the_same_singular_vectors(
    shape: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(shape))
    right, _ = torch.linalg.qr(torch.randn(shape[0], shape[2], shape[2]))
    values = torch.linspace(1.0, 0.05, shape[2])
    found = left.mT @ orthogonalize(left @ torch.diag(values) @ right.mT) @ right
    assert (found.diagonal(dim1=1, dim2=2) - 1).abs().max() < 0.35
    assert (found - torch.diag_embed(found.diagonal(dim1=1, dim2=2))).abs().max() < 0.03  # in bfloat16 on some CPUs


def native_or_skip() -> None:
    try:
        muon.load(in_bfloat16=False)
    except Unavailable as why:
        pytest.skip(str(why))


@pytest.mark.parametrize("native", [False, True])
def test_muon_moves_the_matrices_of_blocks_by_their_orthogonal_momentum_and_the_rest_as_adamw(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native:
        native_or_skip()
        monkeypatch.setattr(optimizers, "cpu_multiplies_bfloat16", lambda: False)  # so that both round as little
    ours, theirs = models()
    config = optim(kind="muon", weight_decay=0.1, learning_rate=0.02, adamw_learning_rate=0.01)
    rest = {name: p for name, p in theirs.named_parameters() if not (name.startswith("blocks.") and p.ndim == 2)}
    muon, adamw = Muon(ours.named_parameters(), config, native), AdamW(rest.items(), config)
    means: dict[str, torch.Tensor] = {}
    for step in range(3):
        rate = 0.02 / (step + 1)
        backward(ours, step)
        backward(theirs, step)
        muon.step(rate, ONE, NOTHING)
        for name, p in theirs.named_parameters():  # one matrix at a time, as the paper has it
            if name in rest:
                continue
            mean = means.setdefault(name, torch.zeros(p.shape)).lerp_(p.grad, 1 - config.momentum)  # type: ignore
            nesterov = p.grad.lerp(mean, config.momentum)  # type: ignore
            p.data.mul_(1 - rate * 0.1)
            for part, piece in zip(
                *(t.split(64 if "qkv" in name else len(p)) for t in (nesterov, p.data)), strict=True
            ):
                scale = max(1.0, part.size(0) / part.size(1)) ** 0.5
                tall = part.mT if part.size(0) < part.size(1) else part
                moved = orthogonalize(tall[None])[0]
                piece -= rate * scale * (moved.mT if part.size(0) < part.size(1) else moved)
        adamw.step(rate / 2, ONE, NOTHING)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(4, 64, 64), (2, 256, 64), (1, 64, 1), (3, 50, 33), (1, 130, 97)])
def test_in_c_bfloat16_is_no_farther_from_the_exact_update_than_in_torch(shape: tuple[int, ...]) -> None:
    """Stated bound: torch's own distance, or 2% of the length, which is what bfloat16 does to this polynomial."""
    native_or_skip()
    torch.manual_seed(0)
    gradients, weights, means = torch.randn(shape), torch.zeros(shape), torch.zeros(shape)
    NativeMuon([(weights, gradients, means, 1.0)], True, NEWTON_SCHULZ, STEPS)(-1.0, 1.0, 0.0, 0.0)
    exact = gradients.double() / gradients.double().norm(dim=(1, 2), keepdim=True)
    a, b, c = NEWTON_SCHULZ
    for _ in range(STEPS):
        square = exact.mT @ exact
        exact = a * exact + exact @ (b * square + c * square @ square)
    torch.testing.assert_close(means, gradients)
    of_torch = (orthogonalize(gradients) - exact).norm() / exact.norm()
    assert (weights - exact).norm() / exact.norm() <= max(0.02, of_torch)


def test_muon_learns_what_adamw_learns_slower() -> None:
    """Fewer steps to the same loss is what it is for: one batch, as many steps."""
    found = {}
    for kind in ("adamw", "muon"):
        model, _ = models()
        config = optim(kind=kind)
        optimizer = make_optimizer(model.named_parameters(), config)
        for _ in range(40):
            backward(model, 0)
            optimizer.step(config.learning_rate, ONE, NOTHING)
        idx = torch.randint(65, (2, 16), generator=torch.Generator().manual_seed(0))
        found[kind] = model(idx, idx)[1].item()
    assert found["muon"] < found["adamw"]


@pytest.mark.parametrize(("kind", "native"), [("adamw", False), ("muon", False), ("muon", True)])
def test_it_divides_gradients_and_skips_when_told(kind: str, native: bool) -> None:
    if native:
        native_or_skip()
    a, b = models()
    first, second = (make_optimizer(m.named_parameters(), optim(kind=kind), native) for m in (a, b))
    backward(a, 0)
    backward(b, 0)
    for p in b.parameters():
        p.grad /= 4  # type: ignore[operator]
    first.step(1e-2, torch.tensor(4.0), NOTHING)
    second.step(1e-2, ONE, NOTHING)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    before = {name: t.clone() for name, t in (*first.state().items(), *a.named_parameters())}
    for p in a.parameters():
        p.grad.fill_(float("nan"))  # type: ignore[union-attr]
    first.step(1e-2, ONE, ONE)
    for name, t in (*first.state().items(), *a.named_parameters()):
        assert torch.equal(t, before[name]), name


def test_the_state_has_every_parameter_by_name() -> None:
    a, _ = models()
    state = AdamW(a.named_parameters(), optim()).state()
    names = {name for name, _ in a.named_parameters()}
    assert set(state) == {"adamw/updates"} | {f"adamw/{n}/{s}" for n in names for s in ("exp_avg", "exp_avg_sq")}


def test_muons_state_has_the_momentum_of_matrices_and_adamws_of_the_rest() -> None:
    a, _ = models()
    state = Muon(a.named_parameters(), optim(kind="muon")).state()
    momentum = {name.split("/")[1] for name in state if name.startswith("muon/")}
    assert momentum == {name for name, p in a.named_parameters() if name.startswith("blocks.") and p.ndim == 2}
    others = {name.split("/")[1] for name in state if name.startswith("adamw/") and name != "adamw/updates"}
    assert momentum | others == {name for name, _ in a.named_parameters()}
    assert not momentum & others


def test_the_norm_is_that_of_all_gradients_as_one_vector() -> None:
    grads = [torch.randn(3, 4), torch.randn(5)]
    assert total_norm(grads).item() == pytest.approx(torch.cat([g.flatten() for g in grads]).norm().item())


def test_no_torch_optimizer_is_made_in_training() -> None:
    """Making one imports torch._dynamo, which takes seconds."""
    import subprocess
    import sys

    code = (
        "import sys; from microgpt_cli.cli import main as cli;"
        "assert cli.main(['train', 'max_steps=2', 'device=cpu', 'model.n_layer=1', 'sample_interval=1']) == 0;"
        "assert 'torch._dynamo' not in sys.modules and 'sympy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
