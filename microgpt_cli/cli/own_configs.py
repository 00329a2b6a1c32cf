"""A look at the YAML files of a folder given with `--config-dir`, before Hydra reads them.

Such a folder is code, and nothing here makes a stranger's safe to use. But a file that is no text, or whose aliases
multiply ("billion laughs": 300 bytes become gigabytes), shall cost one line and not the machine.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from microgpt_cli.errors import UserError

FILE_BYTES = 64 << 10
MOST_VALUES = 2000  # in a file, its aliases written out
MOST_LEVELS = 20
# Both, where there are two: OmegaConf 2.3 reads with the one in Python and 2.4 with the one in C, and each refuses
# texts that the other takes.
LOADERS = {yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)}


def check(folder: Path, groups: Iterable[str]) -> None:
    """Raises `UserError` if a config in the folder, or of one of these groups in it, is too much to read."""
    for part in (".", *groups, "hydra/*"):
        for path in sorted(folder.glob(f"{part}/*.yaml")):
            problem = _problem(path) if path.is_file() else ""
            if problem:
                raise UserError(f"{path}: {problem}")


def _problem(path: Path) -> str:
    """What is wrong with a file, or nothing; errors of syntax are left to Hydra, which reads only what is chosen."""
    try:
        if path.stat().st_size > FILE_BYTES:
            return f"larger than the {FILE_BYTES:,} bytes that a config may have"
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        return f"not UTF-8 text: {error.reason} at byte {error.start:,}"
    except OSError as error:
        return str(error.strerror or error)
    return too_much(text)


def too_much(text: str) -> str:
    """Says if a YAML text is too much to read: has too many values or too many levels. Else, nothing."""
    extents = [_extent(text, loader) for loader in LOADERS]
    if max(values for values, _ in extents) > MOST_VALUES:
        return f"holds more than {MOST_VALUES:,} values, aliases written out"
    return f"nested deeper than {MOST_LEVELS} levels" if max(levels for _, levels in extents) > MOST_LEVELS else ""


def _extent(text: str, loader: Any) -> tuple[int, int]:
    """How many values a YAML text stands for, every alias written out, and how deep they are nested.

    Of a text that the loader refuses, the values are those before it does, and the levels those of its characters.
    """
    sizes: dict[str, int] = {}  # of what an anchor names, once that has ended
    opened: list[tuple[str | None, int]] = [(None, 0)]
    levels = 0
    try:
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.CollectionStartEvent):
                opened.append((event.anchor, 1))
                levels = max(levels, len(opened) - 1)
                if levels > MOST_LEVELS:
                    break  # Hydra would recurse
                continue
            if isinstance(event, yaml.AliasEvent):
                anchor, size = None, sizes.get(str(event.anchor), MOST_VALUES + 1)  # within itself: without end
            elif isinstance(event, yaml.ScalarEvent):
                anchor, size = event.anchor, 1
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, size = opened.pop()
            else:
                continue
            if anchor is not None:
                sizes[anchor] = size
            opened[-1] = (opened[-1][0], opened[-1][1] + size)
    except Exception:  # each parser has its own ways to fail; what is said must not depend on them
        levels = max(levels, _levels_of_characters(text))
    return opened[0][1], levels


def _levels_of_characters(text: str) -> int:
    """How deep brackets, indentation and `- ` nest in a text that a parser refuses; quotes count as any character."""
    brackets = deepest = 0
    columns: list[int] = []  # where the open blocks begin
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
