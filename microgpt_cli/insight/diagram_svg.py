"""Lay out a diagram, and render it as SVG and PNG.

x increases to the right and y downwards, in pixels. The layout starts with the input at y = 0 and continues upwards to
negative y; the drawing is translated to its page at the end.
"""

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from microgpt_cli.insight.diagram import Box, Diagram, Part, Repeat, Sum, boxes, format_count, format_shape

WIDTH, MIDDLE, BOX_WIDTH, MARGIN = 620, 310, 316, 26
LEFT, RIGHT = 84, 536  # of the frame around repeated modules, and of two embeddings side by side
PAIR_WIDTH, LANE, TIE = 222, 114, 572  # width of an embedding; x of residual connections and of tied weights
GAP, LINE, RADIUS, CORNER, HEAD = 40, 18, 11, 10, 8
SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"
PIXELS_PER_INCH, PNG_SCALE = 100, 2
FONT_SCALE = {"sans": 0.9, "mono": 0.92}  # matplotlib's default fonts are wider than those of browsers

# role → (fill, outline) in the light and in the dark theme
FILLS = {
    "frame": (("#f6f8fa", "#d1d9e0"), ("#161b22", "#3d444d")),
    "embedding": (("#ffe3ec", "#e8799b"), ("#42202d", "#e8799b")),
    "norm": (("#fff4c2", "#d9ae1e"), ("#3a3212", "#d1a92a")),
    "attention": (("#ffe4c7", "#ee8f2f"), ("#452a10", "#ee9a46")),
    "mlp": (("#d8ecff", "#4593d8"), ("#12304d", "#58a6ff")),
    "head": (("#e9e2ff", "#8a6fdf"), ("#2b2350", "#9d86ef")),
    "softmax": (("#dcf5e3", "#3fa463"), ("#143521", "#4cb871")),
    "other": (("#eceff2", "#8c959f"), ("#262c36", "#8c959f")),
}
INKS = {
    "page": ("#ffffff", "#0d1117"),
    "text": ("#1f2328", "#e6edf3"),
    "quiet": ("#59636e", "#9ba5b0"),
    "line": ("#424a53", "#adb5bd"),
}


@dataclass(frozen=True)
class Rect:
    """A rectangle with round corners."""

    x: float
    y: float
    width: float
    height: float
    role: str
    radius: float = 8
    dashed: bool = False


@dataclass(frozen=True)
class Text:
    """One line of text; `y` is the baseline."""

    x: float
    y: float
    words: str
    size: float = 13
    anchor: str = "start"  # start, middle, end
    bold: bool = False
    mono: bool = False
    ink: str = "text"


@dataclass(frozen=True)
class Line:
    """A polyline with round corners."""

    points: tuple[tuple[float, float], ...]
    arrow: bool = True
    dashed: bool = False


@dataclass(frozen=True)
class Plus:
    """⊕."""

    x: float
    y: float


Shape = Rect | Text | Line | Plus
Point = tuple[float, float]


@dataclass(frozen=True)
class Drawing:
    """Shapes on a page of `WIDTH` × `height` pixels."""

    shapes: list[Shape]
    height: float


def draw(what: Diagram) -> Drawing:
    """Lay out a diagram, from the input at the bottom to the probabilities at the top."""
    layout = _Layout()
    top = layout.whole(what)
    return Drawing([_moved(each, MARGIN - top) for each in layout.shapes], layout.bottom - top + 2 * MARGIN)


class _Layout:
    """Places shapes from bottom to top."""

    def __init__(self) -> None:
        self.shapes: list[Shape] = []
        self.edges: dict[str, Point] = {}  # name of a box → the middle of its right edge
        self.bottom = 0.0

    def whole(self, what: Diagram) -> float:
        """The whole diagram; returns the y of its top."""
        first, *others = what.parts
        paired = isinstance(first, Box) and others and isinstance(others[0], Sum) and others[0].side_boxes
        x = RIGHT - PAIR_WIDTH / 2 if paired else MIDDLE
        self.shapes += [Text(x, 18, "token ids", 13, "middle", bold=True)]
        y = self.level(what.parts, 0, format_shape(what.input), {-1: -10})
        y = self.arrow(y, f"logits {format_shape(what.parts[-1].output)}")
        self.shapes += [Rect(MIDDLE - BOX_WIDTH / 2, y - 34, BOX_WIDTH, 34, "softmax", dashed=True)]
        self.shapes += [Text(MIDDLE, y - 12.5, "softmax", 14, "middle", bold=True)]
        y = self.arrow(y - 34, format_shape(what.parts[-1].output))
        self.shapes += [Text(MIDDLE, y - 8, "probabilities of the next token", 13, "middle", bold=True)]
        for box in boxes(what.parts):
            if box.tied in self.edges:
                self.tie(self.edges[box.tied], self.edges[box.name])
        for i, line in enumerate(what.legend):
            self.shapes += [Text(MIDDLE, 52 + LINE * i, line, 12, "middle", ink="quiet")]
            self.bottom = 52 + LINE * i
        return y - 20

    def level(
        self, parts: Sequence[Part], y: float, label: str, leaves: dict[int, float], first_gap: float = GAP
    ) -> float:
        """Place parts from (MIDDLE, y) upwards; returns the y of the top.

        Args:
            label: the shape of the input.
            leaves: part → y where a residual connection starts after it; -1 is the input.
            first_gap: length of the first arrow.
        """
        todo = list(enumerate(parts))
        while todo:
            i, part = todo.pop(0)
            gap = first_gap if i == 0 else GAP
            above = todo[0][1] if todo else None
            if isinstance(part, Box) and isinstance(above, Sum) and above.side_boxes:
                y = self.pair(part, above, y, label)
                i, part = todo.pop(0)
            elif isinstance(part, Sum):
                y = self.arrow(y, label, gap) - 2 * RADIUS
                self.shapes += [Plus(MIDDLE, y + RADIUS)]
                self.skips(part, leaves, (MIDDLE - RADIUS, y + RADIUS))
                self.side_boxes(part, y + RADIUS)
            elif isinstance(part, Repeat):
                y = self.frame(part, y, label)
            else:
                assert isinstance(part, Box)
                y = self.arrow(y, label, gap) - _height(part)
                self.box(part, MIDDLE - BOX_WIDTH / 2, y, BOX_WIDTH)
                self.skips(part, leaves, (MIDDLE - BOX_WIDTH / 2, y + _height(part) / 2))
            leaves[i], label = y - 10, format_shape(part.output)
        return y

    def arrow(self, y: float, label: str, gap: float = GAP) -> float:
        """An upward arrow labelled with the shape of its tensor."""
        self.shapes += [Line(((MIDDLE, y - 2), (MIDDLE, y - gap + 2)))]
        self.shapes += [Text(MIDDLE + 13, y - gap / 2 + 4, label, 11.5, mono=True, ink="quiet")]
        return y - gap

    def skips(self, part: Part, leaves: dict[int, float], to: Point) -> None:
        """The residual connections into a part."""
        for n, i in enumerate(part.skips):
            lane = LANE + 14 * n
            self.shapes += [Line(((MIDDLE, leaves[i]), (lane, leaves[i]), (lane, to[1]), (to[0] - 2, to[1])))]

    def side_boxes(self, part: Sum, y: float) -> None:
        """Boxes without inputs, to the left of the ⊕ that adds them."""
        for box in part.side_boxes:
            height = _height(box)
            self.box(box, MIDDLE - RADIUS - 30 - PAIR_WIDTH, y - height / 2, PAIR_WIDTH)
            self.shapes += [Line(((MIDDLE - RADIUS - 28, y), (MIDDLE - RADIUS - 2, y)))]

    def pair(self, box: Box, total: Sum, y: float, label: str) -> float:
        """Two embeddings side by side, and the ⊕ of their outputs."""
        right, left = RIGHT - PAIR_WIDTH / 2, LEFT + PAIR_WIDTH / 2
        self.shapes += [Line(((right, y - 2), (right, y - GAP + 2)))]
        self.shapes += [Text(right + 13, y - GAP / 2 + 4, label, 11.5, mono=True, ink="quiet")]
        y -= GAP + _height(box)
        self.box(box, RIGHT - PAIR_WIDTH, y, PAIR_WIDTH)
        middle = y - GAP - 4
        for other in total.side_boxes:
            self.box(other, LEFT, y, PAIR_WIDTH)
            self.shapes += [Line(((left, y - 2), (left, middle), (MIDDLE - RADIUS - 2, middle)))]
            self.shapes += [Text(left - 12, y - 14, format_shape(other.output), 11.5, "end", mono=True, ink="quiet")]
        self.shapes += [Line(((right, y - 2), (right, middle), (MIDDLE + RADIUS + 2, middle)))]
        self.shapes += [Text(right - 12, y - 14, format_shape(box.output), 11.5, "end", mono=True, ink="quiet")]
        self.shapes += [Plus(MIDDLE, middle)]
        return middle - RADIUS

    def frame(self, part: Repeat, y: float, label: str) -> float:
        """Repeated modules in a frame, with their number."""
        bottom, at = y - 18, len(self.shapes)
        self.shapes += [Line(((MIDDLE, y - 2), (MIDDLE, bottom - 3)), arrow=False)]
        end = self.level(part.parts, bottom, label, {-1: bottom - 14}, GAP + 14)
        top = end - 34
        self.shapes += [Line(((MIDDLE, end - 2), (MIDDLE, top - 3)), arrow=False)]
        self.shapes.insert(at, Rect(LEFT, top, RIGHT - LEFT, bottom - top, "frame", 14))
        self.shapes += [Text(LEFT + 16, top + 23, part.name, 13, bold=True)]
        self.shapes += [Text(RIGHT - 16, top + 23, f"{format_count(part.parameters)} each", 12, "end", ink="quiet")]
        self.shapes += [Text(LEFT - 12, (top + bottom) / 2 + 8, f"{part.count} ×", 21, "end", bold=True)]
        return top

    def box(self, box: Box, x: float, y: float, width: float) -> None:
        """A box with its name, parameters and operations."""
        height = _height(box)
        size = 13 if width == PAIR_WIDTH else 14
        self.shapes += [Rect(x, y, width, height, box.role), Text(x + 14, y + 21, box.title, size, bold=True)]
        count = "tied" if box.tied else format_count(box.parameters) if box.parameters else ""
        self.shapes += [Text(x + width - 14, y + 21, count, 12, "end", ink="quiet")]
        if box.role == "norm":
            self.shapes += [Text(x + width / 2, y + 21, box.name, 12, "middle", mono=True, ink="quiet")]
        else:
            self.shapes += [Text(x + 14, y + 21 + LINE, box.name, 12, mono=True, ink="quiet")]
        for i, line in enumerate(box.inside, 2):
            self.shapes += [Text(x + 14, y + 22 + LINE * i, line, 12.5)]
        self.edges[box.name] = (x + width, y + height / 2)

    def tie(self, start: Point, end: Point) -> None:
        """A dashed line between two boxes with shared weights."""
        self.shapes += [Line((start, (TIE, start[1]), (TIE, end[1]), end), arrow=False, dashed=True)]
        self.shapes += [Text(TIE, end[1] - 10, "same weights", 11.5, "middle", ink="quiet")]


