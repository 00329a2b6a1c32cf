"""Durable file operations: write a temporary file, fsync it, publish it by a rename, fsync the folder.

A file is visible under its name only when all of its bytes are on disk. A failed fsync is never retried: the system may
have dropped the bytes and would then report success ("fsyncgate"). Reading is strict: no duplicate keys, no NaN, and a
size limit for each file. See Pillai et al., OSDI 2014.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from microgpt_cli.errors import UserError

JSON_VALUES = 200_000  # approximate limit of values in a file
JSON_LEVELS = 20  # limit of nesting, so that recursive code can't overflow the stack
JSON_DIGITS = 4300  # limit of a whole number; reading it takes time that grows with the square of its digits
JSON_BYTES = 16 << 20  # limit of a file's size; a vocabulary of all of Unicode takes 13 MB
LARGEST_NUMBER = 1e60  # limit of numbers in results: beyond any float32, and sums of them do not overflow
BINARY = getattr(os, "O_BINARY", 0)  # without it, Windows would translate newlines
TEMPORARY, TRASH = ".tmp-", ".trash-"  # name prefixes of folders being written, and of folders being removed
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space in your quota",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EIO: "check the disk",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
}


# All calls by which a run changes a disk. Tests record them, make each of them fail or be the last one, and drop what
# they have not made durable.


def create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, 0o666)


def open_end(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | BINARY, 0o666)


def write(path: Path, descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    with _naming(path):
        while rest:  # Linux takes 2 GiB at a time
            rest = rest[os.write(descriptor, rest) :]


def truncate(path: Path, descriptor: int, size_bytes: int) -> None:
    with _naming(path):
        os.ftruncate(descriptor, size_bytes)


def fsync(path: Path, descriptor: int) -> None:
    with _naming(path):
        os.fsync(descriptor)


def rename(old: Path, new: Path) -> None:
    os.replace(old, new)


def mkdir(folder: Path) -> None:
    os.mkdir(folder)


def symlink(target: str, link: Path) -> None:
    os.symlink(target, link, target_is_directory=True)


def unlink(path: Path) -> None:
    os.unlink(path)


def rmdir(folder: Path) -> None:
    os.rmdir(folder)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the file name to errors of calls that take a descriptor."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def explain(error: OSError) -> str:
    """One line with the file, the error and the remedy."""
    return f"{error.filename}: {error.strerror or error}; {REMEDIES.get(error.errno or 0, 'fix it and retry')}"


def write_new(path: Path, data: bytes) -> None:
    """Create a file, which must not exist yet, and fsync it."""
    descriptor = create(path)
    try:
        write(path, descriptor, data)
        fsync(path, descriptor)
    finally:
        os.close(descriptor)


def append(path: Path, data: bytes) -> None:
    """Append to a file without fsync; for files that a run does not depend on."""
    descriptor = open_end(path)
    try:
        write(path, descriptor, data)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Fsync a folder's directory entries, where the system supports it (Windows can't open folders)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fsync(folder, descriptor)
        finally:
            os.close(descriptor)


def replace(path: Path, data: bytes) -> None:
    """Replace a file's contents atomically and durably: readers see either the old bytes or the new ones."""
    temporary = path.with_name(f".{path.name}.tmp")
    if temporary.exists():
        unlink(temporary)
    try:
        write_new(temporary, data)
        rename(temporary, path)
    except OSError:
        discard(temporary)
        raise
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Create a folder, which must not exist yet, and make its directory entry durable."""
    mkdir(folder)
    sync_folder(folder.parent)


def make_folders(folder: Path) -> None:
    """Create a folder and its missing parents, and make their directory entries durable."""
    for missing in reversed([f for f in (folder, *folder.parents) if not f.exists()]):
        with contextlib.suppress(FileExistsError):  # a concurrent process created it
            make_folder(missing)


def publish_folder(final: Path, files: Mapping[str, bytes]) -> None:
    """Create a folder with these files atomically and durably: complete, or not at all."""
    temporary = final.with_name(f"{TEMPORARY}{final.name}-{os.getpid()}")
    try:
        mkdir(temporary)
        for name, data in files.items():
            write_new(temporary / name, data)
        sync_folder(temporary)
        rename(temporary, final)
    except OSError:
        discard(temporary)
        raise
    sync_folder(final.parent)


def remove_folders(parent: Path, names: Iterable[str]) -> None:
    """Remove folders from `parent`; none is ever visible half-removed under its own name."""
    for name in names:
        rename(parent / name, parent / f"{TRASH}{name}")
    remove_stale_folders(parent)


def remove_stale_folders(parent: Path) -> None:
    """Remove temporary folders that this process or a killed one left unfinished."""
    stale = [path for path in parent.iterdir() if path.name.startswith((TEMPORARY, TRASH))]
    if stale:
        sync_folder(parent)  # make the renames durable before the files are removed
    for folder in stale:
        _remove(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for child in list(path.iterdir()):
            _remove(child)
        rmdir(path)
    else:
        unlink(path)


def discard(path: Path) -> None:
    """Remove an unfinished file or folder, ignoring errors of the disk."""
    with contextlib.suppress(OSError):
        if os.path.lexists(path):
            _remove(path)


def json_bytes(data: Any) -> bytes:
    """Strict JSON, one line per key, the same bytes for the same data."""
    return (json.dumps(data, indent=2, ensure_ascii=True, allow_nan=False) + "\n").encode()


def parse_json(data: bytes, where: str) -> Any:
    """Parse strict JSON.

    Raises:
        UserError: not UTF-8, not JSON, a duplicate key, NaN or infinity, a number too long, nested too deeply, or too
            many values.
    """

    def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for name, value in pairs:
            if name in seen:
                raise ValueError(f"duplicate key {name!r}")
            seen[name] = value
        return seen

    def finite(digits: str) -> float:
        number = float(digits)  # "NaN", "Infinity" and "1e999" too
        if not math.isfinite(number):
            raise ValueError(f"{digits[:20]} is not a finite number")
        return number

    def whole(digits: str) -> int:
        if len(digits) > JSON_DIGITS:
            raise ValueError(f"a number of more than {JSON_DIGITS:,} digits")
        return int(digits)

    try:
        if sum(map(data.count, b"[{,")) > JSON_VALUES:
            raise ValueError(f"more than {JSON_VALUES:,} values")
        if _is_deep(data):
            raise ValueError(f"nested deeper than {JSON_LEVELS} levels")
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=unique, parse_int=whole, parse_float=finite, parse_constant=finite
        )
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a valid JSON file: {error}") from error


def _is_deep(data: bytes) -> bool:
    """Whether the brackets of a JSON text, valid or not, nest deeper than is read: told before a parser recurses."""
    brackets = re.sub(rb'(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[^\[\]{}"]++)++', b"", data, flags=re.DOTALL)
    levels = itertools.accumulate(1 if bracket in b"[{" else -1 for bracket in brackets)
    return any(level > JSON_LEVELS for level in itertools.takewhile(lambda level: level >= 0, levels))


@contextlib.contextmanager
def opened(path: Path, limit: int) -> Iterator[tuple[BufferedReader, int]]:
    """Open a regular file of at most `limit` bytes; yields it and its size.

    Raises:
        UserError: it is not regular, is larger, can't be read, or does not fit into memory.
    """
    size = 0
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a pipe would block
            raise UserError(f"{path}: not a regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise UserError(f"{path}: larger than the limit of {limit:,} bytes")
            yield file, size
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except MemoryError as error:
        raise UserError(f"{path}: its {size:,} bytes do not fit into memory") from error


def read_bytes(path: Path, limit: int = JSON_BYTES) -> bytes:
    """A regular file of at most `limit` bytes. Raises `UserError` if it is not regular, is larger, or can't be read."""
    with opened(path, limit) as (file, size):
        return file.read(size)


def sha256(data: bytes) -> str:
    """The hex digest used in manifests and configs."""
    return hashlib.sha256(data).hexdigest()
