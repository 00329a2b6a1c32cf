"""What a search says at its end: how many trials, which keys mattered, and where the plot is."""

from collections.abc import Callable
from pathlib import Path

from microgpt_cli.runs import plots, storage
from microgpt_cli.sweeps.study import LEAST_FOR_IMPORTANCE, Study

PLOT = "search.png"
BAR = 30  # characters of a share of 100%


def report(study: Study, sweep: Path, say: Callable[[str], None]) -> None:
    """Say what a search came to, and draw it into the sweep's folder."""
    trials = [trial for trial in study.trials() if trial.best is not None]
    if not trials:
        return
    pruned = sum(trial.state == "pruned" for trial in trials)
    steps = sum(max(trial.losses, default=0) for trial in trials)
    longest = max(max(trial.losses, default=0) for trial in trials)
    say(
        f"search    {len(trials)} trials, {pruned} of them pruned: {steps:,} steps, "
        f"{steps / max(1, longest * len(trials)):.0%} of what {len(trials)} whole runs would have taken"
    )
    _say_importance(study, say)
    scales = {axis.key: "log" if axis.log else "linear" if axis.is_number else "text" for axis in study.axes}
    drawn = [{"number": t.number, "best": t.best, "pruned": t.state == "pruned", "values": t.values} for t in trials]
    missing = plots.missing()
    if missing:
        say(f"note      no {PLOT}: {missing}")
        return
    try:
        plots.draw_search(sweep / PLOT, drawn, scales)
    except OSError as error:
        say(f"warning   no plot: {storage.explain(error)}")
        return
    say(f"plot      {sweep / PLOT}")


def _say_importance(study: Study, say: Callable[[str], None]) -> None:
    step, shares = study.importance()
    if len(study.axes) < 2:
        return
    if not shares:
        say(f"keys      which mattered, fewer than {LEAST_FOR_IMPORTANCE} trials can't tell")
        return
    say(f"keys      how much each mattered to {'the best val_loss' if step is None else f'val_loss at step {step:,}'}:")
    width = max(map(len, shares))
    for key, share in shares.items():
        say(f"          {key:{width}} {share:>5.0%} {'▒' * round(BAR * share)}")
