"""Line plots in a terminal: Braille characters of 2 × 4 dots, or ASCII letters where Braille is not available."""

import itertools
import math
from collections.abc import Sequence

from microgpt_cli.runs.escape import escape

Points = Sequence[tuple[float, float]]
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # bits of a Braille character: two columns of four dots
BLANK = "⠀"  # Braille without a dot, U+2800
COLOURS = (36, 33, 35, 32, 31, 34)  # ANSI codes: cyan, yellow, magenta, green, red, blue
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def plot(
    curves: Sequence[Points],
    width: int,
    height: int,
    braille: bool = True,
    colour: bool = False,
    log_x: bool = False,
) -> str:
    """Curves with labels at the ends of both axes, each marked at its last point: the first by A, the second by B.

    Args:
        curves: (x, y) points of each curve with increasing x; curves without points are skipped.
        width, height: of the whole plot, in characters.
        braille: whether the terminal's encoding has Braille.
        colour: whether the terminal supports colours.
        log_x: use a logarithmic x axis; every x must be positive.
    """
    points = [point for curve in curves for point in curve]
    if not points:
        return "(no points)"
    xs = [x for x, _ in points]
    labels_x = (min(xs), max(xs)) if log_x else _axis_range(xs)
    if log_x:
        curves = [[(math.log(x), y) for x, y in curve] for curve in curves]
        xs = [math.log(x) for x in xs]
    (left, right), (low, high) = _axis_range(xs), _axis_range([y for _, y in points])
    labels = [f"{high:.4g}", f"{low:.4g}"]
    margin = max(map(len, labels)) + 2
    columns, rows = max(2, width - margin - 1), max(2, height - 2)
    dots_x, dots_y = (2, 4) if braille else (1, 1)
    cells: dict[tuple[int, int], tuple[int, int]] = {}  # (row, column) → (dots, curve drawn last)
    ends = []
    for number, curve in enumerate(curves):
        dots = [
            (
                round((x - left) / (right - left) * (columns * dots_x - 1)),
                round((high - y) / (high - low) * (rows * dots_y - 1)),
            )
            for x, y in curve
        ]
        for x, y in _connected(dots):
            cell = (y // dots_y, x // dots_x)
            cells[cell] = (cells.get(cell, (0, 0))[0] | DOTS[x % dots_x][y % dots_y], number)
        ends += [((dots[-1][1] // dots_y, dots[-1][0] // dots_x), number)] if dots else []
    marks = _letters(ends, columns)
    lines = []
    for row in range(rows):
        label = labels[0] if row == 0 else labels[1] if row == rows - 1 else ""
        shown = "".join(_cell(cells, marks, (row, column), braille, colour) for column in range(columns + 1))
        lines.append(f"{label:>{margin - 1}} {shown}".rstrip(f" {BLANK}"))
    first, last = (f"{value:,.6g}" for value in labels_x)
    lines.append(" " * margin + first + last.rjust(columns - len(first)))
    return "\n".join(lines)


def _axis_range(values: Sequence[float]) -> tuple[float, float]:
    """The lower and upper end of an axis; never equal."""
    low, high = min(values), max(values)
    room = max(1.0, abs(low)) / 2
    return (low, high) if high > low else (low - room, high + room)


def _connected(dots: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The dots together with those on the straight lines between neighbours."""
    found = list(dots[:1])
    for (x0, y0), (x1, y1) in itertools.pairwise(dots):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        found += [(round(x0 + (x1 - x0) * i / steps), round(y0 + (y1 - y0) * i / steps)) for i in range(1, steps + 1)]
    return found


def _letters(ends: Sequence[tuple[tuple[int, int], int]], columns: int) -> dict[tuple[int, int], int]:
    """(row, column) of each curve's letter: after its last point, or in the nearest free cell of the row."""
    marks: dict[tuple[int, int], int] = {}
    for (row, column), number in ends:
        free = next(
            ((row, c) for c in (min(column + 1, columns), *range(column, -1, -1)) if (row, c) not in marks), None
        )
        if free is not None:
            marks[free] = number
    return marks


def _cell(
    cells: dict[tuple[int, int], tuple[int, int]],
    marks: dict[tuple[int, int], int],
    position: tuple[int, int],
    braille: bool,
    colour: bool,
) -> str:
    dots, number = cells.get(position, (0, 0))
    number = marks.get(position, number)
    letter = LETTERS[number % len(LETTERS)]
    if position in marks:
        char = letter
    elif not dots:
        return BLANK if braille else " "
    else:
        char = chr(ord(BLANK) + dots) if braille else letter.lower()
    return f"\x1b[{COLOURS[number % len(COLOURS)]}m{char}\x1b[0m" if colour else char


def has_braille(encoding: str | None) -> bool:
    """Whether an encoding contains the Braille characters."""
    try:
        BLANK.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def side_by_side(texts: Sequence[str], heads: Sequence[str], width: int) -> str:
    """Texts in columns with headings, or one below the other if the columns would be too narrow to read."""
    column = (width - 3 * (len(texts) - 1)) // max(1, len(texts))
    if column < 24:
        return "\n\n".join(f"── {head} ──\n{text}" for head, text in zip(heads, texts, strict=True))
    folded = [[head[:column], "─" * column, *_folded(text, column)] for head, text in zip(heads, texts, strict=True)]
    height = max(map(len, folded))
    return "\n".join(
        " │ ".join(f"{lines[i] if i < len(lines) else '':{column}}" for lines in folded).rstrip() for i in range(height)
    )


def _folded(text: str, width: int) -> list[str]:
    """Lines wrapped to a width, with non-printable characters escaped."""
    lines = []
    for line in text.expandtabs(4).split("\n"):
        safe = escape(line)
        lines += [safe[i : i + width] for i in range(0, len(safe), width)] or [""]
    return lines