def _height(box: Box) -> float:
    return 32 if box.role == "norm" else 32 + LINE * (1 + len(box.inside)) + (4 if box.inside else 0)


def _moved(each: Shape, y: float) -> Shape:
    if isinstance(each, Line):
        return replace(each, points=tuple((px, py + y) for px, py in each.points))
    return replace(each, y=each.y + y)


Command = tuple[str, tuple[Point, ...]]


def _commands(points: Sequence[Point]) -> Iterator[Command]:
    """A polyline with round corners, as the SVG path commands M, L and Q."""
    yield "M", (points[0],)
    for before, here, after in zip(points, points[1:], points[2:], strict=False):
        yield "L", (_towards(here, before),)
        yield "Q", (here, _towards(here, after))
    yield "L", (points[-1],)


def _towards(here: Point, there: Point) -> Point:
    length = math.dist(here, there)
    part = min(CORNER, length / 2) / length if length else 0.0
    return here[0] + part * (there[0] - here[0]), here[1] + part * (there[1] - here[1])


def _head(line: Line) -> tuple[Line, tuple[Point, ...]]:
    """The line shortened by its arrow head, and the head as a triangle."""
    (x0, y0), (x, y) = line.points[-2:]
    length = math.dist((x0, y0), (x, y)) or 1.0
    dx, dy = (x - x0) / length * HEAD, (y - y0) / length * HEAD
    foot = (x - dx, y - dy)
    sides = ((x - dx - dy * 0.45, y - dy + dx * 0.45), (x - dx + dy * 0.45, y - dy - dx * 0.45))
    return replace(line, points=(*line.points[:-1], foot)), ((x, y), *sides)


def svg(drawing: Drawing, theme: str) -> str:
    """The drawing as an SVG file.

    Args:
        theme: light, dark, or auto, which follows the reader's system.
    """
    height = round(drawing.height)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            f'font-family="{SANS}">',
            f"<style>{_style(theme)}</style>",
            '<rect width="100%" height="100%" class="page"/>',
            *(_svg_shape(each) for each in drawing.shapes),
            "</svg>\n",
        ]
    )


def _style(theme: str) -> str:
    """CSS classes for the colours, in two sets for the theme `auto`."""

    def colours(dark: int) -> str:
        boxes = [f".{role}{{fill:{pair[dark][0]};stroke:{pair[dark][1]}}}" for role, pair in FILLS.items()]
        inks = [f".{name}{{fill:{ink[dark]}}}" for name, ink in INKS.items()]
        line = INKS["line"][dark]
        return "".join([*boxes, *inks, f".way{{stroke:{line}}}.plus{{fill:{INKS['page'][dark]};stroke:{line}}}"])

    mono = f".mono{{font-family:{MONO}}}"
    if theme == "auto":
        return f"{mono}{colours(0)}@media (prefers-color-scheme:dark){{{colours(1)}}}"
    return mono + colours(theme == "dark")


