"""The table of runs: compared, sorted, and written for people and programs. No torch here."""

import csv
import io
import json
import os
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from microgpt_cli.cli.overrides import nearest
from microgpt_cli.config import TrainConfig
from microgpt_cli.config.schema import leaves
from microgpt_cli.errors import UserError
from microgpt_cli.runs.reading import COLUMNS, CONCLUDED, Run, Setting
from microgpt_cli.runs.significance import mean_and_sd, welch

FORMATS = ("table", "csv", "json", "md")
# Where things lie and how a run was begun: no setting of the run that the table compares.
PLACES = {"out_dir", "resume", "from_run", "data.cache_dir", "data.folder", "logger"}
DETAILS = {"data.url", "data.sha256", "data.size_bytes"}  # of a download whose name says it already
# What changes no held-out loss, or only its rounding, makes no other configuration.
NO_EFFECT = {"seed", "device", "engine", "compile", "threads", "log_interval", "checkpoint_interval", "sample_interval"}
UNIT = ("tokenizer.", "data.")  # settings that say what a loss is measured on
SIGNIFICANT = 0.01  # how rarely chance alone may give such a lead
NARROWEST = 40  # columns of a terminal
MISSING = "–"
FACTS = ("status", "steps", "best val loss", "time", "tokens/s")  # what the table tells of every run
ALIASES = {"run": "path", "steps": "step", "time": "seconds", "tokens/s": "tokens_per_sec", "loss": "best_val_loss"}


@dataclass(frozen=True)
class Configuration:
    """Runs that differ by their seed alone, concluded ones, one for each seed; the best first."""

    runs: tuple[Run, ...]
    losses: tuple[float, ...]  # their best val losses
    mean: float
    sd: float | None  # of a sample; None for one seed

    @property
    def settings(self) -> Mapping[str, Setting]:
        return self.runs[0].settings


def differing(runs: Sequence[Run]) -> list[str]:
    """The dotted keys in which runs differ, in the order of the schema; where they lie is not one of them."""
    runs = [run for run in runs if run.settings]
    order = [leaf.name for leaf in leaves(TrainConfig)]
    names = [*order, *(name for run in runs for name in run.settings if name not in order)]
    found = [
        name
        for name in dict.fromkeys(names)
        if name not in PLACES
        and not name.startswith("sweep.")
        and len({repr(run.settings.get(name, MISSING)) for run in runs}) > 1
    ]
    return [name for name in found if not ("data.file_name" in found and name in DETAILS)]


def value_of(run: Run, name: str) -> Any:
    """A column or a setting of a run, by a name that `resolve` gave; None where it has none."""
    return str(run.path) if name == "path" else getattr(run, name) if name in COLUMNS else run.settings.get(name)


def resolve(name: str, runs: Sequence[Run], key: str) -> str:
    """The column or the setting that is meant: `n_layer` is `model.n_layer`.

    Args:
        key: what it was typed for, for messages.

    Raises:
        UserError: there is none.
    """
    settings = [leaf.name for leaf in leaves(TrainConfig)]
    settings += sorted({setting for run in runs for setting in run.settings} - set(settings))
    plain = ALIASES.get(name, name).replace(" ", "_")
    if plain in (*COLUMNS, "path", *settings):
        return plain
    by_last = [setting for setting in settings if setting.rpartition(".")[2] == plain]
    if len(by_last) == 1:
        return by_last[0]
    best = nearest(plain, [*COLUMNS, *settings])
    raise UserError(
        f"{key}: no column and no setting is called {name!r}{f'; did you mean {best!r}?' if best else ''} "
        f"(columns: {', '.join(COLUMNS)}; settings as typed for train)"
    )


def sort_runs(runs: Sequence[Run], by: str = "best_val_loss") -> list[Run]:
    """Runs by a column or a setting, `-` before it turns the order round; those that have none come last."""
    name = resolve(by.removeprefix("-"), runs, f"sort={by}")

    def rank(run: Run) -> tuple[bool, float, str]:
        value = value_of(run, name)
        return isinstance(value, str), 0.0 if isinstance(value, str) else float(value), str(value)

    having = sorted((run for run in runs if value_of(run, name) is not None), key=rank, reverse=by.startswith("-"))
    return having + [run for run in runs if value_of(run, name) is None]


