"""`microgpt replay`: play back the samples that a run wrote during training."""

import contextlib
import os
import select
import sys
import time
from collections.abc import Iterator
from typing import Protocol

from microgpt_cli.commands import Invocation
from microgpt_cli.config import ReplayConfig
from microgpt_cli.errors import UserError
from microgpt_cli.runs import layout
from microgpt_cli.runs.replay_frames import Frame, replay_frames
from microgpt_cli.runs.samples import read_samples
from microgpt_cli.training import metrics

SPEED_STEP = 1.5
BOLD, QUIET, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


class Wait(Protocol):
    """Wait for some seconds, and return the key that was pressed, if any."""

    def __call__(self, seconds: float | None, /) -> str: ...


def run(config: ReplayConfig, invocation: Invocation) -> None:
    """Play the samples of a run on a terminal, or print them if standard output is not a terminal."""
    folder = layout.find_run(config.run, "run")
    samples = read_samples(folder)
    if not samples:
        raise UserError(
            f"run={config.run}: no samples in this folder; a run writes them every sample_interval steps "
            "and at its end: give a run's folder, as in outputs/train/…"
        )
    losses = {line["step"]: line["val_loss"] for line in metrics.read(folder / layout.METRICS) if "val_loss" in line}
    frames = replay_frames(samples, losses)
    if not sys.stdout.isatty():
        sys.stdout.writelines(frame.text for frame in frames)
        return
    with _keys() as wait:
        try:
            _play(frames, config.speed, wait)
        finally:
            sys.stdout.write(PLAIN)


def _play(frames: Iterator[Frame], speed: float, wait: Wait) -> None:
    """Play frames; + and - change the speed, space pauses, n skips to the next sample, q quits."""
    print(f"{QUIET}+ faster, - slower, space pause, n next, q quit{PLAIN}\n")
    skipped = -1
    for frame in frames:
        sys.stdout.write(f"{BOLD}{frame.text}{PLAIN}" if frame.is_header else frame.text)
        sys.stdout.flush()
        key = wait(frame.seconds / speed) if frame.sample != skipped else ""
        if key == " ":
            key = wait(None)
        if key in ("+", "=", "-"):
            speed *= 1 / SPEED_STEP if key == "-" else SPEED_STEP
        elif key == "n":
            skipped = frame.sample
        elif key in ("q", "\x04"):
            print()
            return


@contextlib.contextmanager
def _keys() -> Iterator[Wait]:
    """A `Wait` that reacts to keys if standard input is a terminal."""
    try:
        import termios
        import tty
    except ImportError:
        yield _sleep
        return
    if not sys.stdin.isatty():
        yield _sleep
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def wait(seconds: float | None) -> str:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        return os.read(descriptor, 1).decode("latin-1") if ready else ""

    try:
        tty.setcbreak(descriptor)  # Ctrl-C still interrupts
        yield wait
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _sleep(seconds: float | None) -> str:
    time.sleep(seconds or 0)
    return ""
