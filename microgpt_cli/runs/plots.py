"""PNG plots of runs, drawn from their logs. Matplotlib is optional and imported only when a plot is drawn."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microgpt_cli.runs import outputs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_TICKS = 8  # distinct values that are labelled individually on an axis
Points = Sequence[tuple[float, float]]


def missing() -> str:
    """Why nothing can be drawn, and what to do about it; nothing where matplotlib is installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        name = str(error.name).partition(".")[0]  # of matplotlib, or of what it needs
        return f"{name} is not installed (pip install {name})"
    except ImportError as error:
        return f"matplotlib can't be imported: {error}"
    return ""


def draw_loss(path: Path, metrics: Sequence[Mapping[str, Any]], baselines: Mapping[str, float]) -> None:
    """`loss.png`: training and validation loss against the step, with the baselines as horizontal lines.

    Args:
        path: where to write the PNG.
        metrics: the lines of `metrics.jsonl`.
        baselines: name → loss, nats per token.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120)
    # fixed margins, because automatic layout draws everything twice and every job of a sweep draws this plot
    axes = figure.add_axes((0.08, 0.1, 0.9, 0.83))
    for key, label, style in (
        ("loss", "train", {"alpha": 0.6}),
        ("val_loss", "validation", {"marker": "o", "markersize": 4}),
    ):
        points = [(line["step"], line[key]) for line in metrics if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    left = axes.get_xlim()[0]
    for name, value in baselines.items():
        axes.axhline(value, color="grey", linewidth=0.8, linestyle=":")
        axes.text(left, value, f" {name} {value:.3f}", va="bottom", fontsize=8, color="grey")
    axes.set(xlabel="step", ylabel="loss, nats per token")
    axes.set_title(_plain(path.parent.name), parse_math=False)  # a dollar sign is literal
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    axes.grid(alpha=0.2)
    _write(path, figure)


def draw_curves(path: Path, curves: Mapping[str, Points], title: str, grey: Sequence[Points] = ()) -> None:
    """The validation losses of several runs against the step.

    Args:
        path: where to write the PNG.
        curves: label → (step, val_loss), each in its own colour.
        title: of the plot.
        grey: more curves, in the background and without labels.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for points in grey:
        axes.plot(*zip(*points, strict=True), color="lightgrey", linewidth=0.8, zorder=1)
    for label, points in curves.items():
        [line] = axes.plot(*zip(*points, strict=True), marker="o", markersize=3, zorder=2)
        line.set_label(_plain(label))
    axes.set(xlabel="step", ylabel="val_loss, nats per token")
    axes.set_title(_plain(title), parse_math=False)
    if curves:
        for text in axes.legend(fontsize=8).get_texts():
            text.set_parse_math(False)
    axes.grid(alpha=0.2)
    _write(path, figure)


def draw_swept(path: Path, panels: Mapping[str, Sequence[tuple[Any, float]]], title: str) -> None:
    """The best validation loss of runs against each of several settings, one panel each.

    An axis is logarithmic if its values are spaced that way.

    Args:
        path: where to write the PNG.
        panels: setting → (its value, best val_loss) of each run. Values that are not all numbers are categories.
        title: of the plot.
    """
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns + 1, 3.2 * rows + 0.6), dpi=120, layout="constrained")
    figure.suptitle(_plain(title), parse_math=False)
    for number, (name, points) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, number)
        values = [value for value, _ in points]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            axes.set_xscale("log" if is_spread_logarithmically(values) else "linear")
            if len(set(values)) <= MAX_TICKS:
                axes.set_xticks(sorted(set(values)), [f"{value:g}" for value in sorted(set(values))])
                axes.minorticks_off()
        else:
            categories = list(dict.fromkeys(sorted(map(str, values))))
            axes.set_xticks(range(len(categories)), [_plain(name)[:24] for name in categories], parse_math=False)
            points = [(categories.index(str(value)), loss) for value, loss in points]
        axes.plot(*zip(*points, strict=True), linestyle="", marker="o", markersize=4, alpha=0.7)
        best: dict[float, float] = {}
        for value, loss in points:
            best[value] = min(loss, best.get(value, loss))
        axes.plot(*zip(*sorted(best.items()), strict=True), linewidth=1, alpha=0.6)
        axes.set_xlabel(_plain(name), parse_math=False)
        axes.set_ylabel("best val_loss")
        axes.grid(alpha=0.2)
    _write(path, figure)


