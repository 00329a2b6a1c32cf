"""What a run has logged, as anyone may read it: `metrics.jsonl`, `timings.jsonl`. training/metrics.py writes them."""

import contextlib
from pathlib import Path
from typing import Any

from microgpt_cli.errors import UserError
from microgpt_cli.runs import storage


def read(path: Path) -> list[dict[str, Any]]:
    """All lines of a file; a torn last line, left by a crash, and what is no line of ours are passed over."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    found = []
    for line in lines[:-1]:
        with contextlib.suppress(UserError):
            fields = storage.parse_json(line, str(path))
            if isinstance(fields, dict) and "step" in fields and {*map(type, fields.values())} <= {int, float}:
                found.append(fields)
    return found
