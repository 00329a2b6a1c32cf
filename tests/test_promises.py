"""What the README promises of a run: no kill, signal, fault of arithmetic or lack of memory loses it.

The heavy half is marked `stress`: `make stress` runs it and prints how often each promise was tried.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Run, Tried, instead

from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.model.gpt import GPT
from microgpt_cli.runs import layout, storage
from microgpt_cli.training.trainer import Trainer
from microgpt_cli.training.update import Update

HERE = Path(__file__).parent
OFTEN = ("model.dropout=0.1", "max_steps=20", "log_interval=3", "eval_interval=6", "checkpoint_interval=5")


PARTS = range(1, 6)  # a part of the many kills each, so that several processes share them


def killing(how: str, *numbers: int) -> dict[str, Any]:
    """Run `support/killing.py` and return what it counted."""
    words = [sys.executable, HERE / "support" / "killing.py", how, *map(str, numbers)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@needs_fork
@pytest.mark.parametrize(
    ("tries", "seed"), [(3, 0), *(pytest.param(40, part, marks=pytest.mark.stress) for part in PARTS)]
)
def test_a_run_killed_at_a_random_instant_resumes_to_the_same_bits(tries: int, seed: int, tried: Tried) -> None:
    found = killing("random", tries, 1, seed)
    tried("… while a checkpoint was saved", found["killed while"]["saving"])
    tried("… while the model was evaluated", found["killed while"]["evaluating"])
    tried("… while an old checkpoint was removed", found["killed while"]["removing"])
    tried("SIGKILL at a random instant", found["tries"], found["different"])
    assert (found["tries"], found["different"]) == (tries, 0)


@needs_fork
@pytest.mark.stress
@pytest.mark.parametrize("part", PARTS)
def test_a_run_killed_ten_times_ends_with_the_same_bits(part: int, tried: Tried) -> None:
    found = killing("random", 1, 10, part)
    tried("ten SIGKILLs in one run", found["tries"], found["different"])
    assert (found["tries"], found["different"]) == (1, 0)


@needs_fork
@pytest.mark.stress
@pytest.mark.parametrize("first", [1, 2])
def test_a_run_killed_at_any_call_of_a_save_resumes_to_the_same_bits(first: int, tried: Tried) -> None:
    found = killing("calls", first, 2)
    tried("SIGKILL at each I/O call of a save", found["tries"], found["different"])
    assert found["tries"] >= 20
    assert found["different"] == 0


@pytest.fixture
def train(microgpt: Run, text_file: Path, tmp_path: Path, cheap: None) -> Callable[..., Path]:
    """Train a tiny model in the working directory, and return the run's folder."""

    def run(name: str, *words: str, status: int = 0) -> Path:
        common = ["train", *TINY, "data.path=my.txt", f"out_dir={name}", *OFTEN]
        ran = microgpt(*instead(common, *words))
        assert ran.status == status, ran.err
        return tmp_path / name

    return run


def outcome(run: Path) -> list[bytes]:
    last = run / "ckpt" / "step-00000020"
    return [p.read_bytes() for p in (last / "model.safetensors", last / "optim.safetensors", run / "metrics.jsonl")]


UNINTERRUPTED: list[list[bytes]] = []  # of the run that the signals of the next test stop


def signal_at(patch: pytest.MonkeyPatch, instant: int, number: int) -> list[str]:
    """Send this process a signal at the call of that number, counted over steps, evaluation, sampling and saving."""
    hit: list[str] = []
    calls = 0

    def counted(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def call(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == instant:
                hit.append(name)
                os.kill(os.getpid(), number)
            return original(*args, **kwargs)

        patch.setattr(owner, name, call)

    for owner, name in ((GPT, "forward"), (Update, "_backward"), (storage, "write_new"), (storage, "publish_folder")):
        counted(owner, name)
    return hit


INSTANTS = [2, 9, 17, 40]
MANY_INSTANTS = [n for n in range(1, 51) if n not in INSTANTS]


@pytest.mark.parametrize("instant", [*INSTANTS, *(pytest.param(n, marks=pytest.mark.stress) for n in MANY_INSTANTS)])
def test_a_signal_at_any_instant_loses_no_step(
    instant: int, train: Callable[..., Path], microgpt: Run, monkeypatch: pytest.MonkeyPatch, tried: Tried
) -> None:
    words = ("sample_interval=7",)
    if not UNINTERRUPTED:
        UNINTERRUPTED.append(outcome(train("whole", *words)))
    tried("SIGTERM, SIGINT, SIGUSR1 at an instant")
    number = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)[instant % 3]
    steps: list[int] = []
    original = Trainer._log
    with monkeypatch.context() as patch:
        hit = signal_at(patch, instant + 6, number)  # the first write_new calls make the run's folder
        patch.setattr(Trainer, "_log", lambda self, rate: steps.append(self.state.step) or original(self, rate))
        cut = train("cut", *words, status=128 + number)
    assert hit
    result = json.loads((cut / "result.json").read_text())
    newest = checkpoint.newest(cut)[0].step
    assert result["status"] == "interrupted"
    assert newest == result["step"] >= max(steps, default=0)
    assert microgpt("train", f"resume={cut.name}").status == 0
    same = outcome(cut) == UNINTERRUPTED[0]  # apart, for pytest takes minutes to tell how bytes differ
    assert same


def test_a_second_signal_ends_it_at_once(tmp_path: Path, text_file: Path, tried: Tried) -> None:
    tried("a second signal ends it at once")
    code = (
        "import os, signal, sys; from microgpt_cli.cli import main as cli\n"
        "from microgpt_cli.training.update import Update\n"
        "original = Update.__call__\n"
        "def step(*args):\n"
        "    os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return original(*args)\n"
        "Update.__call__ = step\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    words = ["train", *TINY, f"data.path={text_file}", "out_dir=run", "max_steps=5"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=False)
    assert done.returncode == -signal.SIGTERM
    assert not layout.step_folders(tmp_path / "run")


@pytest.mark.parametrize("where", ["optimizer", "weight", "loss"])
@pytest.mark.parametrize("step", [1, 5, 12])
def test_no_published_checkpoint_holds_what_is_not_finite(
    where: str, step: int, train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tried: Tried
) -> None:
    tried("no checkpoint that is not finite")
    original = Update.__call__

    def poisoned(self: Update, *args: object) -> object:
        done = original(self, *args)  # type: ignore[arg-type]
        poisoned.calls += 1  # type: ignore[attr-defined]
        if poisoned.calls == step:  # type: ignore[attr-defined]
            target = next(iter(self.optimizer.state().values())) if where == "optimizer" else self.model.ln_f.weight
            with torch.no_grad():
                target.view(-1)[0] = float("inf" if where == "weight" else "nan")
        return done

    poisoned.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(Update, "__call__", poisoned)
    run = train("run", "checkpoint_interval=1", status=1)
    for path in layout.step_folders(run):
        loaded = checkpoint.load(path)
        for tensor in (*loaded.model.values(), *loaded.optim.values()):
            assert torch.isfinite(tensor).all()
    assert json.loads((run / "result.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("at", [0, 7])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_out_of_memory_says_what_to_type_and_that_works(
    at: int,
    error: Exception,
    train: Callable[..., Path],
    microgpt: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tried: Tried,
) -> None:
    tried("out of memory: what it says to type works")
    original = Update._backward

    def hungry(self: Update, idx: torch.Tensor, *args: object) -> torch.Tensor:
        if len(idx) == 4:
            hungry.calls += 1  # type: ignore[attr-defined]
            if hungry.calls > at:  # type: ignore[attr-defined]
                raise error
        return original(self, idx, *args)  # type: ignore[arg-type]

    hungry.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(Update, "_backward", hungry)
    ran = microgpt("train", *TINY, f"data.path={tmp_path / 'my.txt'}", "out_dir=run", *OFTEN)
    assert ran.status == 1
    assert ran.err.count("\n") == 1
    found = re.search(r"microgpt (train .*batch_size=2 grad_accum_steps=2)$", ran.err.strip())
    assert found, ran.err
    again = microgpt(*shlex.split(found[1]), "sample_interval=0")
    assert again.status == 0, again.err
    result = json.loads((tmp_path / "outputs" / "latest" / "result.json").read_text())
    assert (result["step"], result["tokens"]) == (20, 20 * 4 * 8)


def test_from_run_begins_anew_with_an_old_configuration(trained: Path, microgpt: Run, tmp_path: Path) -> None:
    ran = microgpt("train", f"from_run={trained}", "max_steps=12", "out_dir=new")
    assert ran.status == 0, ran.err
    old, new = (json.loads((run / "config.json").read_text()) for run in (trained, tmp_path / "new"))
    differ = {key for key in old if old[key] != new[key]}
    assert differ == {"max_steps", "out_dir", "from_run"}
    assert "not both" in microgpt("train", f"from_run={trained}", f"resume={trained}").err


def test_verify_finds_damage_and_repeats_training_to_the_bit(trained: Path, microgpt: Run, tmp_path: Path) -> None:
    import shutil

    run = Path(shutil.copytree(trained, tmp_path / "run"))
    ran = microgpt("verify", str(run), "replay=10")
    assert ran.status == 0, ran.err
    assert "10 steps from step 20 are bit-identical to the run's step 30" in ran.out
    ran = microgpt("verify", str(run / "ckpt" / "step-00000020"), "replay=5")
    assert "are bit-identical to a second replay" in ran.out
    assert (
        "can't replay 5 steps from step 30: the run ends at 30"
        in microgpt("verify", str(run / "ckpt" / "step-00000030"), "replay=5").err
    )
    path = run / "ckpt" / "step-00000030" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    ran = microgpt("verify", str(run))
    assert ran.status == 1
    assert "BAD " in ran.out
    assert "1 of 2 checkpoints are damaged" in ran.err
