"""Check the YAML files of a folder given with `--config-dir` before Hydra reads them.

Such a folder is code: an untrusted one is not safe to use. The check only turns binary files and exponential alias
expansion ("billion laughs") into a one-line error instead of exhausting memory.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from microgpt_cli.errors import UserError

MAX_FILE_BYTES = 64 << 10
MAX_VALUES = 2000  # in a file, with aliases expanded
MAX_LEVELS = 20
# OmegaConf 2.3 uses the loader in Python and 2.4 the one in C; each rejects texts that the other accepts.
LOADERS = {yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)}


def check(folder: Path, groups: Iterable[str]) -> None:
    """Raises `UserError` if a config in the folder, or in one of these groups, is unreadable or too large."""
    for part in (".", *groups, "hydra/*"):
        for path in sorted(folder.glob(f"{part}/*.yaml")):
            problem = _problem(path) if path.is_file() else ""
            if problem:
                raise UserError(f"{path}: {problem}")


def _problem(path: Path) -> str:
    """The problem of a file, or an empty string. Syntax errors are left to Hydra, which reads only chosen files."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return f"larger than {MAX_FILE_BYTES:,} bytes, the limit for a config"
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        return f"not UTF-8 text: {error.reason} at byte {error.start:,}"
    except OSError as error:
        return str(error.strerror or error)
    return too_much(text)


def too_much(text: str) -> str:
    """The problem of a YAML text with too many values or levels, or an empty string."""
    extents = [_extent(text, loader) for loader in LOADERS]
    if max(values for values, _ in extents) > MAX_VALUES:
        return f"more than {MAX_VALUES:,} values with aliases expanded"
    return f"nested deeper than {MAX_LEVELS} levels" if max(levels for _, levels in extents) > MAX_LEVELS else ""


def _extent(text: str, loader: Any) -> tuple[int, int]:
    """The number of values in a YAML text with aliases expanded, and their nesting depth.

    For a text that the loader rejects, the values before the error and an estimate of the depth.
    """
    sizes: dict[str, int] = {}  # of completed anchors
    opened: list[tuple[str | None, int]] = [(None, 0)]
    levels = 0
    try:
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.CollectionStartEvent):
                opened.append((event.anchor, 1))
                levels = max(levels, len(opened) - 1)
                if levels > MAX_LEVELS:
                    break  # deeper recursion would overflow
                continue
            if isinstance(event, yaml.AliasEvent):
                anchor, size = None, sizes.get(str(event.anchor), MAX_VALUES + 1)  # recursive: infinite
            elif isinstance(event, yaml.ScalarEvent):
                anchor, size = event.anchor, 1
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, size = opened.pop()
            else:
                continue
            if anchor is not None:
                sizes[anchor] = size
            opened[-1] = (opened[-1][0], opened[-1][1] + size)
    except Exception:  # the parsers fail in different ways; the message must not depend on them
        levels = max(levels, _levels_of_characters(text))
    return opened[0][1], levels


def _levels_of_characters(text: str) -> int:
    """The nesting depth by brackets, indentation and `- ` of a text that a parser rejects; ignores quoting."""
    brackets = deepest = 0
    columns: list[int] = []  # of the open blocks
    for line in filter(str.strip, text.splitlines()):
        indicators = re.split(r"(?![-?:]\s|\s)", line, maxsplit=1)[0]
        starts = [column for column, char in enumerate(indicators) if char in "-?:"] + [len(indicators)]
        while columns and columns[-1] >= starts[0]:
            columns.pop()
        columns += starts
        for char in line:
            brackets = max(0, brackets + (char in "[{") - (char in "]}"))
            deepest = max(deepest, len(columns) + brackets)
    return deepest
