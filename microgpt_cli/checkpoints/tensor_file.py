"""Read a safetensors file once: each byte is checked, hashed and used as it comes, and stands in memory once.

A file of tensors is never mapped: one that is cut short while it is mapped ends the process.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microgpt_cli.errors import UserError
from microgpt_cli.runs import layout, storage

HEADER_BYTES, HEADER_BYTES_PER_TENSOR = 1 << 20, 1 << 8  # largest header that is read
LENGTH_BYTES = 8  # of the header's length, at the beginning of the file
PIECE_BYTES = 4 << 20  # read and checked while the piece before is hashed


class TensorFile:
    """An open safetensors file, its header read and checked."""

    def __init__(self, stream: "_Stream", where: Path, order: list[str]) -> None:
        self._stream = stream
        self._where = where
        self._order = order

    def read_into(self, targets: Mapping[str, Tensor]) -> None:
        """Fill contiguous float32 tensors on the CPU, which must be the expected ones, with the file's numbers.

        Raises:
            UserError: the file ends early, or holds NaN or infinity.
        """
        for name in self._order:
            flat = targets[name].detach().view(-1)
            for piece in flat.split(PIECE_BYTES // flat.element_size()):
                if not self._stream.read_into(memoryview(piece.numpy()).cast("B")):
                    raise UserError(f"{self._where}: not a valid safetensors file: it ends within {name}")
                if not torch.stack(piece.aminmax()).isfinite().all():  # NaN is the least and the greatest
                    raise UserError(f"{self._where}: {name} holds NaN or infinity")


@contextlib.contextmanager
def open_tensors(where: Path, noted: Any, expected: Mapping[str, Tensor]) -> Iterator[TensorFile]:
    """Open a file whose tensors have the names, shapes and types that are expected.

    Args:
        where: the file.
        noted: its size and sha256 in the manifest; None where there is no manifest to check against.
        expected: tensors on the meta device. A file that asks for more memory than these is not read.

    Raises:
        UserError: the file is not as expected, or, at the end, not as noted.
    """
    header_bytes = HEADER_BYTES + HEADER_BYTES_PER_TENSOR * len(expected)
    limit = header_bytes + 2 * sum(tensor.nbytes for tensor in expected.values())  # room for a wrong type, to be named
    with storage.opened(where, limit) as (file, size), contextlib.closing(_Stream(file, noted is not None)) as stream:
        if noted is not None and (not isinstance(noted, dict) or noted.get("bytes") != size):
            raise damaged(where)
        try:
            yield TensorFile(stream, where, _read_header(stream, size, header_bytes, expected, where))
        except UserError:
            if noted is not None and noted != stream.finished():  # of a damaged file, say that and no consequence of it
                raise damaged(where) from None
            raise
        if noted is not None and noted != stream.finished():
            raise damaged(where)


def damaged(where: Path) -> UserError:
    """The error of a file that is not the one that was written."""
    return UserError(f"{where}: damaged: its size or checksum is not the one in {layout.MANIFEST}")


def check_names(given: Mapping[str, Any], expected: Mapping[str, Any], where: Path) -> None:
    """Raises `UserError` unless both have the same names."""
    for name in [*expected, *given]:
        if name not in given or name not in expected:
            raise UserError(f"{where}: {name} is {'missing' if name not in given else 'not part of this model'}")


def _read_header(stream: "_Stream", size: int, limit: int, expected: Mapping[str, Tensor], where: Path) -> list[str]:
    """The names of the tensors in the order in which their numbers follow, without gap or overlap, to the end."""
    invalid = f"{where}: not a valid safetensors file"
    prefix = bytearray(LENGTH_BYTES)
    length = int.from_bytes(prefix, "little") if stream.read_into(memoryview(prefix)) else size
    if length > min(limit, size - LENGTH_BYTES):
        raise UserError(f"{invalid}: its header is cut short, or longer than {limit:,} bytes")
    data = bytearray(length)
    if not stream.read_into(memoryview(data)):
        raise UserError(f"{invalid}: its header is cut short")
    header = storage.parse_json(bytes(data), str(where))
    if not isinstance(header, dict):
        raise UserError(f"{invalid}: its header is no object")
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise UserError(f"{invalid}: __metadata__ must hold texts")
    check_names(header, expected, where)
    begins: dict[str, int] = {}
    for name, tensor in expected.items():
        entry = header[name] if isinstance(header[name], dict) else {}
        if entry.get("dtype") != "F32" or entry.get("shape") != list(tensor.shape):
            raise UserError(f"{where}: {name} must be F32 of shape {list(tensor.shape)}, as in the model")
        offsets = entry.get("data_offsets")
        if not isinstance(offsets, list) or len(offsets) != 2 or any(type(offset) is not int for offset in offsets):
            raise UserError(f"{invalid}: {name} needs two data_offsets")
        begin, end = offsets
        if end - begin != tensor.nbytes:
            raise UserError(f"{invalid}: data_offsets of {name} do not hold its {tensor.nbytes:,} bytes")
        begins[name] = begin
    order, place = sorted(begins, key=begins.__getitem__), 0
    for name in order:
        if begins[name] != place:
            raise UserError(f"{invalid}: {name} begins at {begins[name]:,}, and the tensor before it ends at {place:,}")
        place += expected[name].nbytes
    if place != size - LENGTH_BYTES - length:
        raise UserError(f"{invalid}: it should have {LENGTH_BYTES + length + place:,} bytes, and has {size:,}")
    return order


class _Stream:
    """A file read from beginning to end, hashed beside by a thread: sha256 costs more than all else here."""

    def __init__(self, file: BufferedReader, hashed: bool) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._count = 0
        self._hasher = ThreadPoolExecutor(1, "sha256") if hashed else None

    def read_into(self, target: memoryview) -> bool:
        """Fill `target`, which must not change until the end; whether the file had as many bytes."""
        count = self._file.readinto(target)
        self._count += count
        if self._hasher is not None:
            self._hasher.submit(self._digest.update, target[:count])
        return count == len(target)

    def finished(self) -> dict[str, Any]:
        """Size and checksum as a manifest notes them, of the whole file."""
        while self.read_into(memoryview(bytearray(PIECE_BYTES))):
            pass
        self.close()
        return {"bytes": self._count, "sha256": self._digest.hexdigest()}

    def close(self) -> None:
        """Wait for the thread."""
        if self._hasher is not None:
            self._hasher.shutdown()
