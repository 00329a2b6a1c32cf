"""Colours for a terminal, shades where there are none: losses, heat-maps. Plain where nobody looks.

The 256 colours that every terminal of today has; https://no-color.org is honoured.
"""

import os
import sys
import unicodedata
from collections.abc import Sequence

RESET = "\x1b[0m"
HEAT = (234, 17, 18, 54, 90, 126, 162, 204, 209, 215, 222, 229)  # a share from 0 to 1, dark to bright
ALARM = (None, 230, 224, 223, 217, 216, 210, 203, 196)  # a loss, unmarked to red
SHADES = " ·░▒▓█"
WORST = 6.0  # nats from which on a loss is as red as can be


def wanted() -> bool:
    """Whether standard output is a terminal that may be coloured."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def alarm(text: str, loss: float | None, coloured: bool) -> str:
    """A token on a ground as red as its loss."""
    ground = None if loss is None else ALARM[min(int(loss / WORST * len(ALARM)), len(ALARM) - 1)]
    return text if ground is None or not coloured else f"\x1b[38;5;16;48;5;{ground}m{text}{RESET}"


def heat_row(shares: Sequence[float], coloured: bool) -> str:
    """One line, a column for each share from 0 to 1."""
    if not coloured:
        return "".join(SHADES[_level(share, len(SHADES))] for share in shares)
    return "".join(f"\x1b[48;5;{HEAT[_level(share, len(HEAT))]}m " for share in shares) + RESET


def heat_map(rows: Sequence[Sequence[float]], coloured: bool) -> list[str]:
    """Lines of a heat-map of shares; with colours two rows stand in one line."""
    if not coloured:
        return [heat_row(row, False) for row in rows]
    lines = []
    for upper, lower in zip(rows[::2], [*rows[1::2], [0.0] * len(rows[0])], strict=False):
        cells = [
            f"\x1b[38;5;{HEAT[_level(a, len(HEAT))]};48;5;{HEAT[_level(b, len(HEAT))]}m▀"
            for a, b in zip(upper, lower, strict=True)
        ]
        lines.append("".join(cells) + RESET)
    return lines


def _level(share: float, count: int) -> int:
    """Small shares are spread out, for most are small."""
    return min(int(max(share, 0.0) ** 0.5 * count), count - 1)


def columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def padded(text: str, width: int) -> str:
    """A text with spaces after it, `width` columns in all."""
    return text + " " * (width - columns(text))
