"""The loop: equal runs are equal to the bit, however they were cut, watched or stopped."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY, Run, Tried, instead
from support.training import make

from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.compute import choose
from microgpt_cli.engines.autograd import Autograd
from microgpt_cli.errors import RunStopped
from microgpt_cli.model.gpt import GPT
from microgpt_cli.runs import layout
from microgpt_cli.training import metrics
from microgpt_cli.training.trainer import Evaluated, Logged, Saved, Stepped, Trainer, Warned, evaluate

RunText = Callable[..., Path]


@pytest.fixture
def train(microgpt: Run, text_file: Path, tmp_path: Path) -> RunText:
    """Train a tiny model and return the run's folder."""

    def run(name: str, *words: str, status: int = 0) -> Path:
        common = ["train", *TINY, f"data.path={text_file}", f"out_dir={tmp_path / name}", "max_steps=20"]
        ran = microgpt(*instead([*common, "model.dropout=0.1"], *words))
        assert ran.status == status, ran.err
        return tmp_path / name

    return run


def weights(run: Path, step: int = 20) -> bytes:
    return (run / "ckpt" / f"step-{step:08d}" / "model.safetensors").read_bytes()


def test_equal_commands_give_equal_bytes(train: RunText, tried: Tried) -> None:
    tried("equal commands, equal bytes")
    a, b = train("a"), train("b")
    assert weights(a) == weights(b)
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    assert (a / "samples.txt").read_bytes() == (b / "samples.txt").read_bytes()
    assert weights(train("c", "seed=2")) != weights(a)


def test_watching_a_run_changes_no_weight(train: RunText, tried: Tried) -> None:
    tried("watched always or never, equal weights")
    often = train("often", "eval_interval=1", "sample_interval=1", "checkpoint_interval=1", "log_interval=1")
    never = train("never", "eval_interval=0", "sample_interval=0", "checkpoint_interval=0")
    assert weights(often) == weights(never)


