"""`microgpt report`: an HTML page about a run, or about the runs of a sweep."""

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from microgpt_cli.cli import own_configs
from microgpt_cli.commands import Invocation
from microgpt_cli.commands.pages import write_page
from microgpt_cli.commands.runs import label
from microgpt_cli.config import ReportConfig, TrainConfig
from microgpt_cli.config.schema import from_json, leaves
from microgpt_cli.errors import UserError
from microgpt_cli.insight.pages.report import Chart, Curve, Verdict, run_page, sweep_page
from microgpt_cli.runs import layout, outputs, reading, storage, table
from microgpt_cli.runs.diagnose import Finding, diagnose
from microgpt_cli.runs.run_summary import read_run_summary, run_context
from microgpt_cli.runs.samples import read_samples

PAGE = "report.html"
COLOURS = ("--c1", "--c2", "--c3", "--c4", "--c5")
GROUPS = {"model", "arch", "data", "tokenizer", "optim", "experiment"}
MAX_CURVES = 60  # of a sweep
LOG_RATIO = 8  # largest to smallest value of a setting; from this ratio on its axis is logarithmic
GOOD, BAD = {"improving", "plateau"}, {"spikes", "stuck", "slow", "overfitting"}
WORK = {"evaluating_seconds": "evaluating", "sampling_seconds": "sampling", "saving_seconds": "saving"}
Lines = Sequence[Mapping[str, Any]]


@outputs.text_beside
def run(config: ReportConfig, invocation: Invocation) -> None:
    """Write the page, by default into the run's folder."""
    target = None if config.out is None else outputs.file_to_write(config.out)
    folder = layout.find_run(config.run, "run")
    runs = reading.read_runs([folder])
    if not runs:
        raise UserError(
            f"run={config.run}: no run in this folder; give the folder of a run, as in outputs/train/…, or of a sweep"
        )
    alone = len(runs) == 1 and runs[0].path == folder
    page = _of_run(runs[0], invocation) if alone else _of_sweep(folder, runs)
    print(write_page(target or folder / PAGE, page))


def _of_run(run: reading.Run, invocation: Invocation) -> str:
    folder = run.path
    metrics = reading.read_log(folder)
    timings = reading.read_log(folder, layout.TIMINGS)
    about = read_run_summary(folder)
    findings = _findings(folder, metrics, about)
    losses = dict(_points(metrics, "val_loss"))
    samples = [
        {"step": sample.step, "text": sample.text, "val_loss": _latest(losses, sample.step)}
        for sample in read_samples(folder)
    ]
    changed = _changed(run, invocation)
    place = shlex.quote(str(folder))
    return run_page(
        table.printable(folder.resolve().name),
        _subtitle(run, about),
        _summary(run, about),
        [_verdict(finding, run, place) for finding in findings],
        _charts(metrics, timings, about, findings),
        samples,
        changed,
        [[name, table.format_value(value)] for name, value in run.settings.items()],
        [(name, count, f"{count:,}") for name, count in about["parts"].items()] if about else [],
        _times(timings),
        _commands(run, _reproducing_overrides(run, changed, invocation), place),
    )


def _findings(folder: Path, metrics: Lines, about: dict[str, Any] | None) -> list[Finding]:
    """The diagnosis of a run; empty for runs without `about.json`."""
    if about is None:
        return []
    where = folder / layout.CONFIG
    config = from_json(TrainConfig, storage.parse_json(storage.read_bytes(where), str(where)), str(where))
    return diagnose(metrics, config, run_context(about))


def _subtitle(run: reading.Run, about: Mapping[str, Any] | None) -> str:
    parts = [f"status: {run.status.replace('_', ' ')}"]
    if about:
        parts += [f"data: {table.printable(about['text'])}", f"device: {about['machine'].get('device', '')}"]
    return " · ".join(parts)


