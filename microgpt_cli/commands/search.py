"""The output at the end of a search: the number of trials, the importance of each key, and the plot."""

from collections.abc import Callable
from pathlib import Path

from microgpt_cli.runs import plots, storage
from microgpt_cli.sweeps.study import MIN_IMPORTANCE_TRIALS, Study

PLOT = "search.png"
BAR_WIDTH = 30  # characters of 100%


def report(study: Study, sweep: Path, say: Callable[[str], None]) -> None:
    """Print the summary of a search, and write its plot to the sweep's folder."""
    trials = [trial for trial in study.trials() if trial.best is not None]
    if not trials:
        return
    pruned = sum(trial.state == "pruned" for trial in trials)
    steps = sum(max(trial.losses, default=0) for trial in trials)
    longest = max(max(trial.losses, default=0) for trial in trials)
    say(
        f"search    {len(trials)} trials, {pruned} of them pruned: {steps:,} steps, "
        f"{steps / max(1, longest * len(trials)):.0%} of the steps of {len(trials)} complete runs"
    )
    _report_importance(study, say)
    scales = {d.key: "log" if d.log else "linear" if d.is_number else "text" for d in study.space}
    points = [{"number": t.number, "best": t.best, "pruned": t.state == "pruned", "values": t.values} for t in trials]
    missing = plots.missing()
    if missing:
        say(f"note      no {PLOT}: {missing}")
        return
    try:
        plots.draw_search(sweep / PLOT, points, scales)
    except OSError as error:
        say(f"warning   no plot: {storage.explain(error)}")
        return
    say(f"plot      {sweep / PLOT}")


def _report_importance(study: Study, say: Callable[[str], None]) -> None:
    step, shares = study.importance()
    if len(study.space) < 2:
        return
    if not shares:
        say(f"keys      importance needs at least {MIN_IMPORTANCE_TRIALS} trials")
        return
    say(f"keys      importance for {'the best val_loss' if step is None else f'val_loss at step {step:,}'}:")
    width = max(map(len, shares))
    for key, share in shares.items():
        say(f"          {key:{width}} {share:>5.0%} {'▒' * round(BAR_WIDTH * share)}")
