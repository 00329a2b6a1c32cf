"""Every byte that must survive goes through here: written whole, made durable, published by one rename.

A file is visible under its name only when all of it is on the disk: write beside it, fsync, rename, fsync the folder.
A failed fsync is never tried again: the system may have dropped the bytes and would report success ("fsyncgate").
Reading is strict: no duplicate keys, no NaN, no file larger than it may be. See Pillai et al., OSDI 2014.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from microgpt_cli.errors import UserError

JSON_VALUES = 200_000  # most values in a file, about
JSON_LEVELS = 20  # deepest nesting: nobody who walks through what was read runs out of stack
JSON_BYTES = 16 << 20  # largest JSON file that is read; a vocabulary of all of Unicode takes 13 MB
BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate newlines
TEMPORARY, TRASH = ".tmp-", ".trash-"  # what a folder's name begins with while it is made, and when it is removed
REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room in your quota",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EIO: "see to the disk",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
}


# The calls that change a disk; a run makes no others. The tests record them, let each of them fail or be the last, and
# lose what they have not made durable.


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
    """Let the errors of calls that take a descriptor say which file it was, as those of the others do."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def explain(error: OSError) -> str:
    """What went wrong, where, and what to do about it."""
    return f"{error.filename}: {error.strerror or error}; {REMEDIES.get(error.errno or 0, 'mend that')}"


def write_new(path: Path, data: bytes) -> None:
    """Write a file that must not be there yet, and see it to the disk."""
    descriptor = create(path)
    try:
        write(path, descriptor, data)
        fsync(path, descriptor)
    finally:
        os.close(descriptor)


def append(path: Path, data: bytes) -> None:
    """Add to a file that a run can do without: nothing waits for the disk."""
    descriptor = open_end(path)
    try:
        write(path, descriptor, data)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can (Windows can't open folders)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fsync(folder, descriptor)
        finally:
            os.close(descriptor)


def replace(path: Path, data: bytes) -> None:
    """Put `data` in place of what a file holds, durably: a reader sees the old bytes or the new ones, no mixture."""
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
    """Make a folder that must not be there yet, and its name durable."""
    mkdir(folder)
    sync_folder(folder.parent)


def make_folders(folder: Path) -> None:
    """Make a folder where it is missing, and those above it, and their names durable."""
    for missing in reversed([f for f in (folder, *folder.parents) if not f.exists()]):
        with contextlib.suppress(FileExistsError):  # a run that starts beside us was faster
            make_folder(missing)


def publish_folder(final: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder with these files: it is there whole and durable, or not at all."""
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
    """Remove folders from `parent` so that no half of one is ever seen under its own name."""
    for name in names:
        rename(parent / name, parent / f"{TRASH}{name}")
    sweep(parent)


def sweep(parent: Path) -> None:
    """Remove folders that were given up, ours or those of a process that died."""
    stale = [path for path in parent.iterdir() if path.name.startswith((TEMPORARY, TRASH))]
    if stale:
        sync_folder(parent)  # their old names must be gone before their files are
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
    """Make room: remove a file or a folder that could not be finished, as far as the disk allows."""
    with contextlib.suppress(OSError):
        if os.path.lexists(path):
            _remove(path)


def json_bytes(data: Any) -> bytes:
    """Strict JSON, one line a key, the same bytes for the same data."""
    return (json.dumps(data, indent=2, ensure_ascii=True, allow_nan=False) + "\n").encode()


def parse_json(data: bytes, where: str) -> Any:
    """What strict JSON says.

    Raises:
        UserError: not UTF-8, not JSON, a key twice, NaN or infinity, nested too deep, or too much.
    """

    def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for name, value in pairs:
            if name in seen:
                raise ValueError(f"key {name!r} stands twice")
            seen[name] = value
        return seen

    def finite(digits: str) -> float:
        number = float(digits)  # "NaN", "Infinity" and "1e999" too
        if not math.isfinite(number):
            raise ValueError(f"{digits[:20]} is not a finite number")
        return number

    try:
        if sum(map(data.count, b"[{,")) > JSON_VALUES:
            raise ValueError(f"more than {JSON_VALUES:,} values")
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_float=finite, parse_constant=finite)
        level, levels = [parsed], 0
        while level := [child for node in level for child in _children(node)]:
            levels += 1
            if levels > JSON_LEVELS:
                raise ValueError(f"nested deeper than {JSON_LEVELS} levels")
        return parsed
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a valid JSON file: {error}") from error


def _children(node: Any) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


@contextlib.contextmanager
def opened(path: Path, limit: int) -> Iterator[tuple[BufferedReader, int]]:
    """A plain file of at most `limit` bytes, open, and its size.

    Raises:
        UserError: it is none, or larger, or can't be read, or does not fit into memory.
    """
    size = 0
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a pipe would wait for its writer
            raise UserError(f"{path}: not a plain file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise UserError(f"{path}: larger than the {limit:,} bytes that such a file may have")
            yield file, size
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except MemoryError as error:
        raise UserError(f"{path}: its {size:,} bytes do not fit into memory") from error


def read_bytes(path: Path, limit: int = JSON_BYTES) -> bytes:
    """A plain file, whole, of at most `limit` bytes. Raises `UserError` if it is none, or larger, or can't be read."""
    with opened(path, limit) as (file, size):
        return file.read(size)


def sha256(data: bytes) -> str:
    """The checksum that manifests and configs carry."""
    return hashlib.sha256(data).hexdigest()