def _summary(run: reading.Run, about: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Names and values at the top of the page."""
    facts = table.result_cells(run)
    found = [
        (f"best val_loss, step {facts['at step']}", facts["best val loss"]),
        ("last val_loss", facts["last val loss"]),
        ("steps", facts["steps"]),
        ("training time", facts["time"]),
        ("tokens/s", facts["tokens/s"]),
    ]
    if about:
        found += [
            ("parameters", f"{about['parameters']:,}"),
            (f"training {table.printable(about['unit'])}", f"{about['train_tokens']:,}"),
            ("vocabulary", f"{about['vocab_size']:,}"),
        ]
    return found


def _verdict(finding: Finding, run: reading.Run, place: str) -> Verdict:
    """A finding as a sentence, with the complete command that addresses it."""
    text = f"the best validation loss is {finding.text}" if finding.kind == "bigram" else finding.text
    text = f"{text[0].upper()}{text[1:]}."
    tone = "good" if finding.kind in GOOD else "bad" if finding.kind in BAD else ""
    if not finding.overrides:
        return Verdict(text, "", tone)
    how = "resume" if finding.kind == "improving" and run.status in reading.CONCLUDED else "from_run"
    return Verdict(text, f"microgpt train {how}={place} {finding.overrides}", tone)


def _charts(
    metrics: Lines, timings: Lines, about: Mapping[str, Any] | None, findings: Sequence[Finding]
) -> list[Chart]:
    """The loss, and the other logged values, against the step."""
    validation, training = _points(metrics, "val_loss"), _points(metrics, "loss")
    if not (validation or training):
        return []
    best = min(validation, key=lambda point: point[1], default=None)
    overfits = any(finding.kind == "overfitting" for finding in findings)
    loss = Chart(
        "loss",
        "Loss, nats per token",
        [Curve("validation", "--c2", validation, dots=True), Curve("train", "--c1", training, faint=True)],
        levels=about["baselines"] if about else {},
        marks={"overfitting": best[0]} if best and overfits else {},
    )
    others = [
        ("rate", "Learning rate", "--c3", _points(metrics, "learning_rate")),
        ("norm", "Gradient norm, before clipping", "--c4", _points(metrics, "grad_norm")),
        ("speed", "Tokens per second", "--c5", _points(timings, "tokens_per_sec")),
    ]
    return [loss] + [
        Chart(name, title, [Curve(title.partition(",")[0].lower(), colour, points)], from_zero=True)
        for name, title, colour, points in others
        if points
    ]


def _points(lines: Lines, key: str) -> list[tuple[int, float]]:
    return [(line["step"], float(line[key])) for line in lines if key in line]


def _latest(losses: Mapping[int, float], step: int) -> float | None:
    """The val_loss of the last evaluation before a sample."""
    return next((loss for at, loss in sorted(losses.items(), reverse=True) if at <= step), None)


def _changed(run: reading.Run, invocation: Invocation) -> list[list[str]]:
    """The settings that differ from the defaults: (key, value, default, meaning)."""
    if invocation.compose is None:  # in a sweep
        return []
    defaults = invocation.compose("train", ())
    return [
        [leaf.name, table.format_value(run.settings[leaf.name]), table.format_value(defaults[leaf.name]), leaf.meaning]
        for leaf in leaves(TrainConfig)
        if leaf.name in run.settings
        and leaf.name not in table.PATH_SETTINGS
        and run.settings[leaf.name] != defaults[leaf.name]
    ]


def _times(timings: Lines) -> list[tuple[str, float, str]]:
    """Seconds of each activity, as logged."""
    seconds = {"training steps": max((line["seconds"] for line in timings if "seconds" in line), default=0.0)}
    for key, name in WORK.items():
        seconds[name] = sum(line[key] for line in timings if key in line)
    total = sum(seconds.values())
    return [(name, spent, f"{spent:,.1f} s, {spent / total:.0%}") for name, spent in seconds.items() if spent > 0]


def _reproducing_overrides(run: reading.Run, changed: Sequence[Sequence[str]], invocation: Invocation) -> list[str]:
    """The overrides that reproduce a run: the original ones if they still give its settings, else all differences."""
    typed = _original_overrides(run.path)
    if typed is not None and invocation.compose is not None:
        with contextlib.suppress(UserError):
            given = invocation.compose("train", typed)
            if all(given.get(name) == value for name, value in run.settings.items() if name not in table.PATH_SETTINGS):
                # the file contains Hydra's quotes, which microgpt does not need
                names = [word.partition("=")[0] for word in typed]
                return [
                    f"{name}={table.format_value(run.settings[name])}" if name in run.settings else word
                    for name, word in zip(names, typed, strict=True)
                ]
    return [f"{name}={value}" for name, value, *_ in changed]


def _original_overrides(folder: Path) -> list[str] | None:
    """The original overrides of a run without paths; None if unknown or not valid for train."""
    try:
        text = storage.read_bytes(folder / layout.HYDRA / "overrides.yaml", own_configs.MAX_FILE_BYTES).decode()
        words = None if own_configs.too_much(text) else yaml.safe_load(text)
    except (UserError, ValueError, yaml.YAMLError):
        return None
    if not (isinstance(words, list) and all(isinstance(word, str) and "$" not in word for word in words)):
        return None
    names = {word.partition("=")[0] for word in words}
    keys = {leaf.name for leaf in leaves(TrainConfig)}
    if "from_run" in names or not names <= keys | GROUPS:
        return None
    return [word for word in words if word.partition("=")[0] not in table.PATH_SETTINGS]


def _commands(run: reading.Run, again: Sequence[str], place: str) -> list[tuple[str, str]]:
    more = f" max_steps={2 * run.step}" if run.status == "finished" and run.step else ""
    return [
        ("generate text", f"microgpt sample ckpt={place}"),
        ("evaluate on the whole validation text", f"microgpt eval ckpt={place}"),
        ("resume", f"microgpt train resume={place}{more}"),
        ("repeat the run from its folder", f"microgpt train from_run={place}"),
        ("repeat the run without its folder", " ".join(["microgpt train", *map(shlex.quote, again)])),
    ]


def _of_sweep(folder: Path, runs: Sequence[reading.Run]) -> str:
    runs = table.sort_runs(runs)
    head, rows = table.cells(runs, folder)
    scored = [(run, run.best_val_loss) for run in runs if run.best_val_loss is not None]
    found = table.configurations(runs)
    significance = table.verdict(found)
    place = shlex.quote(str(folder))
    next_commands = [("show this table in the terminal", f"microgpt runs {place}")]
    summary = [("runs", f"{len(runs):,}"), ("finished", f"{sum(run.status in reading.CONCLUDED for run in runs):,}")]
    if scored:
        best, loss = scored[0]
        next_commands.append(("generate text with the best run", f"microgpt sample ckpt={shlex.quote(str(best.path))}"))
        next_commands.append(("report of the best run", f"microgpt report {shlex.quote(str(best.path))}"))
        summary += [("best val_loss", f"{loss:.4f}"), ("best run", table.printable(best.path.name))]
    if len(scored) > 1:
        names = " ".join(shlex.quote(str(run.path)) for run, _ in scored[:2])
        next_commands.append(("compare the best two runs", f"microgpt compare {names}"))
    verdicts = [Verdict(note, "") for note in (significance, table.comparability(runs)) if note]
    if scored:
        best = scored[0][0]
        for finding in _findings(best.path, reading.read_log(best.path), read_run_summary(best.path)):
            verdict = _verdict(finding, best, shlex.quote(str(best.path)))
            text = f"Best run, {table.printable(best.path.name)}: {verdict.text[0].lower()}{verdict.text[1:]}"
            verdicts.append(Verdict(text, verdict.command, verdict.tone))
    order = [0, 3, *range(6, len(head)), 1, 2, 4, 5]  # loss and settings first
    return sweep_page(
        table.printable(folder.resolve().name),
        f"{len(runs):,} runs of microgpt train",
        summary,
        verdicts,
        [head[i] for i in order],
        [[row[i] for i in order] for row in rows],
        range(1, len(head)),
        _sweep_charts(runs, scored),
        next_commands,
    )


def _sweep_charts(runs: Sequence[reading.Run], scored: Sequence[tuple[reading.Run, float]]) -> list[Chart]:
    """The validation losses, the best in colour, and the best loss against each numeric setting that differs."""
    curves, names, where = [], table.shown_keys(runs), table.common_folder(runs)
    for rank, run in enumerate(runs[:MAX_CURVES]):
        points = reading.val_curve(run)
        if points:
            top = rank < len(COLOURS)
            colour = COLOURS[rank] if top else "--quiet"
            curves.append(Curve(label(run, names, where) if top else "", colour, points, faint=not top, dots=top))
    charts = [Chart("loss", "Validation loss, nats per token", curves)] if curves else []
    for number, name in enumerate(table.shown_keys([run for run, _ in scored])):
        swept = [(value, loss, run.path.name) for run, loss in scored if (value := _number(run, name)) is not None]
        values = [value for value, *_ in swept]
        if len(set(values)) > 1 and name not in table.NO_EFFECT:
            wide = min(values) > 0 and max(values) / min(values) >= LOG_RATIO
            curve = Curve("", "--c1", sorted((x, y, table.printable(of)) for x, y, of in swept), scatter=True)
            charts.append(Chart(f"swept-{number}", f"Best val_loss against {name}", [curve], x=name, log_x=wide))
    return charts


def _number(run: reading.Run, name: str) -> int | float | None:
    """The value of a numeric setting, else None."""
    value = run.settings.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
