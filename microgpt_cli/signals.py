"""The signals that ask a run or a sweep to save and end, and the status that a process ends with after each.

Ctrl-C; SIGTERM; SIGHUP of a terminal or a connection that closes; SIGUSR1, which Slurm sends; SIGXCPU of a limit on CPU
time. What was ignored when the process began stays ignored, so that `nohup microgpt train` outlives its terminal; but
for SIGINT, which a shell script has all its background jobs ignore.
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
# A shell and the kernel each send SIGHUP when a terminal closes, and SIGXCPU comes again after each second of CPU time:
# a second one does not mean that somebody is in a hurry.
REPEATED = {number for number in STOP_SIGNALS if number.name in ("SIGHUP", "SIGXCPU")}


@contextmanager
def handle_signals(
    handler: Callable[[int, FrameType | None], None], signals: Sequence[signal.Signals] = STOP_SIGNALS
) -> Iterator[None]:
    """Have a handler called for signals that are not ignored.

    In a thread beside the main one, to which signals go, nothing changes.
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
    """Let a stop signal raise `Interrupted` where it would end the process without a line and without cleaning up.

    What is heard already keeps its handler: a launcher's, say, and Python's for Ctrl-C.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN if number in REPEATED else signal.SIG_DFL)  # of a second one
        raise Interrupted("interrupted", number)

    with handle_signals(stop, [number for number in STOP_SIGNALS if signal.getsignal(number) == signal.SIG_DFL]):
        yield


def _is_ignored(number: signal.Signals) -> bool:
    return number != signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN
