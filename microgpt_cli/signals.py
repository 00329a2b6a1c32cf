"""The signals that make a run or a sweep save and exit.

SIGINT (Ctrl-C), SIGTERM, SIGHUP (the terminal or connection closed), SIGUSR1 (sent by Slurm) and SIGXCPU (CPU time
limit). A signal that is ignored at start-up stays ignored, so that `nohup microgpt train` survives its terminal; except
SIGINT, which shell scripts ignore in their background jobs.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from microgpt_cli.errors import Interrupted

STOP_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU")
    if hasattr(signal, name)  # Windows has two of them
]
# The shell and the kernel both send SIGHUP when a terminal closes, and SIGXCPU repeats every second of CPU time: a
# second one of these does not ask for an immediate exit.
REPEATED = {number for number in STOP_SIGNALS if number.name in ("SIGHUP", "SIGXCPU")}


@contextmanager
def handle_signals(
    handler: Callable[[int, FrameType | None], None], signals: Sequence[signal.Signals] = STOP_SIGNALS
) -> Iterator[None]:
    """Install a handler for the signals that are not ignored.

    Does nothing outside the main thread, which receives the signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals if not _is_ignored(number)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def interrupting() -> Iterator[None]:
    """Raise `Interrupted` on stop signals that would otherwise kill the process without clean-up.

    Existing handlers stay, such as those of a launcher and of Python for Ctrl-C.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN if number in REPEATED else signal.SIG_DFL)  # for a second signal
        raise Interrupted("interrupted", number)

    with handle_signals(stop, [number for number in STOP_SIGNALS if signal.getsignal(number) == signal.SIG_DFL]):
        yield


def _is_ignored(number: signal.Signals) -> bool:
    return number != signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN
