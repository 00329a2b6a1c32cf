"""Read `metrics.jsonl` and `timings.jsonl`, which training/metrics.py writes."""

import contextlib
from pathlib import Path
from typing import Any

from microgpt_cli.errors import UserError
from microgpt_cli.runs import storage


def read(path: Path) -> list[dict[str, Any]]:
    """All valid lines of a log; an incomplete last line, left by a crash, and malformed lines are skipped."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    found = []
    for line in lines[:-1]:
        with contextlib.suppress(UserError):
            fields = storage.parse_json(line, str(path))
            if isinstance(fields, dict) and "step" in fields and {*map(type, fields.values())} <= {int, float}:
                found.append(fields)
    return found
