"""The page of `microgpt report`: the results of a run, or of the runs of a sweep."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from microgpt_cli.insight.pages.page import Content, Html, asset, facts, html, page, table, tag

MAX_POINTS = 1000  # of a curve
OUTLIERS = 0.02  # fraction of a curve's values that may be outside of the y axis


@dataclass(frozen=True)
class Curve:
    """Points (x, y) or (x, y, label) in one colour."""

    name: str
    colour: str  # a variable of page.css: --c1
    points: Sequence[Sequence[Any]]
    faint: bool = False
    dots: bool = False
    scatter: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves with a common x axis."""

    id: str
    name: str
    curves: Sequence[Curve]
    x: str = "step"
    levels: Mapping[str, float] = field(default_factory=dict)  # dashed horizontal lines
    marks: Mapping[str, float] = field(default_factory=dict)  # dashed vertical lines
    log_x: bool = False
    from_zero: bool = False

    def box(self) -> Html:
        return tag("figure", id=self.id, class_="chart-box")

    def data(self) -> dict[str, Any]:
        """The input of report.js."""
        low, high = self._range()
        series = [
            asdict(curve) | {"colour": f"var({curve.colour})", "points": thinned(curve.points)} for curve in self.curves
        ]
        return {
            "name": self.name,
            "x": self.x,
            "log_x": self.log_x,
            "low": low,
            "high": high,
            "series": series,
            "levels": [{"name": name, "y": y} for name, y in self.levels.items()],
            "marks": [{"name": name, "x": x} for name, x in self.marks.items()],
        }

    def _range(self) -> tuple[float, float]:
        """The range of the values, without a few outliers that would compress all others."""
        values = sorted(point[1] for curve in self.curves for point in curve.points)
        low, high = values[0], values[-1]
        usual = values[int((1 - OUTLIERS) * (len(values) - 1))]
        if high - usual > 2 * (usual - low) > 0:
            high = usual
        low, high = min([low, *self.levels.values()]), max([high, *self.levels.values()])
        if self.from_zero:
            low = min(0.0, low)
        margin = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
        return (low if self.from_zero else low - margin), high + margin