def configurations(runs: Sequence[Run]) -> list[Configuration]:
    """Concluded runs, those together that differ by their seed alone, in the order of their mean best val loss."""
    groups: dict[str, dict[Setting, Run]] = {}
    ignored = PLACES | NO_EFFECT
    for run in runs:
        if run.status in CONCLUDED and run.best_val_loss is not None and run.settings:
            same = sorted((name, repr(value)) for name, value in run.settings.items() if name not in ignored)
            groups.setdefault(repr(same), {})[run.settings.get("seed")] = run  # the same seed again is no new evidence
    made = []
    for by_seed in groups.values():
        members = tuple(sorted(by_seed.values(), key=_best))
        losses = tuple(map(_best, members))
        made.append(Configuration(members, losses, *mean_and_sd(losses)))
    return sorted(made, key=lambda configuration: configuration.mean)


def _best(run: Run) -> float:
    assert run.best_val_loss is not None
    return run.best_val_loss


def verdict(found: Sequence[Configuration]) -> str | None:
    """Whether the best configuration leads by more than seeds do; nothing where either of the two has one seed."""
    if len(found) < 2 or found[0].sd is None or found[1].sd is None:
        return None
    first, second = found[0], found[1]
    if any(name.startswith(UNIT) for name in differing([first.runs[0], second.runs[0]])):
        return None  # losses of different texts or tokens: no lead
    test = welch(first.losses, second.losses)
    beyond = test.p < SIGNIFICANT
    more = "" if beyond else "; more seeds would tell"
    return (
        f"The lead of the first configuration over the second, {second.mean - first.mean:.4f}, "
        f"{'is' if beyond else 'is not'} beyond seed noise (Welch's t-test: t = {test.t:.2f}, "
        f"{test.degrees:.1f} degrees of freedom, p = {test.p:.2g}, wanted below {SIGNIFICANT}){more}."
    )


def render(runs: Sequence[Run], format: str = "table", width: int | None = None) -> str:
    """The table of runs, in the order given, and below it that of configurations where one has several seeds.

    Args:
        runs: the rows.
        format: one of FORMATS: for a terminal, for a spreadsheet, for a program, for a page in Markdown.
        width: columns of the terminal; by default those of this one.
    """
    if format == "csv":
        return _csv(runs)
    if format == "json":
        return _json(runs)
    grouped = configurations(runs)
    where = common_folder(runs) if len(runs) > 1 else None
    parts = [f"In {printable(str(where))}/"] if where else []
    parts.append(_columns(*_rows(runs, where), format, width))
    if any(configuration.sd is not None for configuration in grouped):
        parts.append(_columns(*_grouped_rows(grouped), format, width))
    notes = [f"damaged: {printable(str(run.path))}: {printable(run.problem)}" for run in runs if run.problem]
    said = verdict(grouped)
    notes += [said] if said else []
    units = [name for name in differing([run for run in runs if run.best_val_loss is not None]) if _is_unit(name)]
    if units:
        notes.append(f"Losses are comparable only between runs of equal {', '.join(units)}.")
    if format == "table":
        notes = [textwrap.fill(note, max(NARROWEST, width or shutil.get_terminal_size().columns)) for note in notes]
    return "\n\n".join([*parts, *notes])


def _is_unit(name: str) -> bool:
    return name.startswith(UNIT)


def short_names(names: Sequence[str]) -> list[str]:
    """Keys without the node they hang in, as far as they stay different."""
    last = [name.rpartition(".")[2] for name in names]
    return [short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)]


def shown(value: Any) -> str:
    """A value of a setting as it would be typed, nothing in it that a terminal obeys."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else printable(str(value))


def printable(text: str) -> str:
    """A text on one line, with nothing in it that a terminal would obey: a hostile file may have chosen the words."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in " ".join(text.split()))[:300]


def side_by_side(runs: Sequence[Run], heads: Sequence[str]) -> str:
    """The settings that differ and what became of each run: a column a run, as in `microgpt compare`."""
    names = differing(runs)
    rows = [
        [short, *(shown(run.settings[name]) if name in run.settings else MISSING for run in runs)]
        for name, short in zip(names, short_names(names), strict=True)
    ]
    told = [facts(run) for run in runs]
    rows += [[name, *(fact[name] for fact in told)] for name in told[0]]
    return "\n".join(_aligned(["", *heads], rows))


