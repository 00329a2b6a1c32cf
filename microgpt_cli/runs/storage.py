"""Every byte that must survive goes through here: written whole, made durable, published by one rename.

A file is visible under its name only when all of it is on the disk: write beside it, fsync, rename, fsync the folder.
Reading is strict: no duplicate keys, no NaN, no file larger than it may be. See Pillai et al., OSDI 2014.
"""

import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from microgpt_cli.errors import UserError

JSON_VALUES = 200_000  # most values in a file, about
JSON_LEVELS = 20  # deepest nesting: nobody who walks through what was read runs out of stack
JSON_BYTES = 16 << 20  # largest JSON file that is read; a vocabulary of all of Unicode takes 13 MB


def write_new(path: Path, data: bytes) -> None:
    """Write a file that must not be there yet, and see it to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, data: bytes) -> None:
    """Put `data` in place of what a file holds: a reader sees the old bytes or the new ones, never a mixture."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    write_new(temporary, data)
    os.replace(temporary, path)
    sync_folder(path.parent)


def publish_folder(temporary: Path, final: Path) -> None:
    """Give a finished folder its name. Its files must be durable already; `final` must not exist."""
    sync_folder(temporary)
    os.rename(temporary, final)
    sync_folder(final.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that no half of it is ever seen under its own name."""
    trash = folder.with_name(f".trash-{folder.name}")
    shutil.rmtree(trash, ignore_errors=True)
    os.rename(folder, trash)
    sync_folder(folder.parent)
    shutil.rmtree(trash)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can (Windows can't open folders)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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


def read_bytes(path: Path, limit: int = JSON_BYTES) -> bytes:
    """A plain file, whole, of at most `limit` bytes. Raises `UserError` if it is none, or larger, or can't be read."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a pipe would wait for its writer
            raise UserError(f"{path}: not a plain file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(size) if size <= limit else b""
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except MemoryError as error:
        raise UserError(f"{path}: its {size:,} bytes do not fit into memory") from error
    if size > limit:
        raise UserError(f"{path}: larger than the {limit:,} bytes that such a file may have")
    return data


def sha256(data: bytes) -> str:
    """The checksum that manifests and configs carry."""
    return hashlib.sha256(data).hexdigest()
