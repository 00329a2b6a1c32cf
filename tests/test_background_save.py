"""Saving beside training, as on a GPU, keeps every promise of saving before it goes on. Here it is done on a CPU.

As a program it is `support/killing.py` with runs that save so, and takes the same words.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY, Run, Tried, instead
from support import killing
from support.failing_disk import WORDS, check_command, failing_train
from support.training import make

from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.checkpoints.async_saver import Saver, after_this, saves_beside, snapshot
from microgpt_cli.errors import RunStopped
from microgpt_cli.runs import layout, storage
from microgpt_cli.training import trainer
from microgpt_cli.training.metrics import JsonLines
from microgpt_cli.training.trainer import Saved, Stepped, Trainer
from microgpt_cli.training.update import Update

OFTEN = ("model.dropout=0.1", "max_steps=20", "log_interval=3", "eval_interval=6", "checkpoint_interval=5")
PATIENCE_SEC = 20.0


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trainers save beside training, though on a CPU."""
    monkeypatch.setattr(trainer, "saves_beside", lambda device: True)


@pytest.fixture
def train(microgpt: Run, text_file: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(name: str, *words: str, status: int = 0) -> Path:
        common = ["train", *TINY, f"data.path={text_file}", f"out_dir={tmp_path / name}", *OFTEN]
        ran = microgpt(*instead(common, *words))
        assert ran.status == status, ran.err
        return tmp_path / name

    return run


def outcome(run: Path, step: int = 20) -> list[bytes]:
    last = run / "ckpt" / layout.step_name(step)
    return [p.read_bytes() for p in (last / "model.safetensors", last / "optim.safetensors", run / "metrics.jsonl")]


def saving() -> bool:
    """Whether a save goes on beside us."""
    return any(thread.name == "saver" for thread in threading.enumerate())


class Gate:
    """Holds the saves of steps back until they are let through, and says which ones have begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[int] = []
        self.opened = threading.Event()
        self.entered = threading.Event()
        original = checkpoint.save

        def save(run: Path, step: int, *rest: object) -> Path:
            self.begun.append(step)
            self.entered.set()
            assert self.opened.wait(PATIENCE_SEC)
            return original(run, step, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(checkpoint, "save", save)


def test_a_cpu_saves_before_it_goes_on_and_other_devices_beside() -> None:
    assert not saves_beside(torch.device("cpu"))
    assert saves_beside(torch.device("cuda:1"))
    assert saves_beside(torch.device("mps"))


def test_a_run_is_the_same_to_the_bit_and_so_are_its_checkpoints(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each one that was published, not only those that are kept; but for what the clock says."""
    kept: dict[str, dict[str, list[bytes]]] = {}
    original = storage.publish_folder

    def publish(final: Path, files: dict[str, bytes]) -> None:
        meta = json.loads(files["meta.json"])
        for clock in ("train_seconds", "timings_bytes"):
            del meta["state"][clock]
        found = [files["model.safetensors"], files["optim.safetensors"], json.dumps(meta).encode()]
        kept.setdefault(final.parent.parent.name, {})[final.name] = found
        original(final, files)

    monkeypatch.setattr(storage, "publish_folder", publish)
    here = train("here")
    monkeypatch.setattr(trainer, "saves_beside", lambda device: True)
    there = train("there")
    assert len(kept["here"]) > 4
    assert kept["there"] == kept["here"]
    assert outcome(there) == outcome(here)
    for name in ("samples.txt", "ckpt/best.json"):
        assert (there / name).read_bytes() == (here / name).read_bytes()
    assert [p.name for p in layout.step_folders(there)] == [p.name for p in layout.step_folders(here)]


@pytest.mark.usefixtures("beside")
def test_steps_go_on_during_a_save_and_what_is_saved_is_of_its_instant(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    made = make(tmp_path / "run", trained, max_steps=9, checkpoint_interval=3, eval_interval=0)
    at: dict[int, dict[str, torch.Tensor]] = {}
    told: list[tuple[int, int]] = []  # a save, and the step that the run had come to when it was told of
    for event in made.run():
        if isinstance(event, Stepped):
            at[event.step] = {name: p.detach().clone() for name, p in made.model.named_parameters()}
            if event.step == 6:  # the save of step 3 is held back still; the one of step 6 waits for it
                assert gate.entered.wait(PATIENCE_SEC)
                assert gate.begun == [3]
                assert layout.step_folders(tmp_path / "run") == []
                gate.opened.set()
        if isinstance(event, Saved):
            assert event.path.is_dir()
            told.append((event.step, made.state.step))
    assert [step for step, _ in told] == gate.begun == [3, 6, 9]
    assert told[0] == (3, 6)
    for path in layout.step_folders(tmp_path / "run"):
        loaded = checkpoint.load(path)
        assert all(torch.equal(loaded.model[name], at[loaded.step][name]) for name in at[loaded.step])
        assert loaded.meta["state"]["step"] == loaded.step


@pytest.mark.usefixtures("beside")
def test_the_log_is_on_the_disk_before_the_checkpoint_that_promises_it(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync, publish = JsonLines.sync, storage.publish_folder
    monkeypatch.setattr(JsonLines, "sync", lambda self: order.append("sync") or sync(self))
    monkeypatch.setattr(storage, "publish_folder", lambda *args: order.append("publish") or publish(*args))
    list(make(tmp_path / "run", trained, max_steps=4, checkpoint_interval=2, eval_interval=0).run())
    assert order == ["sync", "sync", "publish"] * 2


@pytest.mark.usefixtures("beside")
def test_an_error_of_the_save_ends_the_run_at_the_next_step_and_is_told_once(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", "ckpt")

    monkeypatch.setattr(checkpoint, "save", full)
    made = make(tmp_path / "run", trained, max_steps=10**6, checkpoint_interval=2, eval_interval=0)
    monkeypatch.setattr(Trainer, "_save_due", lambda self: self.state.step == 2)  # so that no later save waits for it
    with pytest.raises(OSError, match="No space left on device"):
        list(made.run())
    assert made.saver.finish() is None
    assert not saving()


@pytest.mark.usefixtures("beside")
def test_the_error_of_the_run_is_the_one_that_is_told(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*args: object) -> Path:
        time.sleep(0.2)
        raise OSError(errno.EIO, "Input/output error", "ckpt")

    made = make(tmp_path / "run", trained, max_steps=10, checkpoint_interval=2, eval_interval=0)
    original = made.update._backward
    monkeypatch.setattr(checkpoint, "save", slow)
    monkeypatch.setattr(
        made.update, "_backward", lambda *args: original(*args) * (float("nan") if made.state.step == 2 else 1.0)
    )
    with pytest.raises(RunStopped, match="step 3: loss nan"):
        list(made.run())
    assert not saving()  # and it has waited for the save


@pytest.mark.usefixtures("beside")
def test_a_run_that_is_given_up_waits_for_its_save(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    events = make(tmp_path / "run", trained, max_steps=9, checkpoint_interval=2, eval_interval=0).run()
    for event in events:
        if isinstance(event, Stepped) and event.step == 3:  # the save of step 2 is held back
            break
    threading.Timer(0.1, gate.opened.set).start()
    events.close()
    assert [path.name for path in layout.step_folders(tmp_path / "run")] == [layout.step_name(2)]


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("stop", [1, 6, 13])
def test_a_stop_signal_waits_for_the_save_and_loses_no_step(
    stop: int, train: Callable[..., Path], microgpt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while a save goes on: the one of step 5 is slow."""
    whole = train("whole")
    original_step, original_save = Trainer._step, checkpoint.save

    def stopping(self: Trainer):
        if self.state.step == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        yield from original_step(self)

    def slow(*args: object) -> Path:
        time.sleep(0.1)
        return original_save(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stopping)
        patch.setattr(checkpoint, "save", slow)
        cut = train("cut", status=143)
    result = json.loads((cut / "result.json").read_text())
    assert (result["status"], result["step"]) == ("interrupted", stop)
    assert checkpoint.newest(cut)[0].step == stop
    assert microgpt("train", f"resume={cut}").status == 0
    assert outcome(cut) == outcome(whole)


def test_a_second_signal_does_not_wait_for_the_save(tmp_path: Path, text_file: Path) -> None:
    code = (
        "import os, signal, sys, threading, time; from microgpt_cli.cli import main as cli\n"
        "from microgpt_cli.checkpoints import checkpoint\n"
        "from microgpt_cli.training import trainer\n"
        "trainer.saves_beside = lambda device: True\n"
        "def never(*args):\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.5); os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(1000)\n"
        "checkpoint.save = never\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    words = ["train", *TINY, f"data.path={text_file}", "out_dir=run", "max_steps=1000000", "checkpoint_interval=2"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=False, timeout=100)
    assert done.returncode == -signal.SIGTERM


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("where", ["optimizer", "weight"])
@pytest.mark.parametrize("step", [1, 5, 12])
def test_no_published_checkpoint_holds_what_is_not_finite(
    where: str, step: int, train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Update.__call__, 0

    def poisoned(self: Update, *args: object) -> object:
        nonlocal calls
        done = original(self, *args)  # type: ignore[arg-type]
        calls += 1
        if calls == step:
            target = next(iter(self.optimizer.state().values())) if where == "optimizer" else self.model.ln_f.weight
            with torch.no_grad():
                target.view(-1)[0] = float("inf" if where == "weight" else "nan")
        return done

    monkeypatch.setattr(Update, "__call__", poisoned)
    run = train("run", "checkpoint_interval=1", status=1)
    assert json.loads((run / "result.json").read_text())["status"] == "failed"
    assert all(path.name < layout.step_name(step) for path in layout.step_folders(run))


def test_numbers_whose_squares_are_too_large_are_finite() -> None:
    tensors = {"a": torch.ones(3), "b": torch.full((2, 2), 1e30), "c": torch.tensor(0.0)}
    assert trainer._first_not_finite(tensors) is None
    assert trainer._first_not_finite({**tensors, "d": torch.tensor([1.0, float("inf")])}) == "d"
    assert trainer._first_not_finite({**tensors, "d": torch.tensor([float("nan")])}) == "d"


@pytest.mark.usefixtures("beside")
def test_a_disk_that_fails_is_told_in_a_line_and_the_run_resumed(microgpt: Run, cheap: None) -> None:
    train = failing_train(microgpt)
    assert train(*WORDS, "out_dir=whole").status == 0
    calls = train.calls  # type: ignore[attr-defined]
    publishing = [i for i, name in enumerate(calls) if name in ("fsync", "write", "mkdir")]
    for fail_at in publishing[8::9]:
        for number, broken in ((errno.ENOSPC, False), (errno.EIO, True)):
            check_command(train, Path("whole"), fail_at, number, broken)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.stress
@pytest.mark.parametrize(
    "words",
    [
        *(pytest.param(["random", "25", "1", str(seed)], id=f"many-{seed}") for seed in (1, 2)),
        pytest.param(["calls", "1", "2"], id="calls"),
    ],
)
def test_a_killed_run_resumes_to_the_same_bits(words: list[str], tried: Tried) -> None:
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    tried("SIGKILL while saves go on beside, as on a GPU", found["tries"], found["different"])
    assert found["tries"] >= 20
    assert found["different"] == 0


def test_a_snapshot_does_not_follow_and_tied_names_share_it_still() -> None:
    weight = torch.ones(2, 3)
    copies = snapshot({"a": weight, "b": torch.zeros(()), "tied": weight})
    weight.add_(1)
    assert torch.equal(copies["a"], torch.ones(2, 3))
    assert copies["tied"] is copies["a"]
    assert not copies["a"].requires_grad


def test_one_save_at_a_time() -> None:
    saver, opened = Saver(beside=True), threading.Event()
    with after_this(torch.device("cpu")):
        saver.start(1, lambda: (opened.wait(PATIENCE_SEC), Path("a"))[1])
    with pytest.raises(AssertionError):
        saver.start(2, lambda: Path("b"))
    assert not saver.is_done
    opened.set()
    assert saver.finish() == (1, Path("a"))
    assert saver.finish() is None


if __name__ == "__main__":
    trainer.saves_beside = lambda device: True
    killing.main(sys.argv[1], list(map(int, sys.argv[2:])))