def facts(run: Run) -> dict[str, str]:
    """What became of a run, by the name of its column."""
    last_step = run.settings.get("max_steps")
    steps = MISSING if run.step is None else f"{run.step:,}"
    if run.status not in CONCLUDED and run.step is not None and isinstance(last_step, int):
        steps += f" of {last_step:,}"
    return {
        "status": run.status,
        "steps": steps,
        "last val loss": MISSING if run.val_loss is None else f"{run.val_loss:.4f}",
        "best val loss": MISSING if run.best_val_loss is None else f"{run.best_val_loss:.4f}",
        "at step": MISSING if run.best_step is None else f"{run.best_step:,}",
        "time": MISSING if run.seconds is None else _clock(run.seconds),
        "tokens/s": MISSING if run.tokens_per_sec is None else f"{run.tokens_per_sec:,.0f}",
        "parameters": MISSING if run.parameters is None else f"{run.parameters:,}",
    }


def cells(runs: Sequence[Run], where: Path | None) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the table, for those who draw it themselves; runs are named as seen from `where`."""
    head, names, rows = _rows(runs, where)
    return [*head, *names], rows


def _rows(runs: Sequence[Run], where: Path | None) -> tuple[list[str], list[str], list[list[str]]]:
    """What is told of every run, the settings that differ, and the cells of both."""
    names = differing(runs)
    rows = []
    for run in runs:
        became = facts(run)
        told = printable(os.path.relpath(run.path, where) if where else str(run.path))
        cells = [shown(run.settings[name]) if name in run.settings else MISSING for name in names]
        rows.append([told, *(became[name] for name in FACTS), *cells])
    return ["run", *FACTS], short_names(names), rows


def _grouped_rows(found: Sequence[Configuration]) -> tuple[list[str], list[str], list[list[str]]]:
    names = [name for name in differing([c.runs[0] for c in found]) if name not in NO_EFFECT]
    rows = []
    for number, configuration in enumerate(found, 1):
        spread = "" if configuration.sd is None else f" ± {configuration.sd:.4f}"
        cells = [shown(configuration.settings.get(name)) for name in names]
        rows.append([str(number), str(len(configuration.runs)), f"{configuration.mean:.4f}{spread}", *cells])
    return ["configuration", "seeds", "best val loss, mean ± sd"], short_names(names), rows


def common_folder(runs: Sequence[Run]) -> Path:
    """The innermost folder that all runs lie in."""
    parents = [run.path.parent for run in runs]
    if len({parent.is_absolute() for parent in parents}) > 1:
        parents = [parent.absolute() for parent in parents]
    return Path(os.path.commonpath(parents))


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))) if seconds < 1e9 else f"{seconds:g} s"


def _columns(
    facts: Sequence[str], settings: Sequence[str], rows: Sequence[Sequence[str]], format: str, width: int | None
) -> str:
    """Cells under their headings; where a terminal is too narrow, the settings on lines of their own."""
    if format == "md":
        return _markdown([*facts, *settings], rows)
    width = max(NARROWEST, width or shutil.get_terminal_size().columns)
    lines = _aligned([facts[0], *settings, *facts[1:]], [[r[0], *r[len(facts) :], *r[1 : len(facts)]] for r in rows])
    if max(map(len, lines)) <= width or not settings:
        return "\n".join(lines)
    lines = _aligned(facts, [row[: len(facts)] for row in rows])
    folded = lines[:1]
    for line, row in zip(lines[1:], rows, strict=True):
        said = "  ".join(f"{name}={cell}" for name, cell in zip(settings, row[len(facts) :], strict=True))
        folded += [line, *textwrap.wrap(said, width, initial_indent="    ", subsequent_indent="    ")]
    return "\n".join(folded)


def _aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    return [
        "  ".join(
            f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [heads, *rows]
    ]


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _csv(runs: Sequence[Run]) -> str:
    names = differing(runs)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", *COLUMNS, *names])
    for run in runs:
        writer.writerow([value_of(run, name) for name in ("path", *COLUMNS, *names)])
    return text.getvalue().rstrip("\n")


def _json(runs: Sequence[Run]) -> str:
    names = differing(runs)
    grouped = configurations(runs)
    grouped_names = [name for name in differing([c.runs[0] for c in grouped]) if name not in NO_EFFECT]
    page = {
        "runs": [
            {name: value_of(run, name) for name in ("path", *COLUMNS)}
            | {"problem": run.problem, "settings": {name: run.settings.get(name) for name in names}}
            for run in runs
        ],
        "configurations": [
            {
                "settings": {name: configuration.settings.get(name) for name in grouped_names},
                "seeds": [run.settings.get("seed") for run in configuration.runs],
                "runs": [str(run.path) for run in configuration.runs],
                "mean": configuration.mean,
                "sd": configuration.sd,
            }
            for configuration in grouped
        ],
        "verdict": verdict(grouped),
    }
    return json.dumps(page, indent=2, ensure_ascii=True)
