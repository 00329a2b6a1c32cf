"""`microgpt runs`: the table of runs, best first, and plots of their losses."""

import os
import shlex
import sys
from pathlib import Path

from microgpt_cli.commands import Invocation
from microgpt_cli.config import RunsConfig
from microgpt_cli.errors import UserError
from microgpt_cli.runs import layout, plots, reading, storage, table
from microgpt_cli.runs.filters import matching

CURVES_PLOT, SWEPT_PLOT = "runs.png", "swept.png"
UNLIMITED = 1 << 20  # columns, if standard output is not a terminal
MAX_COLOURED, MAX_PANELS = 10, 12


def run(config: RunsConfig, invocation: Invocation) -> None:
    """Print the table, and draw the plots if requested."""
    if "paths" not in invocation.typed and not layout.OUTPUTS.is_dir():
        raise UserError(f"no run in {layout.OUTPUTS}/ yet; start one: microgpt train")
    every = reading.read_runs(config.paths)
    if not every:
        raise UserError(f"no run in {', '.join(config.paths)}; start one: microgpt train")
    runs = matching(every, config.filter) if config.filter is not None else every
    runs = table.sort_runs(runs, config.sort)
    if not runs:
        print(f"none of the {len(every):,} runs matches filter={config.filter}", file=sys.stderr)
    drawn = _draw(runs, config.out) if config.plot and runs else {}
    if runs or config.format != "table":
        print(table.render(runs, config.format, None if sys.stdout.isatty() else UNLIMITED))
    for name, path in drawn.items():
        print(f"{name:9} {path}", file=sys.stderr if config.format in ("csv", "json") else sys.stdout)
    best = [run for run in table.sort_runs(runs) if run.best_val_loss is not None][:2]
    if config.format == "table" and len(best) == 2 and sys.stdout.isatty():
        print(f"\nnext      microgpt compare {' '.join(shlex.quote(str(run.path)) for run in best)}")


def _draw(runs: list[reading.Run], out: str | None) -> dict[str, Path]:
    """Plot the validation loss against the step and against each setting that differs; returns name → path."""
    folder = plot_folder(runs, out)
    missing = plots.missing()
    if missing:
        raise UserError(f"plot=true: {missing}")
    names, where = table.shown_keys(runs), table.common_folder(runs)
    curves: dict[str, plots.Points] = {}
    grey: list[plots.Points] = []
    for run in table.sort_runs(runs):
        points = reading.val_curve(run)
        if points and len(curves) < MAX_COLOURED:
            curves[label(run, names, where)] = points
        elif points:
            grey.append(points)
    drawn = {}
    title = f"{len(runs):,} runs" + (f", the best {len(curves)} in colour" if grey else "")
    scored = [(run, run.best_val_loss) for run in runs if run.best_val_loss is not None]
    swept = [name for name in table.shown_keys([run for run, _ in scored]) if name not in table.NO_EFFECT]
    panels = {
        name: [(table.value_of(run, name), loss) for run, loss in scored if name in run.settings or name in run.swept]
        for name in swept[:MAX_PANELS]
    }
    try:
        plots.draw_curves(folder / CURVES_PLOT, curves, title, grey)
        drawn["curves"] = folder / CURVES_PLOT
        if panels:
            plots.draw_swept(folder / SWEPT_PLOT, panels, f"best val_loss of {len(scored):,} runs")
            drawn["swept"] = folder / SWEPT_PLOT
    except OSError as error:
        raise UserError(f"{storage.explain(error)}, or choose another folder with out=") from error
    return drawn


def plot_folder(runs: list[reading.Run], out: str | None) -> Path:
    """The folder for plots: the requested one, or the one that contains the runs."""
    if out is None:
        return table.common_folder(runs)
    folder = Path(os.path.expanduser(out))
    if not os.path.isdir(folder):
        raise UserError(f"out={out}: no such folder")
    return folder


def label(run: reading.Run, names: list[str], where: Path | None = None) -> str:
    """The label of a run in a legend: its path relative to `where`, or its name, and the settings that differ."""
    path = os.path.relpath(run.path, where) if where else run.path.name
    settings = [
        f"{short}={table.format_setting(run, name)}"
        for name, short in zip(names, table.short_names(names), strict=True)
    ]
    return "  ".join([table.printable(path), *settings[:4]])
