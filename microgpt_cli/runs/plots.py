"""Pictures of a run, drawn from its log. Matplotlib is imported only when something is drawn."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from microgpt_cli.runs import storage


def draw_loss(path: Path, metrics: Sequence[Mapping[str, Any]], baselines: Mapping[str, float]) -> None:
    """`loss.png`: training and held-out loss against the step, with what counting alone reaches as lines.

    Args:
        path: where to write the PNG.
        metrics: the lines of `metrics.jsonl`.
        baselines: name → nats a token.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
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
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    storage.replace(path, png.getvalue())


def draw_lr_find(path: Path, tried: Sequence[tuple[float, float, float]], suggested: float | None) -> None:
    """The loss of a learning-rate range test against the rate.

    Args:
        path: where to write the PNG.
        tried: (learning rate, loss, smoothed loss) of each step.
        suggested: the rate to mark.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
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
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    storage.replace(path, png.getvalue())
