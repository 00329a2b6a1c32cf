"""Losses and heat maps on a terminal, in 256 colours, or in shades of characters without colours.

https://no-color.org is honoured.
"""

import os
import sys
import unicodedata
from collections.abc import Sequence

RESET = "\x1b[0m"
HEAT = (234, 17, 18, 54, 90, 126, 162, 204, 209, 215, 222, 229)  # values from 0 to 1, dark to bright
LOSS_COLOURS = (None, 230, 224, 223, 217, 216, 210, 203, 196)  # a loss, unmarked to red
SHADES = " ·░▒▓█"
MAX_LOSS = 6.0  # nats; higher losses have the same colour


def has_colours() -> bool:
    """Whether standard output is a terminal with colours."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def shade_loss(text: str, loss: float | None, coloured: bool) -> str:
    """A token with a background that shows its loss."""
    background = (
        None if loss is None else LOSS_COLOURS[min(int(loss / MAX_LOSS * len(LOSS_COLOURS)), len(LOSS_COLOURS) - 1)]
    )
    return text if background is None or not coloured else f"\x1b[38;5;16;48;5;{background}m{text}{RESET}"


def heat_row(shares: Sequence[float], coloured: bool) -> str:
    """One line with a column for each value from 0 to 1."""
    if not coloured:
        return "".join(SHADES[_level(share, len(SHADES))] for share in shares)
    return "".join(f"\x1b[48;5;{HEAT[_level(share, len(HEAT))]}m " for share in shares) + RESET


def heat_map(rows: Sequence[Sequence[float]], coloured: bool) -> list[str]:
    """Lines of a heat map of values from 0 to 1; with colours, two rows share a line."""
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
    """The level of a value on a square root scale, because most values are small."""
    return min(int(max(share, 0.0) ** 0.5 * count), count - 1)


def columns(text: str) -> int:
    """The width of a text in columns of a terminal."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def padded(text: str, width: int) -> str:
    """A text padded with spaces to `width` columns."""
    return text + " " * (width - columns(text))
