"""The page of `microgpt report`: what a run, or the runs of a sweep, came to."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from microgpt_cli.insight.pages.page import Content, Html, asset, facts, html, page, table, tag

MOST_POINTS = 1000  # of a curve: more can't be told apart
OUTLIERS = 0.02  # of the values of a curve may lie beyond its frame


@dataclass(frozen=True)
class Curve:
    """Points (x, y) or (x, y, label) of one colour."""

    name: str
    colour: str  # a variable of page.css: --c1
    points: Sequence[Sequence[Any]]
    faint: bool = False
    dots: bool = False
    scatter: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves over one axis."""

    id: str
    name: str
    curves: Sequence[Curve]
    x: str = "step"
    levels: Mapping[str, float] = field(default_factory=dict)  # dashed lines across
    marks: Mapping[str, float] = field(default_factory=dict)  # and down
    log_x: bool = False
    from_zero: bool = False

    def box(self) -> Html:
        return tag("figure", id=self.id, class_="chart-box")

    def data(self) -> dict[str, Any]:
        """What report.js draws."""
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
        """From the lowest to the highest value, but for the few that would press all others flat."""
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
    """At most `MOST_POINTS` points: means of neighbours, rounded to what a person can read."""
    each = math.ceil(len(points) / MOST_POINTS) or 1
    groups = [points[i : i + each] for i in range(0, len(points), each)]
    return [
        [group[-1][0], float(f"{math.fsum(p[1] for p in group) / len(group):.5g}"), *group[-1][2:]] for group in groups
    ]


def bars(rows: Iterable[tuple[str, float, str]]) -> Html:
    """Horizontal bars: a name, a value, and how it is said."""
    rows = list(rows)
    most = max((value for _, value, _ in rows), default=0.0) or 1.0
    cells = [
        [
            tag("span", name),
            tag("span", class_="bar", style=f"width:{100 * value / most:.2f}%"),
            tag("span", said, class_="n"),
        ]
        for name, value, said in rows
    ]
    return tag("div", cells_of(cells), class_="bars")


def cells_of(rows: Iterable[Iterable[Html]]) -> Html:
    return html([cell for row in rows for cell in row])


def commands(rows: Iterable[tuple[str, str]]) -> Html:
    """What it is for, and what to type; a click selects all of it."""
    return tag("dl", [[tag("dt", what), tag("dd", tag("code", typed))] for what, typed in rows], class_="commands")


@dataclass(frozen=True)
class Verdict:
    """A sentence, and what to type to mend what it says."""

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
    typed: Sequence[tuple[str, str]],
) -> str:
    """The report of one run, a whole HTML file.

    Args:
        title, subtitle: which run.
        summary: names and values to show at the top.
        verdicts: what the numbers say.
        charts: the loss first.
        samples: {"step", "text", "val_loss"} of each text that the model wrote as it learnt.
        changed: rows (key, value, default, meaning) of the settings that are not the defaults.
        settings: rows (key, value) of all of them.
        parts: parameters of each part of the model.
        times: seconds that each kind of work took.
        typed: commands.
    """
    body: list[Content] = [facts(summary), [_card(verdict) for verdict in verdicts]]
    if charts:
        body += [charts[0].box(), tag("div", [chart.box() for chart in charts[1:]], class_="columns")]
    if samples:
        body += _film(samples)
    body += [tag("h2", "What differs from the defaults")]
    body += [table(["key", "this run", "default"], _explained(changed)) if changed else tag("p", "Nothing.")]
    body += [tag("details", tag("summary", "All settings"), table(["key", "value"], _coded(settings)))]
    halves = []
    if parts:
        halves.append(tag("div", tag("h2", "Where the parameters are"), bars(parts)))
    if times:
        halves.append(tag("div", tag("h2", "Where the time went"), bars(times)))
    body += [tag("div", halves, class_="columns")] if halves else []
    body += [tag("h2", "What to type"), commands(typed)]
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
    typed: Sequence[tuple[str, str]],
) -> str:
    """The report of several runs, a whole HTML file: their table, their curves, the loss against each setting."""
    body: list[Content] = [facts(summary), [_card(verdict) for verdict in verdicts]]
    body += [tag("h2", "The runs, the best first"), table(head, rows, numbers)]
    if charts:
        body += [charts[0].box(), tag("div", [chart.box() for chart in charts[1:]], class_="columns")]
    body += [tag("h2", "What to type"), commands(typed)]
    data = {"charts": {chart.id: chart.data() for chart in charts}}
    return page(title, body, subtitle=subtitle, script=asset("report.js"), style=asset("report.css"), data=data)


def _card(verdict: Verdict) -> Html:
    command = tag("p", tag("code", verdict.command)) if verdict.command else ""
    return tag("div", tag("p", verdict.text), command, class_=f"card verdict {verdict.tone}".strip())


def _coded(rows: Iterable[Sequence[str]]) -> list[list[Content]]:
    return [[tag("code", row[0]), *row[1:]] for row in rows]


def _explained(rows: Iterable[Sequence[str]]) -> list[list[Content]]:
    """Rows (key, …, meaning): the meaning goes under the key, for a phone is narrow."""
    return [[[tag("code", key), tag("small", meaning)], *values] for key, *values, meaning in rows]


def _film(samples: Sequence[Mapping[str, Any]]) -> list[Content]:
    """A slider through the samples; on paper, where nothing slides, a few of them."""
    last = len(samples) - 1
    label = {"aria_label": "which sample"}
    film = tag(
        "div",
        tag("button", "▶", id="play", type="button", aria_label="play"),
        tag("output", "", id="frame-name"),
        tag("input", id="frame", type="range", min=0, max=last, step=1, value=last, **label),
        class_="film screen",
    )
    few = sorted({0, last // 3, 2 * last // 3})
    paper = [
        [tag("h3", f"step {samples[i]['step']:,}"), tag("pre", str(samples[i]["text"]), class_="sample")] for i in few
    ]
    return [
        tag("h2", "What it wrote as it learnt"),
        film
        if last
        else tag(
            "p",
            tag("output", "", id="frame-name"),
            tag("input", id="frame", type="hidden", value=0),
            tag("button", id="play", hidden=True),
        ),
        tag("div", paper, tag("h3", f"step {samples[last]['step']:,}"), class_="paper") if last else "",
        tag("pre", "", id="sample", class_="sample"),
    ]
