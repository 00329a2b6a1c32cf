"""Write files that a person named with `out=`.

A regular file is replaced atomically, behind a symbolic link too. A device, a pipe or an open descriptor
(`/dev/stdout`, `/dev/fd/3`) is written into, never replaced; `-` is standard output.
"""

import contextlib
import errno
import functools
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from microgpt_cli.errors import UserError
from microgpt_cli.runs import storage

STDOUT = 1
DESCRIPTORS = {"/dev/stdout": STDOUT, "/dev/stderr": 2}
NUMBERED = re.compile(r"/(?:dev|proc/self)/fd/(\d{1,9})")
MAX_LINKS = 40  # as in Linux
# Errors of replacing a file that may still be writable itself: in a folder that is not, or mounted on its own.
ONLY_IN_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY}


def file_to_write(out: str) -> Path:
    """Where `out=` says. Raises `UserError` if that is a folder, or in none."""
    if descriptor_of(out) is not None:
        return Path("/dev/stdout") if out == "-" else Path(out)
    target = Path(os.path.expanduser(out))
    parent = os.path.dirname(os.path.realpath(target)) if os.path.islink(target) else target.absolute().parent
    if os.path.isdir(target) or not os.path.isdir(parent):
        what = "is a folder" if os.path.isdir(target) else "no such folder"
        raise UserError(f"out={out}: {what}; give a file in a folder that exists")
    return target


def descriptor_of(out: str | Path) -> int | None:
    """The number of the open descriptor that a name stands for, directly or through links; None for other files."""
    name = "/dev/stdout" if out == "-" else str(out)  # a path, as from `./-`, is a file of that name
    for _ in range(MAX_LINKS):
        numbered = NUMBERED.fullmatch(name)
        if name in DESCRIPTORS or numbered:
            return int(numbered[1]) if numbered else DESCRIPTORS[name]
        try:
            link = os.readlink(name)
        except (OSError, ValueError):
            return None
        name = os.path.join(os.path.dirname(name), link)
    return None


def is_stdout(out: str | Path | None) -> bool:
    return out is not None and descriptor_of(out) == STDOUT


def is_special(out: str) -> bool:
    """Whether a name stands for something to write into: an open descriptor, a device, a pipe."""
    path = os.path.expanduser(out)
    return descriptor_of(out) is not None or (os.path.exists(path) and not _is_replaceable(path))


def write(target: Path, data: bytes) -> None:
    """Write all of `data` to a target from `file_to_write`. Raises `OSError` with the name of the target."""
    descriptor = descriptor_of(target)
    if descriptor is not None:
        _write_descriptor(target, descriptor, data)
    elif target.exists() and not _is_replaceable(target):
        _write_into(target, data, 0)
    else:
        file = Path(os.path.realpath(target)) if target.is_symlink() else target
        if file.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(target))
        try:
            storage.replace(file, data)
        except OSError as error:
            if error.errno not in ONLY_IN_PLACE or not (file.is_file() and os.access(file, os.W_OK)):
                raise
            _write_into(file, data, os.O_TRUNC)


def text_beside(run: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """A command that prints on standard error what it says, where `out=` is standard output."""

    @functools.wraps(run)
    def wrapped(config: Any, invocation: Any) -> None:
        with contextlib.redirect_stdout(sys.stderr) if is_stdout(config.out) else contextlib.nullcontext():
            run(config, invocation)

    return wrapped


def _is_replaceable(path: str | Path) -> bool:
    mode = os.stat(path).st_mode
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _write_descriptor(target: Path, descriptor: int, data: bytes) -> None:
    if descriptor <= 2:
        stream = sys.__stdout__ if descriptor == STDOUT else sys.__stderr__
        if stream is None:  # closed by the caller: the number may be another file's now
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), str(target))
        stream.flush()
    storage.write(target, descriptor, data)


def _write_into(path: Path, data: bytes, flags: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | storage.BINARY | flags)
    try:
        storage.write(path, descriptor, data)
    finally:
        os.close(descriptor)
