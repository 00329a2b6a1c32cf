"""`metrics.jsonl` and `timings.jsonl`: one JSON object per line, appended during a run.

Only `timings.jsonl` depends on the clock, so that equal runs have equal metrics.
"""

import json
import os
from pathlib import Path
from typing import Any

from microgpt_cli.runs import storage
from microgpt_cli.runs.log import read

__all__ = ["JsonLines", "read"]


class JsonLines:
    """An append-only file of JSON lines.

    Args:
        path: the file.
        size_bytes: on resume, its size at the checkpoint, to which it is truncated.
    """

    def __init__(self, path: Path, size_bytes: int = 0) -> None:
        self._path, self._descriptor = path, storage.open_end(path)
        if self.size_bytes() > size_bytes:
            storage.truncate(path, self._descriptor, size_bytes)

    def append(self, **fields: Any) -> None:
        """Write one line. Raises `ValueError` for NaN and Inf, which JSON lacks."""
        storage.write(self._path, self._descriptor, json.dumps(fields, allow_nan=False).encode() + b"\n")

    def sync(self) -> None:
        """Flush all lines to the disk."""
        storage.fsync(self._path, self._descriptor)

    def size_bytes(self) -> int:
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        os.close(self._descriptor)
