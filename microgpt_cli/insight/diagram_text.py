"""Render a diagram as text for a terminal of 80 columns, with the input at the bottom: row 0 is the lowest."""

from collections.abc import Sequence

from microgpt_cli.insight.diagram import Box, Diagram, Part, Repeat, Sum, boxes, format_count, format_shape

MIDDLE, HALF = 35, 22  # column of the main path, and half the width of a box
LEFT, RIGHT, LANE, TIE = 3, 67, 8, 71  # edges of a frame; columns of residual connections and of tied weights
PAIR = 32  # width of one of two boxes side by side


def text(what: Diagram) -> str:
    """The lines, from the probabilities at the top to the legend at the bottom."""
    sheet = _Sheet()
    for i, line in enumerate(reversed(what.legend)):
        sheet.put(LEFT, i, line)
    first, *others = what.parts
    paired = isinstance(first, Box) and others and isinstance(others[0], Sum) and others[0].side_boxes
    sheet.put((RIGHT - PAIR // 2 if paired else MIDDLE) - 4, len(what.legend) + 1, "token ids")
    row = sheet.level(what.parts, len(what.legend) + 2, format_shape(what.input), {})
    logits = format_shape(what.parts[-1].output)
    row = sheet.path(row, f"logits {logits}")
    softmax = Box(what.parts[-1].output, title="softmax")
    row = sheet.path(sheet.box(softmax, MIDDLE - HALF, MIDDLE + HALF, row, "┌╌┐╎└┘"), logits)
    sheet.put(MIDDLE, row, "▲")
    sheet.put(MIDDLE - 15, row + 1, "probabilities of the next token")
    for box in boxes(what.parts):
        if box.tied in sheet.edges:
            sheet.tie(sheet.edges[box.tied], sheet.edges[box.name])
    return sheet.page()


class _Sheet:
    """Characters at (column, row)."""

    def __init__(self) -> None:
        self.cells: dict[tuple[int, int], str] = {}
        self.edges: dict[str, tuple[int, int]] = {}  # name of a box → its right edge

    def put(self, column: int, row: int, words: str) -> None:
        self.cells |= {(column + i, row): char for i, char in enumerate(words)}

    def page(self) -> str:
        rows = range(max(row for _, row in self.cells), -1, -1)
        width = max(column for column, _ in self.cells) + 1
        return "\n".join("".join(self.cells.get((x, y), " ") for x in range(width)).rstrip() for y in rows)

    def level(self, parts: Sequence[Part], row: int, label: str, leaves: dict[int, int]) -> int:
        """Place parts from `row` upwards; returns the first row above them.

        Args:
            label: the shape of the input.
            leaves: part → row where a residual connection starts after it; -1 is the input.
        """
        leaves = {-1: row} | leaves
        todo = list(enumerate(parts))
        while todo:
            i, part = todo.pop(0)
            above = todo[0][1] if todo else None
            if isinstance(part, Box) and isinstance(above, Sum) and above.side_boxes:
                row = self.pair(part, above, row, label)
                i, part = todo.pop(0)
            elif isinstance(part, Sum):
                row = self.path(row, label)
                self.put(MIDDLE, row, "⊕")
                self.skips(part, leaves, row, MIDDLE - 1)
                row += 1
            elif isinstance(part, Repeat):
                row = self.frame(part, self.path(row, label), label)
            else:
                assert isinstance(part, Box)
                row = self.path(row, label)
                self.skips(part, leaves, row + 1, MIDDLE - HALF - 1)
                row = self.box(part, MIDDLE - HALF, MIDDLE + HALF, row)
            leaves[i], label = row, format_shape(part.output)
        return row

    def path(self, row: int, label: str) -> int:
        self.put(MIDDLE, row, f"│ {label}")
        return row + 1

    def skips(self, part: Part, leaves: dict[int, int], row: int, end: int) -> None:
        """The residual connections into a part."""
        for n, i in enumerate(part.skips):
            lane = LANE + 2 * n
            self.put(lane, leaves[i], "╰" + "─" * (MIDDLE - lane - 1) + "┤")
            for between in range(leaves[i] + 1, row):
                self.put(lane, between, "│")
            self.put(lane, row, "╭" + "─" * (end - lane - 1) + "►")

    def box(self, box: Box, left: int, right: int, row: int, style: str = "┌─┐│└┘") -> int:
        """A box whose bottom line is `row`; returns the row above it."""
        corner_left, line, corner_right, side, low_left, low_right = list(style)
        width, count = right - left - 3, "tied" if box.tied else format_count(box.parameters) if box.parameters else ""
        head = f"{box.title}  {box.name}".rstrip()
        lines = [f"{head:{width - len(count)}}{count}"]
        if len(head) + len(count) + 1 > width:
            lines = [f"{box.title:{width - len(count)}}{count}", box.name]
        lines += box.inside
        middle = (left + right) // 2
        for i, words in enumerate(reversed(lines), row + 1):
            self.put(left, i, f"{side} {words:{width}} {side}")
        top = row + len(lines) + 1
        self.put(left, row, low_left + line * (right - left - 1) + low_right)
        self.put(left, top, corner_left + line * (right - left - 1) + corner_right)
        self.put(middle, row, "▲")
        self.put(middle, top, "┴")
        if box.name:
            self.edges[box.name] = (right, (row + top) // 2)
        return top + 1

    def pair(self, box: Box, total: Sum, row: int, label: str) -> int:
        """Two embeddings side by side, and the ⊕ of their outputs."""
        centre = (2 * RIGHT - PAIR + 1) // 2
        self.put(centre, row, f"│ {label}")
        top = self.box(box, RIGHT - PAIR + 1, RIGHT, row + 1)
        for other in total.side_boxes:
            left = (2 * LEFT + PAIR - 1) // 2
            self.box(other, LEFT, LEFT + PAIR - 1, row + 1)
            self.put(left, row + 1, "─")
            self.put(left, top, f"│ {format_shape(other.output)}")
            self.put(left, top + 1, "│")
            self.put(left, top + 2, "╭" + "─" * (MIDDLE - left - 2) + "►⊕")
        words = format_shape(box.output)
        self.put(centre, top, "│")
        self.put(centre - len(words) - 1, top + 1, f"{words} │")
        self.put(MIDDLE + 1, top + 2, "◄" + "─" * (centre - MIDDLE - 2) + "╮")
        return top + 3

    def frame(self, part: Repeat, row: int, label: str) -> int:
        """Repeated modules in a frame, with their number."""
        end = self.level(part.parts, row + 1, label, {})
        self.put(MIDDLE, end, "│")
        for i in range(row + 1, end + 1):
            self.put(LEFT, i, "│")
            self.put(RIGHT, i, "│")
        each = f"{format_count(part.parameters)} each"
        self.put(LEFT + 2, end, f"{part.name} × {part.count}")
        self.put(RIGHT - 1 - len(each), end, each)
        for at, left, right in ((row, "└", "┘"), (end + 1, "┌", "┐")):
            self.put(LEFT, at, left + "─" * (RIGHT - LEFT - 1) + right)
            self.put(MIDDLE, at, "┼")
        return end + 2

    def tie(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        """A dotted line between two boxes with shared weights."""
        for (column, row), corner in ((start, "╯"), (end, "╮")):
            self.put(column + 1, row, "┄" * (TIE - column - 1) + corner)
        for row in range(start[1] + 1, end[1]):
            if (TIE, row) not in self.cells:
                self.put(TIE, row, "┆")
        self.put(TIE - 10, end[1] + 1, "same weights")