def _svg_shape(each: Shape) -> str:
    dashes = ' stroke-dasharray="5 4"' if isinstance(each, Rect | Line) and each.dashed else ""
    if isinstance(each, Rect):
        return (
            f'<rect x="{each.x:g}" y="{each.y:g}" width="{each.width:g}" height="{each.height:g}" rx="{each.radius:g}" '
            f'class="{each.role}" stroke-width="1.4"{dashes}/>'
        )
    if isinstance(each, Text):
        weight = ' font-weight="600"' if each.bold else ""
        names = f"{each.ink} mono" if each.mono else each.ink
        where = f'x="{each.x:g}" y="{each.y:g}" font-size="{each.size:g}" text-anchor="{each.anchor}"'
        return f'<text {where}{weight} class="{names}">{escape(each.words)}</text>'
    if isinstance(each, Plus):
        r = RADIUS - 4.5
        cross = f"M{each.x - r:g} {each.y:g}h{2 * r:g}M{each.x:g} {each.y - r:g}v{2 * r:g}"
        circle = f'<circle cx="{each.x:g}" cy="{each.y:g}" r="{RADIUS}" class="plus" stroke-width="1.4"/>'
        return f'{circle}<path d="{cross}" class="way" stroke-width="1.4"/>'
    line, head = _head(each) if each.arrow else (each, ())
    path = "".join(name + " ".join(f"{x:g} {y:g}" for x, y in at) for name, at in _commands(line.points))
    drawn = f'<path d="{path}" fill="none" class="way" stroke-width="1.4"{dashes}/>'
    corners = " ".join(f"{x:g},{y:g}" for x, y in head)
    return drawn + (f'<polygon points="{corners}" class="line"/>' if head else "")


def png(drawing: Drawing, theme: str) -> bytes:
    """The drawing as a PNG file, light unless `theme` is dark."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dark = int(theme == "dark")
    size = (WIDTH / PIXELS_PER_INCH, round(drawing.height) / PIXELS_PER_INCH)
    figure = Figure(figsize=size, dpi=PIXELS_PER_INCH * PNG_SCALE, facecolor=INKS["page"][dark])
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(round(drawing.height), 0))
    axes.set_axis_off()
    for order, each in enumerate(drawing.shapes):
        _png_shape(axes, each, dark, order)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)
    return out.getvalue()


def _png_shape(axes: Any, each: Shape, dark: int, order: int) -> None:
    from matplotlib import patches
    from matplotlib.path import Path

    points = 72 / PIXELS_PER_INCH  # points per pixel
    ink = INKS["line"][dark]
    stroke: dict[str, Any] = {"linewidth": 1.4 * points, "zorder": order}
    if isinstance(each, Rect | Line) and each.dashed:
        stroke["linestyle"] = (0, (4, 3))
    if isinstance(each, Rect):
        fill, edge = FILLS[each.role][dark]
        corners = f"round,pad=0,rounding_size={each.radius}"
        box = patches.FancyBboxPatch((each.x, each.y), each.width, each.height, corners, fc=fill, ec=edge, **stroke)
        axes.add_patch(box)
    elif isinstance(each, Text):
        family = "mono" if each.mono else "sans"
        axes.text(
            each.x,
            each.y,
            each.words,
            fontsize=each.size * points * FONT_SCALE[family],
            family="monospace" if each.mono else "sans-serif",
            weight="bold" if each.bold else "normal",
            ha={"start": "left", "middle": "center", "end": "right"}[each.anchor],
            va="baseline",
            color=INKS[each.ink][dark],
            zorder=order,
            parse_math=False,
        )
    elif isinstance(each, Plus):
        r = RADIUS - 4.5
        axes.add_patch(patches.Circle((each.x, each.y), RADIUS, fc=INKS["page"][dark], ec=ink, **stroke))
        axes.plot([each.x - r, each.x + r], [each.y, each.y], color=ink, **stroke)
        axes.plot([each.x, each.x], [each.y - r, each.y + r], color=ink, **stroke)
    else:
        line, head = _head(each) if each.arrow else (each, ())
        codes = {"M": [Path.MOVETO], "L": [Path.LINETO], "Q": [Path.CURVE3, Path.CURVE3]}
        steps = list(_commands(line.points))
        path = Path([point for _, at in steps for point in at], [code for name, _ in steps for code in codes[name]])
        axes.add_patch(patches.PathPatch(path, fc="none", ec=ink, **stroke))
        if head:
            axes.add_patch(patches.Polygon(head, fc=ink, ec="none", zorder=order))
