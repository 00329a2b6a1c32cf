"""One job of a sweep: executed in a process of any launcher, and monitored by the process that runs the sweep.

The two communicate only through the job's folder. A sweep adds to a run's folder (runs/layout.py)

    train.log          the output of the run
    traceback.txt      of a failed job; its `result.json` has the cause as `error`

A job does not raise: its outcome is in its folder, so any launcher continues with the next job.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microgpt_cli.errors import Interrupted, UserError
from microgpt_cli.runs import layout, storage

LOG, TRACEBACK, STOP = "train.log", "traceback.txt", ".stop"
DONE = ("finished", "stopped_early", "pruned")  # not run again when the sweep is resumed
ENDED = (*DONE, "failed")
PARENT_CHECK_SEC = 1.0  # interval at which a worker checks that the sweep's process is alive


@dataclass(frozen=True)
class SweepProcess:
    """The process that runs the sweep, identified from within a job, which may be on another machine."""

    host: str
    pid: int

    @classmethod
    def this_process(cls) -> SweepProcess:
        return cls(socket.gethostname(), os.getpid())

    def is_this_process(self) -> bool:
        """Whether the job runs in the sweep's own process."""
        return self == SweepProcess.this_process()

    def is_parent(self) -> bool:
        return (self.host, self.pid) == (socket.gethostname(), os.getppid())


def run(
    folder: Path, train: Callable[[Path | None], None], sweep_process: SweepProcess, fail_fast: bool = False
) -> JobStatus:
    """Run a job in its folder, from its last checkpoint if there is one.

    Args:
        folder: of the job, inside the sweep's folder.
        train: trains a new run, or resumes the one in a folder.
        sweep_process: the process that runs the sweep.
        fail_fast: start no further job if this one fails.

    Returns:
        Its status; "waiting" if it was not started.

    Raises:
        Interrupted: a signal stopped it, and the job runs in the sweep's own process.
    """
    sweep, in_sweep_process, is_child = folder.parent, sweep_process.is_this_process(), sweep_process.is_parent()
    if not in_sweep_process:
        _stop_with_parent(sweep_process, sweep)
    if (sweep / STOP).exists():
        return JobStatus("waiting")
    before = read_status(folder)
    if before.status in DONE:
        return before
    log = _Log(folder / LOG)
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            train(_prepare(folder))
        except KeyboardInterrupt as stop:
            if in_sweep_process:
                raise
            if is_child and not sweep_process.is_parent():
                os._exit(128 + signal.SIGTERM)  # the run is saved, and the parent has ended
            _forward_signal(stop)
        except Exception as error:
            failed = record_failure(folder, error)
            if fail_fast:
                stop_sweep(sweep, f"job {folder.name} failed")
            return failed
    return read_status(folder)


def _stop_with_parent(sweep_process: SweepProcess, sweep: Path) -> None:
    """In a worker that the sweep's process started: leave the terminal's process group, and end with the parent."""
    if not sweep_process.is_parent() or os.name != "posix" or os.getpgrp() == os.getpid():
        return
    os.setpgid(0, 0)  # Ctrl-C reaches the sweep's process, which signals each worker once

    def watch() -> None:
        while sweep_process.is_parent():
            time.sleep(PARENT_CHECK_SEC)
        with contextlib.suppress(OSError):
            stop_sweep(sweep, "the sweep's process has ended")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@functools.cache
def worker_number(sweep: Path) -> int:
    """The lowest number that no other worker of the sweep on this machine uses, reserved by a lock until the end."""
    if os.name != "posix":
        return 0
    import fcntl

    for number in itertools.count():
        descriptor = storage.open_end(sweep / f".worker-{socket.gethostname()}-{number}")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return number
        except BlockingIOError:
            os.close(descriptor)
    raise AssertionError


def _forward_signal(stop: KeyboardInterrupt) -> None:
    """Re-raise a signal for the handler that was installed before the run's: submitit's requeues the job."""
    number = stop.exit_status - 128 if isinstance(stop, Interrupted) else signal.SIGINT
    if callable(signal.getsignal(number)) and number != signal.SIGINT:
        signal.raise_signal(number)


