"""Read a safetensors file in one pass, checking and hashing it on the way, without a second copy in memory.

The file is not memory-mapped: truncating a mapped file would kill the process.
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

HEADER_BYTES, HEADER_BYTES_PER_TENSOR = 1 << 20, 1 << 8  # limit of the header
LENGTH_BYTES = 8  # of the length field at the beginning of the file
PIECE_BYTES = 4 << 20  # read and checked while the previous piece is hashed


class TensorFile:
    """An open safetensors file with a valid header."""

    def __init__(self, stream: "_Stream", where: Path, order: list[str]) -> None:
        self._stream = stream
        self._where = where
        self._order = order

    def read_into(self, targets: Mapping[str, Tensor]) -> None:
        """Read the file into contiguous float32 tensors on the CPU, which must have the expected names and shapes.

        Raises:
            UserError: the file is truncated, or contains NaN or Inf.
        """
        for name in self._order:
            flat = targets[name].detach().view(-1)
            for piece in flat.split(PIECE_BYTES // flat.element_size()):
                if not self._stream.read_into(memoryview(piece.numpy()).cast("B")):
                    raise UserError(f"{self._where}: not a valid safetensors file: truncated in {name}")
                if not torch.stack(piece.aminmax()).isfinite().all():  # a NaN is both minimum and maximum
                    raise UserError(f"{self._where}: {name} contains NaN or Inf")


@contextlib.contextmanager
def open_tensors(where: Path, entry: Any, expected: Mapping[str, Tensor]) -> Iterator[TensorFile]:
    """Open a file that must have the expected tensors.

    Args:
        where: the file.
        entry: its size and sha256 in the manifest, or None to skip verification.
        expected: tensors on the meta device; a larger file is not read.

    Raises:
        UserError: the file is not as expected or, at the end, its checksum is wrong.
    """
    header_bytes = HEADER_BYTES + HEADER_BYTES_PER_TENSOR * len(expected)
    limit = header_bytes + 2 * sum(
        tensor.nbytes for tensor in expected.values()
    )  # twice, so that a wrong dtype can be reported
    with storage.opened(where, limit) as (file, size), contextlib.closing(_Stream(file, entry is not None)) as stream:
        if entry is not None and (not isinstance(entry, dict) or entry.get("bytes") != size):
            raise damaged(where)
        try:
            yield TensorFile(stream, where, _read_header(stream, size, header_bytes, expected, where))
        except UserError:
            if entry is not None and entry != stream.finished():  # report damage rather than its consequence
                raise damaged(where) from None
            raise
        if entry is not None and entry != stream.finished():
            raise damaged(where)


def damaged(where: Path) -> UserError:
    """The error for a file with the wrong size or checksum."""
    return UserError(f"{where}: damaged: its size or checksum is not the one in {layout.MANIFEST}")


def check_names(given: Mapping[str, Any], expected: Mapping[str, Any], where: Path) -> None:
    """Raises `UserError` if the names differ."""
    for name in [*expected, *given]:
        if name not in given or name not in expected:
            raise UserError(f"{where}: {name} is {'missing' if name not in given else 'not part of this model'}")


def _read_header(stream: "_Stream", size: int, limit: int, expected: Mapping[str, Tensor], where: Path) -> list[str]:
    """Validate the header; the names of the tensors in the order of their data, which must be contiguous."""
    invalid = f"{where}: not a valid safetensors file"
    prefix = bytearray(LENGTH_BYTES)
    length = int.from_bytes(prefix, "little") if stream.read_into(memoryview(prefix)) else size
    if length > min(limit, size - LENGTH_BYTES):
        raise UserError(f"{invalid}: its header is truncated or longer than {limit:,} bytes")
    data = bytearray(length)
    if not stream.read_into(memoryview(data)):
        raise UserError(f"{invalid}: its header is truncated")
    header = storage.parse_json(bytes(data), str(where))
    if not isinstance(header, dict):
        raise UserError(f"{invalid}: its header is not an object")
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise UserError(f"{invalid}: __metadata__ must contain strings")
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
            raise UserError(f"{invalid}: data_offsets of {name} do not span its {tensor.nbytes:,} bytes")
        begins[name] = begin
    order, end = sorted(begins, key=begins.__getitem__), 0
    for name in order:
        if begins[name] != end:
            raise UserError(f"{invalid}: {name} starts at {begins[name]:,}, but the previous tensor ends at {end:,}")
        end += expected[name].nbytes
    if end != size - LENGTH_BYTES - length:
        raise UserError(f"{invalid}: expected {LENGTH_BYTES + length + end:,} bytes, found {size:,}")
    return order


class _Stream:
    """A file read sequentially; a thread computes sha256, which takes longer than the rest."""

    def __init__(self, file: BufferedReader, hashed: bool) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._count = 0
        self._hasher = ThreadPoolExecutor(1, "sha256") if hashed else None

    def read_into(self, target: memoryview) -> bool:
        """Fill `target`, which must not change until `close`; whether the file had enough bytes."""
        count = self._file.readinto(target)
        self._count += count
        if self._hasher is not None:
            self._hasher.submit(self._digest.update, target[:count])
        return count == len(target)

    def finished(self) -> dict[str, Any]:
        """Read to the end; size and checksum of the whole file, as in a manifest."""
        while self.read_into(memoryview(bytearray(PIECE_BYTES))):
            pass
        self.close()
        return {"bytes": self._count, "sha256": self._digest.hexdigest()}

    def close(self) -> None:
        """Wait for the thread."""
        if self._hasher is not None:
            self._hasher.shutdown()
