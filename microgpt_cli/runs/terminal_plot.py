"""Curves drawn with characters: eight dots of Braille in each, or one letter of ASCII where Braille can't be shown."""

import itertools
from collections.abc import Sequence

Points = Sequence[tuple[float, float]]
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a Braille character: two columns of four
BLANK = "⠀"  # Braille without a dot, U+2800
COLOURS = (36, 33, 35, 32, 31, 34)  # of ANSI: cyan, yellow, magenta, green, red, blue
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def plot(curves: Sequence[Points], width: int, height: int, braille: bool = True, colour: bool = False) -> str:
    """Curves in one frame, with the ends of both axes; the first is A, the next is B, the letter stands at its end.

    Args:
        curves: (x, y) points of each, by rising x; one without points is left out.
        width, height: of the whole picture, characters.
        braille: whether the terminal's encoding has Braille.
        colour: whether the terminal understands colours.
    """
    points = [point for curve in curves for point in curve]
    if not points:
        return "(no points)"
    (left, right), (low, high) = _ends([x for x, _ in points]), _ends([y for _, y in points])
    labels = [f"{high:.4g}", f"{low:.4g}"]
    margin = max(map(len, labels)) + 2
    columns, rows = max(2, width - margin - 1), max(2, height - 2)
    across, down = (2, 4) if braille else (1, 1)
    cells: dict[tuple[int, int], tuple[int, int]] = {}  # (row, column) → (dots, the curve that drew last)
    ends = []
    for number, curve in enumerate(curves):
        spots = [
            (
                round((x - left) / (right - left) * (columns * across - 1)),
                round((high - y) / (high - low) * (rows * down - 1)),
            )
            for x, y in curve
        ]
        for x, y in _joined(spots):
            place = (y // down, x // across)
            cells[place] = (cells.get(place, (0, 0))[0] | DOTS[x % across][y % down], number)
        ends += [((spots[-1][1] // down, spots[-1][0] // across), number)] if spots else []
    marks = _letters(ends, columns)
    lines = []
    for row in range(rows):
        label = labels[0] if row == 0 else labels[1] if row == rows - 1 else ""
        shown = "".join(_cell(cells, marks, (row, column), braille, colour) for column in range(columns + 1))
        lines.append(f"{label:>{margin - 1}} {shown}".rstrip(f" {BLANK}"))
    first, last = f"{left:,.6g}", f"{right:,.6g}"
    lines.append(" " * margin + first + last.rjust(columns - len(first)))
    return "\n".join(lines)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """From where to where an axis goes; never nowhere."""
    low, high = min(values), max(values)
    room = max(1.0, abs(low)) / 2
    return (low, high) if high > low else (low - room, high + room)


def _joined(spots: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """All dots of the straight lines between some dots."""
    dots = list(spots[:1])
    for (x0, y0), (x1, y1) in itertools.pairwise(spots):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        dots += [(round(x0 + (x1 - x0) * i / steps), round(y0 + (y1 - y0) * i / steps)) for i in range(1, steps + 1)]
    return dots


def _letters(ends: Sequence[tuple[tuple[int, int], int]], columns: int) -> dict[tuple[int, int], int]:
    """Where each curve's letter stands: behind its end, or as near to it as there is room."""
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
    place: tuple[int, int],
    braille: bool,
    colour: bool,
) -> str:
    dots, number = cells.get(place, (0, 0))
    number = marks.get(place, number)
    letter = LETTERS[number % len(LETTERS)]
    if place in marks:
        char = letter
    elif not dots:
        return BLANK if braille else " "
    else:
        char = chr(ord(BLANK) + dots) if braille else letter.lower()
    return f"\x1b[{COLOURS[number % len(COLOURS)]}m{char}\x1b[0m" if colour else char


def has_braille(encoding: str | None) -> bool:
    """Whether text of this encoding can show Braille."""
    try:
        BLANK.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def side_by_side(texts: Sequence[str], heads: Sequence[str], width: int) -> str:
    """Texts in columns with a heading each, or one below the other where columns would be too narrow to read."""
    column = (width - 3 * (len(texts) - 1)) // max(1, len(texts))
    if column < 24:
        return "\n\n".join(f"── {head} ──\n{text}" for head, text in zip(heads, texts, strict=True))
    folded = [[head[:column], "─" * column, *_folded(text, column)] for head, text in zip(heads, texts, strict=True)]
    height = max(map(len, folded))
    return "\n".join(
        " │ ".join(f"{lines[i] if i < len(lines) else '':{column}}" for lines in folded).rstrip() for i in range(height)
    )


def _folded(text: str, width: int) -> list[str]:
    """Lines cut to a width, what is not printable shown as it would be written in a program."""
    lines = []
    for line in text.expandtabs(4).split("\n"):
        safe = "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
        lines += [safe[i : i + width] for i in range(0, len(safe), width)] or [""]
    return lines
