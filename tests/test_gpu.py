"""What only a CUDA GPU can show: make test-gpu."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import Run, optim, preset

from microgpt_cli.checkpoints.async_saver import Saver, copy_stream, snapshot
from microgpt_cli.compute import choose
from microgpt_cli.config import DataConfig, TokenizerConfig, TrainConfig
from microgpt_cli.engines.cuda.decode_graph import bucket_for, decode_static
from microgpt_cli.engines.decoding import Cache, prefill, prepare
from microgpt_cli.generation.generate import generate
from microgpt_cli.generation.sampling import Sampler, UniformStream
from microgpt_cli.insight.logit_lens import probe_layers
from microgpt_cli.insight.token_losses import LossBreakdown, token_losses
from microgpt_cli.model import loss
from microgpt_cli.model.gpt import GPT
from microgpt_cli.training import update as update_module
from microgpt_cli.training.optimizers import make_optimizer
from microgpt_cli.training.update import Update

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]


def config(**changes: object) -> TrainConfig:
    data = DataConfig("pydocs", None, 0.1, "data", "cache", None, None, None, None)
    base = TrainConfig(
        **{field.name: None for field in dataclasses.fields(TrainConfig) if field.name not in changes}  # type: ignore[arg-type]
        | {"model": preset("micro", "gpt2"), "data": data, "tokenizer": TokenizerConfig("byte", "error")}
        | {"optim": optim(), "device": "cuda", "dtype": "float32", "engine": "auto", "compile": "false"}
        | {"batch_size": 8}
        | {"grad_accum_steps": 2, "max_steps": 100, "seed": 1}
        | changes,
    )
    return base


def trained(graph: bool, steps: int = 20, rate: float = 1e-3, **changes: object) -> tuple[GPT, list[float]]:
    settings = config(**changes)
    compute = choose("cuda", settings.dtype, settings.engine, settings.compile)
    torch.manual_seed(0)
    model = GPT(settings.model, 256).to("cuda")
    ids = (torch.arange(10_000) * 7 % 251).to(torch.uint8)
    update = Update(model, make_optimizer(model.named_parameters(), settings.optim), ids, settings, compute)
    update._wants_graph = graph
    losses = []
    for step in range(steps):
        starts = torch.randint(9000, (16, 1), generator=torch.Generator().manual_seed(step))
        done = update(starts, rate * (step + 1) / steps, 1.0, lambda: False)
        assert done is not None
        losses.append(done[0].item())
    return model, losses


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("arch", ["article", "modern"])
def test_a_replayed_step_is_the_step(dtype: str, arch: str) -> None:
    model, losses = trained(True, dtype=dtype, model=preset("micro", arch))
    plain, plain_losses = trained(False, dtype=dtype, model=preset("micro", arch))
    assert losses == pytest.approx(plain_losses, rel=1e-3 if dtype == "float32" else 1e-2)
    assert losses[-1] < losses[0]
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-2, rtol=1e-1, msg=name)


def test_after_a_step_that_is_not_finite_nothing_changes_any_more() -> None:
    model, _ = trained(True, steps=3)
    settings = config()
    update = Update(
        model, make_optimizer(model.named_parameters(), settings.optim), torch.zeros(9999, dtype=torch.uint8), settings,
        choose("cuda", "float32"),
    )  # fmt: skip
    starts = torch.zeros(16, 1, dtype=torch.long)
    update(starts, 1e-3, 1.0, lambda: False)
    before = [p.clone() for p in model.parameters()]
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    for _ in range(3):
        done = update(starts, 1e-3, 1.0, lambda: False)
    assert done is not None
    assert not torch.isfinite(done).all()
    for p, q in list(zip(model.parameters(), before, strict=True))[1:]:
        assert torch.equal(p, q)


@pytest.mark.parametrize("words", [["dtype=float32"], ["dtype=bfloat16"], ["dtype=float16"], ["compile=true"]])
def test_training_on_a_gpu_learns_resumes_and_samples_on_a_cpu(words: list[str], microgpt: Run, tmp_path: Path) -> None:
    ran = microgpt("train", "max_steps=200", "device=cuda", "out_dir=run", "eval_interval=100", *words)
    assert ran.status == 0, ran.err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["val_loss"] < 2.6
    assert microgpt("train", "resume=run", "max_steps=250").status == 0
    assert microgpt("sample", "run", "max_new_tokens=20", "device=cpu").status == 0
    assert microgpt("eval", "run", "device=cuda").status == 0


@pytest.mark.parametrize("bias", [True, False])
def test_a_padded_head_is_the_head(bias: bool) -> None:
    from microgpt_cli.model.layers import Head

    torch.manual_seed(0)
    head, x = Head(64, 5003, bias=bias), torch.randn(2, 8, 64)
    exact = head(x)
    exact.square().sum().backward()
    expected = [p.grad.clone() for p in head.parameters() if p.grad is not None]
    head.zero_grad()
    head.to("cuda")
    found = head(x.to("cuda"))
    found.square().sum().backward()
    torch.testing.assert_close(found.cpu(), exact, atol=1e-4, rtol=1e-4)
    for p, grad in zip(head.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad.cpu(), grad, atol=1e-3, rtol=1e-3)  # type: ignore[union-attr]


def test_dropout_is_drawn_anew_at_each_replay() -> None:
    _, losses = trained(
        True, steps=3, model=preset("micro", "gpt2", dropout=0.5), optim=optim(weight_decay=0.0), rate=0.0
    )
    assert len(set(losses)) == 3


def test_what_is_seen_inside_is_what_the_cpu_sees() -> None:
    torch.manual_seed(0)
    model = GPT(preset("micro", "modern"), 256).eval()
    ids = torch.arange(70) * 7 % 251
    here, seen, sums = choose("cpu", "float32"), [], []
    for compute in (here, choose("cuda", "float32")):
        model = model.to(compute.device)
        seen.append(probe_layers(model, ids[:32].to(compute.device), 5))
        breakdown = LossBreakdown(256, 32, 10, 3)
        for piece in token_losses(model, ids.to(torch.uint8), compute, 2):
            breakdown.add(piece)
        sums.append(breakdown)
    torch.testing.assert_close(seen[0].attention, seen[1].attention, atol=1e-3, rtol=0)
    torch.testing.assert_close(seen[0].predictions[-1].losses, seen[1].predictions[-1].losses, atol=1e-2, rtol=0)
    assert sums[0].loss == pytest.approx(sums[1].loss, abs=1e-2)
    assert sums[0].losses == pytest.approx(sums[1].losses, abs=1e-2)


@pytest.mark.parametrize("sampler", [Sampler(0), Sampler(0.9), Sampler(0.9, top_k=5), Sampler(0.9, top_p=0.8)])
@pytest.mark.parametrize("arch", ["article", "gpt2", "modern"])
def test_replayed_tokens_are_those_of_the_cpu(arch: str, sampler: Sampler) -> None:
    torch.manual_seed(0)
    model = GPT(preset("mini", arch), 300).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3 if p.dim() == 1 else 1.5 * p.size(-1) ** -0.5)
    expected = list(generate(model, [1, 2], 150, sampler, UniformStream(0, 4), 4))
    found = list(generate(model.to("cuda"), [1, 2], 150, sampler, UniformStream(0, 4), 4))
    same = sum(a == b for a, b in zip(found, expected, strict=True))
    assert same > 100  # rounding may decide a draw, and then all that follows differs
    assert found[:20] == expected[:20]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", ["article", "gpt2", "modern"])
def test_replayed_logits_are_those_of_the_forward_pass(arch: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = GPT(preset("small", arch), 300).to("cuda").eval()
    idx = torch.randint(300, (2, 256), device="cuda")
    with torch.no_grad():
        exact, _ = model(idx)
    with torch.inference_mode():
        weights = prepare(model, dtype)
        cache = Cache(weights, 2, 256)
        found = [prefill(weights, cache, idx[:, :200])]
        for position in range(200, 256):
            at = torch.tensor([position], device="cuda")
            found.append(decode_static(weights, cache, idx[:, position], at, bucket_for(position, 256)))
    off = torch.stack(found, dim=1).float() - exact[:, 199:]
    off -= off.mean(-1, keepdim=True)  # what all logits share moves no probability
    assert off.abs().max() / exact.abs().max() < (1e-3 if dtype == torch.float32 else 5e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", ["article", "gpt2", "modern"])  # a head with a bias, a tied one, and neither
def test_a_loss_in_chunks_is_that_of_the_logits(arch: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = GPT(preset("micro", arch), 50_257).to("cuda")
    idx, targets = (torch.randint(50_257, (16, 32), device="cuda") for _ in range(2))
    found = []
    for logits in (1 << 40, 64 * 50_257):
        monkeypatch.setattr(loss, "CHUNK_LOGITS", logits)
        model.zero_grad()
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            whole, mean = model(idx, targets)
        assert (whole is None) == (logits < 1 << 40)
        mean.backward()
        found.append([mean.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= (1e-4 if dtype == torch.float32 else 2e-2) * b.norm()


def test_chunks_of_a_large_vocabulary_save_memory() -> None:
    torch.manual_seed(0)
    model = GPT(preset("micro", "gpt2"), 50_257).to("cuda")
    idx = torch.randint(50_257, (256, 32), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    with torch.autocast("cuda", torch.bfloat16):
        _, mean = model(idx, idx)
    mean.backward()
    assert torch.cuda.max_memory_allocated() < 4 * idx.numel() * 50_257 / 2  # half of the logits in float32


def test_windows_of_a_split_that_is_not_on_the_gpu_train_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    _, resident = trained(False)
    monkeypatch.setattr(update_module, "RESIDENT_BYTES", 0)
    _, fetched = trained(False)
    assert fetched == pytest.approx(resident, rel=1e-3)


def test_a_snapshot_is_of_its_instant_though_it_is_brought_to_the_host_later() -> None:
    weight = torch.zeros(1 << 22, device="cuda")
    for _ in range(200):
        weight += 1
    copies, aside, found = snapshot({"a": weight}), copy_stream(weight.device), []
    assert copies["a"].is_cuda
    saver = Saver(background=True)

    def save() -> Path:
        with aside:
            found.append(copies["a"].cpu())
        return Path()

    saver.start(200, save)
    for _ in range(200):
        weight += 1
    saver.finish()
    assert (found[0] == 200).all()


def test_a_run_that_saves_at_each_step_beside_training_can_be_resumed(microgpt: Run, tmp_path: Path) -> None:
    words = ["device=cuda", "out_dir=run", "checkpoint_interval=1", "eval_interval=10", "sample_interval=7"]
    assert microgpt("train", "max_steps=40", *words).status == 0
    assert microgpt("verify", "run").status == 0
    assert microgpt("train", "resume=run", "max_steps=50").status == 0
