"""Static SVG line charts in the colours of the page."""

import math
from collections.abc import Mapping, Sequence

from microgpt_cli.insight.pages.page import Html, tag

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 30, 48
COLOURS = 5  # --c1 to --c5 of page.css

Points = Sequence[tuple[float, float]]


def line_chart(
    series: Mapping[str, Points], x_label: str, y_label: str, levels: Mapping[str, float] | None = None
) -> Html:
    """A line chart, with `levels` as dotted horizontal lines.

    Args:
        series: name → points (x, y) with increasing x; non-finite points are skipped.
        levels: name → y.
    """
    lines = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    xs = [x for points in lines.values() for x, _ in points] or [0.0]
    ys = [y for points in lines.values() for _, y in points] + list((levels or {}).values()) or [0.0]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_low, x_high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    y_low, y_high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)
    if y_high == y_low:
        y_high += 1

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return round(LEFT + across * (WIDTH - LEFT - RIGHT), 1), round(
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1
        )

    parts = []
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
        parts.append(tag("text", f"{tick:g}", x=LEFT - 6, y=y + 4, text_anchor="end"))
    for tick in x_ticks:
        if x_low <= tick <= x_high:
            x, _ = place(tick, y_low)
            parts.append(tag("text", f"{tick:,g}", x=x, y=HEIGHT - BOTTOM + 18, text_anchor="middle"))
    for name, level in (levels or {}).items():
        _, y = place(x_low, level)
        parts.append(tag("line", class_="level", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
        parts.append(tag("text", f"{name} {level:.3f}", x=WIDTH - RIGHT, y=y - 4, text_anchor="end"))
    for number, (name, points) in enumerate(lines.items()):
        colour = f"var(--c{number % COLOURS + 1})"
        path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in points))
        parts.append(tag("polyline", points=path, style=f"stroke:{colour}"))
        if len(points) == 1:
            x, y = place(*points[0])
            parts.append(tag("circle", cx=x, cy=y, r=3, style=f"fill:{colour}"))
        if len(lines) > 1:
            x = LEFT + 130 * number
            parts.append(tag("line", x1=x, x2=x + 18, y1=12, y2=12, style=f"stroke:{colour};stroke-width:3"))
            parts.append(tag("text", name, x=x + 24, y=16))
    parts.append(tag("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 5, text_anchor="middle"))
    parts.append(
        tag(
            "text",
            y_label,
            x=WIDTH - RIGHT if len(lines) > 1 else LEFT,
            y=14,
            text_anchor="end" if len(lines) > 1 else "start",
        )
    )
    label = f"{', '.join(lines)}: {y_label} against {x_label}"
    return tag("svg", parts, class_="chart", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label)


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """About `about` round numbers from `low` to `high`."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    step = 10.0 ** math.floor(math.log10(span / about))
    step = next(step * factor for factor in (1, 2, 5, 10) if span / (step * factor) <= about)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]
