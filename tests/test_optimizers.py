"""Our AdamW against torch's."""

import pytest
import torch
from conftest import optim, preset

from microgpt_cli.model.gpt import GPT
from microgpt_cli.training.optimizers import AdamW, total_norm

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


def test_it_divides_gradients_and_skips_when_told() -> None:
    a, b = models()
    first, second = AdamW(a.named_parameters(), optim()), AdamW(b.named_parameters(), optim())
    backward(a, 0)
    backward(b, 0)
    for p in b.parameters():
        p.grad /= 4  # type: ignore[operator]
    first.step(1e-2, torch.tensor(4.0), NOTHING)
    second.step(1e-2, ONE, NOTHING)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    before = {name: t.clone() for name, t in (*first.state().items(), *a.named_parameters())}
    first.step(1e-2, ONE, ONE)
    for name, t in (*first.state().items(), *a.named_parameters()):
        assert torch.equal(t, before[name]), name


def test_the_state_has_every_parameter_by_name() -> None:
    a, _ = models()
    state = AdamW(a.named_parameters(), optim()).state()
    names = {name for name, _ in a.named_parameters()}
    assert set(state) == {"adamw/updates"} | {f"adamw/{n}/{s}" for n in names for s in ("exp_avg", "exp_avg_sq")}


def test_the_norm_is_that_of_all_gradients_as_one_vector() -> None:
    grads = [torch.randn(3, 4), torch.randn(5)]
    assert total_norm(grads).item() == pytest.approx(torch.cat([g.flatten() for g in grads]).norm().item())


def test_no_torch_optimizer_is_made_in_training() -> None:
    """Making one imports torch._dynamo, which takes seconds."""
    import subprocess
    import sys

    code = (
        "import sys; from microgpt_cli import cli;"
        "assert cli.main(['train', 'max_steps=2', 'device=cpu', 'model.n_layer=1', 'sample_interval=1']) == 0;"
        "assert 'torch._dynamo' not in sys.modules and 'sympy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
