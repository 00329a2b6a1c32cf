"""Output of the commands: progress bars, lines and formatted quantities."""

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm

from microgpt_cli.data.corpus import Progress


@contextmanager
def bytes_bar(label: str) -> Iterator[Progress]:
    """A progress bar over bytes, shown after half a second and only on a terminal."""
    with tqdm(desc=label, unit="B", unit_scale=True, delay=0.5, disable=None, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line above the progress bars and flush; if the reader is gone, discard all further output.

    Args:
        stream: printed to in place of `sys.stdout`, where that is redirected.
    """
    stream = stream or sys.stdout
    try:
        with tqdm.external_write_mode(file=stream):
            print(text, file=stream, flush=True)
    except OSError as error:
        if not _is_gone(error, stream):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_gone(error: OSError, stream: TextIO) -> bool:
    """Whether the reader of the output is gone, as in `microgpt train | head` or after a terminal closed."""
    is_device = error.errno == errno.EIO and stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)
    return isinstance(error, BrokenPipeError) or is_device


def announce_kernels(engine: str, device: str) -> None:
    """Say so before the C kernels are compiled, which takes seconds and happens once on a machine."""
    from microgpt_cli.engines.cpu import build

    if engine != "torch" and device in ("auto", "cpu") and build.will_compile("layer_ops"):
        say("compiling the CPU kernels, once for this machine; a few seconds", sys.stderr)


def thousands(count: float) -> str:
    """1234.5 → `1,234`; 63210 → `63.2k`."""
    return f"{count:,.0f}" if count < 10_000 else f"{count / 1000:,.1f}k"


def data_size(count: float) -> str:
    """Format bytes: `999 bytes`, `1.5 kB`, `22.3 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """Format seconds: `41.0 s`, `2 min 05 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
