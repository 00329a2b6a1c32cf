"""Signals that end a command: which are heard, what is saved, and the status after each."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import TINY, Run

from microgpt_cli import signals
from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.data import corpus
from microgpt_cli.runs import layout

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


def ignore_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def hear_hangup() -> None:
    """Also where the tests themselves run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@contextlib.contextmanager
def training(text_file: Path, before: Callable[[], None] = hear_hangup) -> Iterator[subprocess.Popen[str]]:
    """A run in a process of its own, after its first evaluation; killed at the end if it still runs."""
    words = [*TINY, f"data.path={text_file}", "max_steps=1000000", "out_dir=run", "eval_interval=50"]
    command = [sys.executable, "-m", "microgpt_cli", "train", *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=before) as process:
        try:
            assert process.stdout is not None
            assert any(line.startswith("step ") for line in process.stdout)
            yield process
        finally:
            process.kill()


def saved(run: Path) -> bool:
    result = json.loads((run / "result.json").read_text())
    return bool(result["status"] == "interrupted" and checkpoint.newest(run)[0].step == result["step"])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGHUP, 129), (signal.SIGUSR1, 138), (signal.SIGXCPU, 152)])
def test_a_run_saves_and_says_how_to_go_on(number: signal.Signals, status: int, text_file: Path) -> None:
    with training(text_file) as process:
        process.send_signal(number)
        if number in signals.REPEATED:
            process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "resume with: microgpt train resume=run" in err
    assert saved(Path("run"))


def test_under_nohup_a_run_goes_on(text_file: Path) -> None:
    with training(text_file, ignore_hangup) as process:
        process.send_signal(signal.SIGHUP)
        before = (Path("run") / layout.METRICS).stat().st_size
        deadline = time.monotonic() + 60
        while (Path("run") / layout.METRICS).stat().st_size == before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.poll() is None
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 143
    assert saved(Path("run"))


def test_a_run_whose_terminal_is_closed_saves(text_file: Path) -> None:
    import pty

    child, terminal = pty.fork()
    if child == 0:
        hear_hangup()
        words = [*TINY, f"data.path={text_file}", "max_steps=1000000", "out_dir=run", "eval_interval=50"]
        os.execv(sys.executable, [sys.executable, "-m", "microgpt_cli", "train", *words])
    shown = b""
    with contextlib.suppress(OSError):
        while b"val_loss" not in shown:
            shown += os.read(terminal, 1000)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 129, shown
    assert saved(Path("run"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_first_step_says_interrupted_and_leaves_nothing(
    number: signal.Signals, microgpt: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = corpus._read

    def interrupted(source: Path | bytes) -> object:
        os.kill(os.getpid(), number)
        return read(source)

    monkeypatch.setattr(corpus, "_read", interrupted)
    ran = microgpt("train", *TINY, "data.path=my.txt", "data.cache_dir=cache")
    assert (ran.status, ran.err) == (128 + number, "microgpt train: interrupted\n")
    assert not Path("outputs").exists()
    assert not [path for path in Path("cache").rglob("*") if path.is_file()]
    assert signal.getsignal(number) == signal.SIG_DFL


def test_ignored_signals_stay_ignored_but_for_ctrl_c() -> None:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in signals.STOP_SIGNALS}
    heard: list[int] = []
    try:
        with signals.handle_signals(lambda number, _: heard.append(number)):
            for number in signals.STOP_SIGNALS:
                signal.raise_signal(number)
    finally:
        for number, old in before.items():
            signal.signal(number, old)
    assert heard == [signal.SIGINT]