def _prepare(folder: Path) -> Path | None:
    """Remove stale files of an earlier attempt; returns the folder if it has a checkpoint to resume from."""
    clear_result(folder)
    if layout.step_folders(folder):
        return folder
    if folder.is_dir():
        left = [p.name for p in folder.iterdir() if p.name not in layout.IGNORED_FILES and p.suffix != ".log"]
        storage.remove_folders(folder, left)
    return None


def refuse_if_running(folder: Path) -> None:
    """Raises `UserError` if another process runs a job, for example a worker that outlived its sweep."""
    if layout.is_in_use(folder):
        raise UserError(f"{folder}: another process is still running this job; wait for it or stop it")


def clear_result(folder: Path) -> None:
    """Delete the result of an earlier attempt."""
    for name in (layout.RESULT, TRACEBACK):
        storage.discard(folder / name)


class _Log(io.TextIOBase):
    """Appends printed text to a file, ignoring errors of the disk: a job does not depend on its log."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            storage.append(self._path, text.encode("utf-8", "backslashreplace"))
        return len(text)


def record_failure(folder: Path, error: Exception) -> JobStatus:
    """Record the failure of a job and its cause in its folder, ignoring errors of the disk."""
    result: dict[str, Any] = {}
    with contextlib.suppress(UserError):
        read = storage.parse_json(storage.read_bytes(folder / layout.RESULT), layout.RESULT)
        result = read if isinstance(read, dict) else {}
    cause = " ".join(str(error).split())
    known = isinstance(error, UserError)
    result |= {"status": "failed", "error": cause if known else f"{type(error).__name__}: {cause}".rstrip(": ")}
    trace = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):
        storage.make_folders(folder)
        storage.discard(folder / TRACEBACK)
        storage.append(folder / TRACEBACK, trace.encode("utf-8", "backslashreplace"))
        storage.replace(folder / layout.RESULT, storage.json_bytes(result))
    return _from_result(result)


def keep_config(folder: Path, settings: dict[str, Any]) -> None:
    """Write the config of a job that failed before its run started, for the table of runs."""
    with contextlib.suppress(OSError):
        if not (folder / layout.CONFIG).exists():
            storage.replace(folder / layout.CONFIG, storage.json_bytes(settings))


def stop_sweep(sweep: Path, why: str) -> None:
    """Prevent further jobs from starting, in any process, until the sweep is resumed."""
    storage.append(sweep / STOP, f"{why}\n".encode())


@dataclass(frozen=True)
class JobStatus:
    """The state of a job as recorded in its folder.

    Args:
        status: "waiting", "running" (or killed, which can't be distinguished), "interrupted", "failed", "finished",
            "stopped_early" or "pruned".
        step: the last logged step.
        val_loss, best_val_loss: nats per token, of the last and the best evaluation.
        best_step: of the best evaluation.
        seconds: spent in training steps.
        error: the cause of a failure, one line.
    """

    status: str
    step: int = 0
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    seconds: float = 0.0
    error: str = ""


def read_status(folder: Path) -> JobStatus:
    """Read the state of a job; a damaged `result.json` counts as missing."""
    if not (folder / layout.CONFIG).exists() and not (folder / layout.RESULT).exists():
        return JobStatus("waiting")
    try:
        result = storage.parse_json(storage.read_bytes(folder / layout.RESULT), layout.RESULT)
    except UserError:
        return JobStatus("running")
    return _from_result(result) if isinstance(result, dict) else JobStatus("running")


def _from_result(result: dict[str, Any]) -> JobStatus:
    def number(name: str) -> float | None:
        value = result.get(name)
        return float(value) if isinstance(value, int | float) else None

    step, best_step = number("step"), number("best_step")
    return JobStatus(
        str(result.get("status")),
        int(step or 0),
        number("val_loss"),
        number("best_val_loss"),
        None if best_step is None else int(best_step),
        number("seconds") or 0.0,
        str(result.get("error", "")),
    )
