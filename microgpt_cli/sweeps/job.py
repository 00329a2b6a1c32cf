"""One job of a sweep: run in whichever process a launcher chose, and looked at from the one that drives the sweep.

The job's folder is all that passes between the two. To a run's folder (runs/folder.py) a sweep adds

    train.log          what the run said
    traceback.txt      of a job that failed; its `result.json` has the cause as `error`

A job does not raise: what became of it stands in its folder, and any launcher can carry on with the next.
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
DONE = ("finished", "stopped_early", "pruned")  # a job that need not run again
ENDED = (*DONE, "failed")  # a job that goes no further by itself
LOOK_SEC = 1.0  # how often a worker looks whether the process that drives the sweep still lives


@dataclass(frozen=True)
class Driver:
    """The process that drives the sweep, as a job may meet it: on another machine, or dead."""

    host: str
    pid: int

    @classmethod
    def this_process(cls) -> Driver:
        return cls(socket.gethostname(), os.getpid())

    def is_here(self) -> bool:
        """Whether that is this very process: a launcher that starts no other."""
        return self == Driver.this_process()

    def is_parent(self) -> bool:
        return (self.host, self.pid) == (socket.gethostname(), os.getppid())


def run(folder: Path, train: Callable[[Path | None], None], driver: Driver, fail_fast: bool = False) -> Look:
    """Run a job to its end, or on from where it stands, in its folder.

    Args:
        folder: of the job; the sweep's is the one above it.
        train: trains a new run, or goes on with the one in a folder.
        driver: who drives the sweep.
        fail_fast: no further job begins if this one fails.

    Returns:
        What became of it; "waiting" if it did not begin.

    Raises:
        Interrupted: a signal stopped it, and this is the process that drives the sweep.
    """
    sweep, here, is_child = folder.parent, driver.is_here(), driver.is_parent()
    if not here:
        _follow(driver, sweep)
    if (sweep / STOP).exists():
        return Look("waiting")
    before = look(folder)
    if before.status in DONE:
        return before
    log = _Log(folder / LOG)
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            train(_ready(folder))
        except KeyboardInterrupt as stop:
            if here:
                raise
            if is_child and not driver.is_parent():
                os._exit(128 + signal.SIGTERM)  # saved, and nobody waits for this process any more
            _hand_on(stop)
        except Exception as error:
            failed = note_failure(folder, error)
            if fail_fast:
                stop_sweep(sweep, f"job {folder.name} failed")
            return failed
    return look(folder)


def _follow(driver: Driver, sweep: Path) -> None:
    """In a worker that the driver started: heed its signals, and no longer the terminal's; end when it has ended."""
    if not driver.is_parent() or os.name != "posix" or os.getpgrp() == os.getpid():
        return
    os.setpgid(0, 0)  # Ctrl-C reaches the driver, which tells the workers once

    def watch() -> None:
        while driver.is_parent():
            time.sleep(LOOK_SEC)
        with contextlib.suppress(OSError):
            stop_sweep(sweep, "its process has ended")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@functools.cache
def worker_number(sweep: Path) -> int:
    """A number for this process that no other worker of the sweep on this machine has, the lowest that is free.

    It is this process's, by a lock, for as long as it lives.
    """
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


def _hand_on(stop: KeyboardInterrupt) -> None:
    """Give a signal to who had waited for it before the run did: submitit, which puts the job into the queue again."""
    number = stop.exit_status - 128 if isinstance(stop, Interrupted) else signal.SIGINT
    if callable(signal.getsignal(number)) and number != signal.SIGINT:
        signal.raise_signal(number)


def _ready(folder: Path) -> Path | None:
    """Remove what an earlier try left behind that is of no more use; the folder, if there is a run to go on with."""
    forget(folder)
    if layout.step_folders(folder):
        return folder
    if folder.is_dir():
        left = [p.name for p in folder.iterdir() if p.name not in layout.IGNORED_FILES and p.suffix != ".log"]
        storage.remove_folders(folder, left)
    return None


def refuse_if_running(folder: Path) -> None:
    """Raises `UserError` if another process is at work on a job, as one that outlived the sweep which began it."""
    if layout.is_in_use(folder):
        raise UserError(f"{folder}: another process is still at work on this job; wait for it or stop it")


def forget(folder: Path) -> None:
    """Let no one take the outcome of an earlier try for that of the next."""
    for name in (layout.RESULT, TRACEBACK):
        storage.discard(folder / name)


class _Log(io.TextIOBase):
    """Appends what is printed to a file that a job can do without: what the disk refuses is lost."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            storage.append(self._path, text.encode("utf-8", "backslashreplace"))
        return len(text)


def note_failure(folder: Path, error: Exception) -> Look:
    """Write down that a job failed, and why; as far as the disk allows, which may be what failed."""
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
    """Let the table of runs know what a job would have been that failed before its run began."""
    with contextlib.suppress(OSError):
        if not (folder / layout.CONFIG).exists():
            storage.replace(folder / layout.CONFIG, storage.json_bytes(settings))


def stop_sweep(sweep: Path, why: str) -> None:
    """Let no further job begin, whoever launches it, until the sweep is gone on with."""
    storage.append(sweep / STOP, f"{why}\n".encode())


@dataclass(frozen=True)
class Look:
    """How far a job is, as its folder tells.

    Args:
        status: "waiting", "running" (or killed: nobody could say), "interrupted", "failed", "finished",
            "stopped_early", or what a sweeper of its own kind may add.
        step: the last one that was logged.
        val_loss, best_val_loss: nats a token, in the last evaluation and the best.
        best_step: of the best evaluation.
        seconds: spent in steps.
        error: why it failed, one line.
    """

    status: str
    step: int = 0
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    seconds: float = 0.0
    error: str = ""


def look(folder: Path) -> Look:
    """How far a job is; a damaged `result.json` counts as none."""
    if not (folder / layout.CONFIG).exists() and not (folder / layout.RESULT).exists():
        return Look("waiting")
    try:
        result = storage.parse_json(storage.read_bytes(folder / layout.RESULT), layout.RESULT)
    except UserError:
        return Look("running")
    return _from_result(result) if isinstance(result, dict) else Look("running")


def _from_result(result: dict[str, Any]) -> Look:
    def number(name: str) -> float | None:
        value = result.get(name)
        return float(value) if isinstance(value, int | float) else None

    step, best_step = number("step"), number("best_step")
    return Look(
        str(result.get("status")),
        int(step or 0),
        number("val_loss"),
        number("best_val_loss"),
        None if best_step is None else int(best_step),
        number("seconds") or 0.0,
        str(result.get("error", "")),
    )