def is_spread_logarithmically(values: Sequence[float]) -> bool:
    """Whether the ratios of neighbouring values are more even than their differences, so that a log axis fits."""
    found = sorted(set(values))
    if len(found) < 2 or found[0] <= 0:
        return False
    if len(found) == 2:
        return found[1] / found[0] >= 10
    return _unevenness([math.log(value) for value in found]) < _unevenness(found)


def _unevenness(rising: Sequence[float]) -> float:
    """Ratio of the largest to the smallest difference between neighbours."""
    steps = [b - a for a, b in itertools.pairwise(rising)]
    return max(steps) / max(min(steps), 1e-300)


def _plain(text: str) -> str:
    """Text without lone surrogates, which matplotlib can't draw."""
    return text.encode("utf-8", "replace").decode()


def draw_lr_find(path: Path, tried: Sequence[tuple[float, float, float]], suggested: float | None) -> None:
    """The loss of a learning-rate range test against the learning rate.

    Args:
        path: where to write the PNG.
        tried: (learning rate, loss, smoothed loss) of each step.
        suggested: the learning rate to mark.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    rates, losses, smoothed = zip(*tried, strict=True)
    axes.plot(rates, losses, alpha=0.3, label="batch loss")
    axes.plot(rates, smoothed, label="smoothed")
    if suggested is not None:
        axes.axvline(suggested, color="grey", linestyle=":", label=f"suggested: {suggested:g}")
    axes.set(xscale="log", xlabel="optim.learning_rate", ylabel="loss, nats per token")
    axes.set_ylim(min(smoothed) - 0.2, smoothed[0] * 1.15)
    axes.legend()
    axes.grid(alpha=0.2)
    _write(path, figure)


def draw_search(path: Path, trials: Sequence[Mapping[str, Any]], axes: Mapping[str, str]) -> None:
    """The best losses of a search's trials, in order and against each dimension of the search space.

    Args:
        path: where to write the PNG.
        trials: for each its `number`, `best` val_loss, whether it was `pruned`, and its `values`, key → number or text.
        axes: key → scale of its values: "log", "linear" or "text".
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * (1 + len(axes)), 4), dpi=120, layout="constrained")
    panels = figure.subplots(1, 1 + len(axes), sharey=True, squeeze=False)[0]
    pruned = [trial for trial in trials if trial["pruned"]]
    complete = [trial for trial in trials if not trial["pruned"]]

    def scatter(panel: Any, where: Callable[[Mapping[str, Any]], Any]) -> None:
        for some, label, marker, color in ((pruned, "pruned", "x", "grey"), (complete, "complete", "o", "C0")):
            losses = [trial["best"] for trial in some]
            panel.scatter([where(trial) for trial in some], losses, label=label, marker=marker, color=color)
        panel.grid(alpha=0.2)

    scatter(panels[0], lambda trial: trial["number"])
    lowest, steps = float("inf"), []
    for trial in complete:
        lowest = min(lowest, trial["best"])
        steps.append((trial["number"], lowest))
    if steps:
        panels[0].step(*zip(*steps, strict=True), where="post", label="best so far", linewidth=1)
    panels[0].set(xlabel="trial", ylabel="best val_loss, nats per token")
    panels[0].legend()
    for panel, (key, scale) in zip(panels[1:], axes.items(), strict=True):
        panel.set_xlabel(key)
        if scale != "text":
            scatter(panel, lambda trial, key=key: trial["values"][key])  # type: ignore[misc]
            panel.set_xscale(scale)
            continue
        texts = sorted({trial["values"][key] for trial in trials})
        scatter(panel, lambda trial, key=key, texts=texts: texts.index(trial["values"][key]))  # type: ignore[misc]
        panel.set_xticks(range(len(texts)), texts)
    _write(path, figure)


def _write(path: Path, figure: Figure) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    outputs.write(path, png.getvalue())