@pytest.mark.parametrize("stop", [1, 7, 13])
def test_interrupted_and_resumed_is_uninterrupted(train: RunText, microgpt: Run, stop: int, monkeypatch) -> None:
    words = ("eval_interval=5", "checkpoint_interval=4", "log_interval=3", "sample_interval=6")
    whole = train("whole", *words)
    original = Trainer._step

    def stopping(self: Trainer):
        if self.state.step == stop:
            self.stop_signal = signal.SIGTERM
        yield from original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stopping)
        cut = train("cut", *words, status=143)
    result = json.loads((cut / "result.json").read_text())
    assert (result["status"], result["step"]) == ("interrupted", stop)
    assert microgpt("train", f"resume={cut}").status == 0
    for name in ("metrics.jsonl", "samples.txt", "ckpt/step-00000020/optim.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert weights(cut) == weights(whole)


def test_a_run_that_died_between_checkpoints_resumes_to_the_same_bits(
    train: RunText, microgpt: Run, monkeypatch
) -> None:
    words = ("eval_interval=5", "checkpoint_interval=4", "log_interval=3", "sample_interval=3")
    whole = train("whole", *words)
    original = Trainer._step

    def dying(self: Trainer):
        if self.state.step == 11:
            raise KeyboardInterrupt  # nothing is saved
        yield from original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", dying)
        cut = train("cut", *words, status=130)
    assert microgpt("train", f"resume={cut}").status == 0
    assert weights(cut) == weights(whole)
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert (cut / "samples.txt").read_bytes() == (whole / "samples.txt").read_bytes()


def test_cutting_a_step_into_micro_batches_changes_only_rounding(train: RunText) -> None:
    whole = train("whole", "batch_size=8", "model.dropout=0", "optim=adamw")
    cut = train("cut", "batch_size=2", "grad_accum_steps=4", "model.dropout=0", "optim=adamw")
    a, b = (checkpoint.load(run / "ckpt" / "step-00000020") for run in (whole, cut))
    for name in a.model:
        torch.testing.assert_close(a.model[name], b.model[name], atol=1e-4, rtol=1e-3)
    assert a.meta["state"]["tokens"] == b.meta["state"]["tokens"]


def test_it_says_what_happens_in_order(tmp_path: Path, trained: Path) -> None:
    trainer = make(tmp_path / "run", trained, max_steps=4, log_interval=2, eval_interval=2, checkpoint_interval=0)
    kinds = [type(event) for event in trainer.run()]
    first_half = [Stepped, Logged, Stepped, Evaluated, Saved]
    assert kinds == first_half * 2
    lines = metrics.read(tmp_path / "run" / layout.METRICS)
    assert [set(line) for line in lines] == [
        {"step", "tokens", "loss", "learning_rate", "grad_norm"},
        {"step", "tokens", "val_loss"},
    ] * 2


def test_every_finished_run_has_a_last_and_a_best_checkpoint(tmp_path: Path, trained: Path) -> None:
    trainer = make(tmp_path / "run", trained, max_steps=3, eval_interval=100, checkpoint_interval=0)
    list(trainer.run())
    assert [p.name for p in layout.step_folders(tmp_path / "run")] == ["step-00000003"]
    assert json.loads((tmp_path / "run/ckpt/best.json").read_text()) == {"checkpoint": "step-00000003"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_before_the_update(
    tmp_path: Path, trained: Path, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(tmp_path / "run", trained, max_steps=10, checkpoint_interval=1, log_interval=5)
    original = trainer.update._backward

    def backward(*args: object) -> torch.Tensor:
        return original(*args) * (value if trainer.state.step == 6 else 1.0)

    monkeypatch.setattr(trainer.update, "_backward", backward)
    with pytest.raises(RunStopped, match=r"step 7: loss (nan|inf), gradient norm .* at learning rate .*before the upd"):
        list(trainer.run())
    [last, _] = (checkpoint.load(p) for p in layout.step_folders(tmp_path / "run"))
    assert last.step == 6
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p, last.model[name]), name


def test_a_run_that_gets_no_better_stops_early(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(tmp_path / "run", trained, max_steps=50, eval_interval=1, early_stop_patience=3)
    losses = iter([2.0, 1.0, 1.5, 1.4, 1.3])
    monkeypatch.setattr("microgpt_cli.training.trainer.evaluate", lambda *a: iter([(torch.tensor(next(losses)), 1)]))
    list(trainer.run())
    assert (trainer.state.step, trainer.state.best_step, trainer.stopped_early) == (5, 2, True)
    assert layout.find_checkpoint(str(tmp_path / "run")).name == "step-00000002"


def test_a_compiler_that_fails_costs_one_warning(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: GPT, dynamic: bool) -> Callable[..., object]:
        def forward(*args: object) -> object:
            raise RuntimeError("no C++ compiler found\nmore")

        return forward

    monkeypatch.setattr(torch, "compile", broken)
    trainer = make(tmp_path / "run", trained, max_steps=2, compile="true")
    assert isinstance(trainer.update.engine, Autograd)
    trainer.update.engine.compile_may_fail = True
    events = list(trainer.run())
    assert [event for event in events if isinstance(event, Warned)] == [
        Warned("torch.compile failed, going on without it: no C++ compiler found")
    ]
    assert trainer.state.step == 2
    strict = make(tmp_path / "strict", trained, max_steps=2, compile="true")
    with pytest.raises(RuntimeError, match="no C"):
        list(strict.run())


def test_a_stop_during_evaluation_saves_and_leaves_it_to_the_resumed_run(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(tmp_path / "run", trained, max_steps=4, eval_interval=2)

    def stopping(*args: object):
        trainer.stop_signal = signal.SIGINT
        yield torch.tensor(1.0), 1

    monkeypatch.setattr("microgpt_cli.training.trainer.evaluate", stopping)
    events = list(trainer.run())
    assert isinstance(events[-1], Saved)
    assert not any(isinstance(event, Evaluated) for event in events)
    assert trainer.state.evaluated_step == 0


def test_evaluation_is_the_mean_over_every_token_whatever_the_batches(trained: Path) -> None:
    loaded = checkpoint.load(layout.find_checkpoint(str(trained)))
    model = checkpoint.build_model(loaded, torch.device("cpu"))
    ids = torch.arange(101) % loaded.tokenizer.vocab_size
    compute = choose("cpu", "float32")

    def mean(batch_size: int) -> float:
        parts = list(evaluate(model, ids, compute, batch_size))
        assert sum(count for _, count in parts) == 100
        return sum(loss.item() for loss, _ in parts) / 100

    assert mean(1) == pytest.approx(mean(5), rel=1e-6)
    assert model.training


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_precision_trains(dtype: str, train: RunText) -> None:
    run = train(dtype, f"dtype={dtype}", "max_steps=20")
    losses = [line["loss"] for line in metrics.read(run / "metrics.jsonl") if "loss" in line]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(
    number: signal.Signals, status: int, tmp_path: Path, text_file: Path
) -> None:
    words = [*TINY, f"data.path={text_file}", "max_steps=1000000", f"out_dir={tmp_path / 'run'}", "eval_interval=50"]
    process = subprocess.Popen(
        [sys.executable, "-m", "microgpt_cli", "train", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert f"go on with: microgpt train resume={tmp_path / 'run'}" in err
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["status"] == "interrupted"
    assert checkpoint.newest(tmp_path / "run")[0].step == result["step"]


def test_metrics_pass_over_a_torn_line(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_bytes(b'{"step": 1}\n{"st')
    assert metrics.read(tmp_path / "m.jsonl") == [{"step": 1}]
