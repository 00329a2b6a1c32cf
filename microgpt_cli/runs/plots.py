"""Pictures of a run, drawn from its log. Matplotlib is imported only when something is drawn."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microgpt_cli.runs import storage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_loss(path: Path, metrics: Sequence[Mapping[str, Any]], baselines: Mapping[str, float]) -> None:
    """`loss.png`: training and held-out loss against the step, with what counting alone reaches as lines.

    Args:
        path: where to write the PNG.
        metrics: the lines of `metrics.jsonl`.
        baselines: name → nats a token.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for key, label, style in (
        ("loss", "train", {"alpha": 0.6}),
        ("val_loss", "held out", {"marker": "o", "markersize": 4}),
    ):
        points = [(line["step"], line[key]) for line in metrics if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    left = axes.get_xlim()[0]
    for name, value in baselines.items():
        axes.axhline(value, color="grey", linewidth=0.8, linestyle=":")
        axes.text(left, value, f" {name} {value:.3f}", va="bottom", fontsize=8, color="grey")
    axes.set(xlabel="step", ylabel="loss, nats a token")
    axes.set_title(path.parent.name.encode("utf-8", "replace").decode(), parse_math=False)  # "$" is a dollar
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    axes.grid(alpha=0.2)
    _write(path, figure)


def draw_lr_find(path: Path, tried: Sequence[tuple[float, float, float]], suggested: float | None) -> None:
    """The loss of a learning-rate range test against the rate.

    Args:
        path: where to write the PNG.
        tried: (learning rate, loss, smoothed loss) of each step.
        suggested: the rate to mark.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    rates, losses, smoothed = zip(*tried, strict=True)
    axes.plot(rates, losses, alpha=0.3, label="loss of a batch")
    axes.plot(rates, smoothed, label="smoothed")
    if suggested is not None:
        axes.axvline(suggested, color="grey", linestyle=":", label=f"suggested: {suggested:g}")
    axes.set(xscale="log", xlabel="optim.learning_rate", ylabel="loss, nats a token")
    axes.set_ylim(min(smoothed) - 0.2, smoothed[0] * 1.15)
    axes.legend()
    axes.grid(alpha=0.2)
    _write(path, figure)


def draw_search(path: Path, trials: Sequence[Mapping[str, Any]], axes: Mapping[str, str]) -> None:
    """What a search found: the losses of its trials one after the other, and against each key searched over.

    Args:
        path: where to write the PNG.
        trials: of each its `number`, `best` val_loss, whether it was `pruned`, and its `values`, key → number or text.
        axes: the keys, each with the scale of its values: "log", "linear" or "text".
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * (1 + len(axes)), 4), dpi=120, layout="constrained")
    panels = figure.subplots(1, 1 + len(axes), sharey=True, squeeze=False)[0]
    pruned = [trial for trial in trials if trial["pruned"]]
    complete = [trial for trial in trials if not trial["pruned"]]

    def scatter(panel: Any, where: Callable[[Mapping[str, Any]], Any]) -> None:
        for some, label, marker, color in ((pruned, "pruned", "x", "grey"), (complete, "to the end", "o", "C0")):
            losses = [trial["best"] for trial in some]
            panel.scatter([where(trial) for trial in some], losses, label=label, marker=marker, color=color)
        panel.grid(alpha=0.2)

    scatter(panels[0], lambda trial: trial["number"])
    ahead, steps = float("inf"), []
    for trial in complete:
        ahead = min(ahead, trial["best"])
        steps.append((trial["number"], ahead))
    if steps:
        panels[0].step(*zip(*steps, strict=True), where="post", label="best so far", linewidth=1)
    panels[0].set(xlabel="trial", ylabel="best val_loss, nats a token")
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
    storage.replace(path, png.getvalue())