def thinned(points: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """At most `MAX_POINTS` points, averaged over neighbours and rounded to five digits."""
    each = math.ceil(len(points) / MAX_POINTS) or 1
    groups = [points[i : i + each] for i in range(0, len(points), each)]
    return [
        [group[-1][0], float(f"{math.fsum(p[1] for p in group) / len(group):.5g}"), *group[-1][2:]] for group in groups
    ]


def bars(rows: Iterable[tuple[str, float, str]]) -> Html:
    """Horizontal bars: name, value and formatted value."""
    rows = list(rows)
    most = max((value for _, value, _ in rows), default=0.0) or 1.0
    cells = [
        [
            tag("span", name),
            tag("span", class_="bar", style=f"width:{100 * value / most:.2f}%"),
            tag("span", formatted, class_="n"),
        ]
        for name, value, formatted in rows
    ]
    return tag("div", cells_of(cells), class_="bars")


def cells_of(rows: Iterable[Iterable[Html]]) -> Html:
    return html([cell for row in rows for cell in row])


def commands(rows: Iterable[tuple[str, str]]) -> Html:
    """Purposes and commands; a click selects the whole command."""
    return tag("dl", [[tag("dt", what), tag("dd", tag("code", command))] for what, command in rows], class_="commands")


@dataclass(frozen=True)
class Verdict:
    """A sentence of the diagnosis, and a command that addresses it."""

    text: str
    command: str
    tone: str = ""  # good or bad


def run_page(
    title: str,
    subtitle: str,
    summary: Sequence[tuple[str, str]],
    verdicts: Sequence[Verdict],
    charts: Sequence[Chart],
    samples: Sequence[Mapping[str, Any]],
    changed: Sequence[Sequence[str]],
    settings: Sequence[Sequence[str]],
    parts: Sequence[tuple[str, float, str]],
    times: Sequence[tuple[str, float, str]],
    next_commands: Sequence[tuple[str, str]],
) -> str:
    """The report of one run, a complete HTML file.

    Args:
        title, subtitle: which run.
        summary: names and values at the top.
        verdicts: the diagnosis.
        charts: the loss first.
        samples: {"step", "text", "val_loss"} of each sample written during training.
        changed: rows (key, value, default, meaning) of the settings that differ from the defaults.
        settings: rows (key, value) of all settings.
        parts: parameters of each module.
        times: seconds of each kind of work.
        next_commands: purposes and commands.
    """
    body: list[Content] = [facts(summary), [_card(verdict) for verdict in verdicts]]
    if charts:
        body += [charts[0].box(), tag("div", [chart.box() for chart in charts[1:]], class_="columns")]
    if samples:
        body += _sample_player(samples)
    body += [tag("h2", "Settings that differ from the defaults")]
    body += [table(["key", "this run", "default"], _explained(changed)) if changed else tag("p", "None.")]
    body += [tag("details", tag("summary", "All settings"), table(["key", "value"], _coded(settings)))]
    halves = []
    if parts:
        halves.append(tag("div", tag("h2", "Parameters by module"), bars(parts)))
    if times:
        halves.append(tag("div", tag("h2", "Time by activity"), bars(times)))
    body += [tag("div", halves, class_="columns")] if halves else []
    body += [tag("h2", "Commands"), commands(next_commands)]
    data = {"charts": {chart.id: chart.data() for chart in charts}, "samples": list(samples)}
    return page(title, body, subtitle=subtitle, script=asset("report.js"), style=asset("report.css"), data=data)


def sweep_page(
    title: str,
    subtitle: str,
    summary: Sequence[tuple[str, str]],
    verdicts: Sequence[Verdict],
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Iterable[int],
    charts: Sequence[Chart],
    next_commands: Sequence[tuple[str, str]],
) -> str:
    """The report of several runs, a complete HTML file: table, curves, and the loss against each setting."""
    body: list[Content] = [facts(summary), [_card(verdict) for verdict in verdicts]]
    body += [tag("h2", "Runs, best first"), table(head, rows, numbers)]
    if charts:
        body += [charts[0].box(), tag("div", [chart.box() for chart in charts[1:]], class_="columns")]
    body += [tag("h2", "Commands"), commands(next_commands)]
    data = {"charts": {chart.id: chart.data() for chart in charts}}
    return page(title, body, subtitle=subtitle, script=asset("report.js"), style=asset("report.css"), data=data)


def _card(verdict: Verdict) -> Html:
    command = tag("p", tag("code", verdict.command)) if verdict.command else ""
    return tag("div", tag("p", verdict.text), command, class_=f"card verdict {verdict.tone}".strip())


def _coded(rows: Iterable[Sequence[str]]) -> list[list[Content]]:
    return [[tag("code", row[0]), *row[1:]] for row in rows]


def _explained(rows: Iterable[Sequence[str]]) -> list[list[Content]]:
    """Rows (key, …, meaning), with the meaning below the key, to fit a phone."""
    return [[[tag("code", key), tag("small", meaning)], *values] for key, *values, meaning in rows]


def _sample_player(samples: Sequence[Mapping[str, Any]]) -> list[Content]:
    """A slider through the samples; in print, a few of them."""
    last = len(samples) - 1
    label = {"aria_label": "sample"}
    player = tag(
        "div",
        tag("button", "▶", id="play", type="button", aria_label="play"),
        tag("output", "", id="frame-name"),
        tag("input", id="frame", type="range", min=0, max=last, step=1, value=last, **label),
        class_="player screen",
    )
    few = sorted({0, last // 3, 2 * last // 3})
    printed = [
        [tag("h3", f"step {samples[i]['step']:,}"), tag("pre", str(samples[i]["text"]), class_="sample")] for i in few
    ]
    return [
        tag("h2", "Samples during training"),
        player
        if last
        else tag(
            "p",
            tag("output", "", id="frame-name"),
            tag("input", id="frame", type="hidden", value=0),
            tag("button", id="play", hidden=True),
        ),
        tag("div", printed, tag("h3", f"step {samples[last]['step']:,}"), class_="paper") if last else "",
        tag("pre", "", id="sample", class_="sample"),
    ]
