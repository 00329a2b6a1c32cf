"""`metrics.jsonl` and `timings.jsonl`: one JSON object a line, appended as the run goes.

What depends on the clock stands in `timings.jsonl` alone, so that equal runs have equal metrics.
"""

import json
import os
from pathlib import Path
from typing import Any

from microgpt_cli.runs import storage
from microgpt_cli.runs.log import read

__all__ = ["JsonLines", "read"]


class JsonLines:
    """A file that grows by lines.

    Args:
        path: the file.
        size_bytes: on resuming, how much of it belongs to the past; what an interrupted run wrote after is cut off.
    """

    def __init__(self, path: Path, size_bytes: int = 0) -> None:
        self._path, self._descriptor = path, storage.open_end(path)
        if self.size_bytes() > size_bytes:
            storage.truncate(path, self._descriptor, size_bytes)

    def append(self, **fields: Any) -> None:
        """Write one line. NaN and infinity are refused: they are not JSON."""
        storage.write(self._path, self._descriptor, json.dumps(fields, allow_nan=False).encode() + b"\n")

    def sync(self) -> None:
        """See all lines to the disk."""
        storage.fsync(self._path, self._descriptor)

    def size_bytes(self) -> int:
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        os.close(self._descriptor)
