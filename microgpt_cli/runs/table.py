"""The table of runs: grouped by configuration, sorted, and rendered as text, Markdown, CSV or JSON. No torch here."""

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
from microgpt_cli.runs.escape import one_line
from microgpt_cli.runs.reading import COLUMNS, CONCLUDED, TEXT, Run, Setting
from microgpt_cli.runs.significance import mean_and_sd, paired_t_test, sign_flip_test, welch_t_test

FORMATS = ("table", "csv", "json", "md")
# Paths, and how a run was started: not compared between runs.
PATH_SETTINGS = {"out_dir", "resume", "from_run", "data.cache_dir", "data.folder", "logger"}
DOWNLOAD_DETAILS = {"data.url", "data.sha256", "data.size_bytes"}  # implied by data.file_name
# Settings without an effect on the validation loss beyond rounding: runs that differ in them are one configuration.
NO_EFFECT = {"seed", "device", "engine", "compile", "threads", "log_interval", "checkpoint_interval", "sample_interval"}
LOSS_UNIT = ("tokenizer.", "data.")  # prefixes of settings that change what a loss is measured on
TEXT_SETTINGS = {"data.source", "data.path", "data.file_name", *DOWNLOAD_DETAILS}  # names of a text
SHOWN_DIGITS = 8  # of a checksum
SIGNIFICANCE_LEVEL = 0.01
MIN_WIDTH = 40  # columns of a terminal
MISSING = "–"
RESULT_COLUMNS = ("status", "steps", "best val loss", "time", "tokens/s")
ALIASES = {"run": "path", "steps": "step", "time": "seconds", "tokens/s": "tokens_per_sec", "loss": "best_val_loss"}


@dataclass(frozen=True)
class Configuration:
    """Concluded runs that differ only in their seed, one per seed, the best first."""

    runs: tuple[Run, ...]
    losses: tuple[float, ...]  # their best val losses
    mean: float
    sd: float | None  # sample standard deviation; None for one seed

    @property
    def settings(self) -> Mapping[str, Setting]:
        return self.runs[0].settings

    @property
    def by_seed(self) -> dict[Setting, float]:
        """Seed → best val loss."""
        return {run.settings.get("seed"): loss for run, loss in zip(self.runs, self.losses, strict=True)}


def differing(runs: Sequence[Run]) -> list[str]:
    """The dotted keys of settings in which runs differ, in the order of the schema, without paths."""
    runs = [run for run in runs if run.settings]
    order = [leaf.name for leaf in leaves(TrainConfig)]
    names = [*order, *(name for run in runs for name in run.settings if name not in order)]
    found = [
        name
        for name in dict.fromkeys(names)
        if name not in PATH_SETTINGS
        and not name.startswith("sweep.")
        and len({repr(run.settings.get(name, MISSING)) for run in runs}) > 1
    ]
    found = [name for name in found if not ("data.file_name" in found and name in DOWNLOAD_DETAILS)]
    return found if _is_one_to_one(runs) or len({_text(run) for run in runs}) == 1 else [*found, TEXT]


def _text_name(run: Run) -> str:
    return repr([run.settings.get(name) for name in sorted(TEXT_SETTINGS)])


def _text(run: Run) -> str:
    """What identifies the text of a run: its checksum, and its name in runs of versions that did not note it."""
    return run.text_sha256 or _text_name(run)


def _is_one_to_one(runs: Sequence[Run]) -> bool:
    """Whether the names of the texts say which runs had the same text."""
    pairs = {(_text_name(run), _text(run)) for run in runs}
    return len(pairs) == len({name for name, _ in pairs}) == len({text for _, text in pairs})


def loss_units(runs: Sequence[Run]) -> list[str]:
    """What the losses of runs are measured on, as far as they differ in it: only equal ones can be compared."""
    runs = [run for run in runs if run.settings]
    found = [name for name in differing(runs) if name.startswith(LOSS_UNIT)]
    if not _is_one_to_one(runs):
        found = [name for name in found if name not in TEXT_SETTINGS]
        found += [TEXT] if len({_text(run) for run in runs}) > 1 else []
    evaluated: dict[str, set[Setting]] = {}
    for run in runs:
        others = [(name, value) for name, value in run.settings.items() if name.startswith(LOSS_UNIT)]
        same = [_text(run), *sorted((name, repr(value)) for name, value in others if name not in TEXT_SETTINGS)]
        evaluated.setdefault(repr(same), set()).add(_evaluated_tokens(run))
    return found + (["eval_tokens"] if any(len(tokens) > 1 for tokens in evaluated.values()) else [])


def _evaluated_tokens(run: Run) -> Setting:
    return run.settings.get("eval_tokens") if run.val_tokens is None else run.val_tokens


def comparability(runs: Sequence[Run]) -> str | None:
    """A sentence about the losses that can't be compared; None if all can be."""
    units = loss_units([run for run in runs if run.best_val_loss is not None])
    return f"Losses are comparable only between runs with the same {', '.join(units)}." if units else None


def shown_keys(runs: Sequence[Run]) -> list[str]:
    """The keys in which runs differ; a swept group, such as `arch`, replaces the settings that it implies."""
    names, having = differing(runs), [run for run in runs if run.settings]
    swept = dict.fromkeys(key for run in having for key in run.swept)
    groups = [key for key in swept if all(key in run.swept and key not in run.settings for run in having)]

    def is_implied(name: str) -> bool:
        values: dict[tuple[str, ...], set[str]] = {}
        for run in having:
            choice = tuple(run.swept[key] for key in groups)
            value = _text(run) if name == TEXT else run.settings.get(name, MISSING)
            values.setdefault(choice, set()).add(repr(value))
        return all(len(found) == 1 for found in values.values())

    if not groups:
        return names
    different = [key for key in groups if len({run.swept[key] for run in having}) > 1]
    return different + [name for name in names if name in swept or not is_implied(name)]


def value_of(run: Run, name: str) -> Any:
    """A column, a setting or a swept group of a run, by a name from `resolve`; None if the run has no value."""
    if name == "path":
        return str(run.path)
    return getattr(run, name) if name in COLUMNS else run.settings.get(name, run.swept.get(name))


def format_setting(run: Run, name: str) -> str:
    """A setting or a swept group of a run, as a cell of a table."""
    if name == TEXT and run.text_sha256 is not None:
        return run.text_sha256[:SHOWN_DIGITS]
    return format_value(value_of(run, name)) if name in run.settings or name in run.swept else MISSING


def resolve(name: str, runs: Sequence[Run], key: str) -> str:
    """The full name of a column or a setting: `n_layer` is `model.n_layer`.

    Args:
        key: the option that contained the name, for messages.

    Raises:
        UserError: there is no such column or setting.
    """
    settings = [leaf.name for leaf in leaves(TrainConfig)]
    settings += sorted({setting for run in runs for setting in (*run.settings, *run.swept)} - set(settings))
    plain = ALIASES.get(name, name).replace(" ", "_")
    if plain in (*COLUMNS, "path", *settings):
        return plain
    by_last = [setting for setting in settings if setting.rpartition(".")[2] == plain]
    if len(by_last) == 1:
        return by_last[0]
    best = nearest(plain, [*COLUMNS, *settings])
    raise UserError(
        f"{key}: no column or setting is named {name!r}{f'; did you mean {best!r}?' if best else ''} "
        f"(columns: {', '.join(COLUMNS)}; settings: the keys of microgpt train)"
    )


def sort_runs(runs: Sequence[Run], by: str = "best_val_loss") -> list[Run]:
    """Runs sorted by a column or a setting, descending with the prefix `-`; runs without a value come last."""
    name = resolve(by.removeprefix("-"), runs, f"sort={by}")

    def rank(run: Run) -> tuple[bool, float, str]:
        value = value_of(run, name)
        return isinstance(value, str), 0.0 if isinstance(value, str) else float(value), str(value)

    having = sorted((run for run in runs if value_of(run, name) is not None), key=rank, reverse=by.startswith("-"))
    return having + [run for run in runs if value_of(run, name) is None]


def configurations(runs: Sequence[Run]) -> list[Configuration]:
    """Concluded runs grouped by their text and all settings but the seed, sorted by their mean best loss."""
    groups: dict[str, dict[Setting, Run]] = {}
    ignored = PATH_SETTINGS | NO_EFFECT | TEXT_SETTINGS | {"eval_tokens"}
    for run in runs:
        if run.status in CONCLUDED and run.best_val_loss is not None and run.settings:
            same = sorted((name, repr(value)) for name, value in run.settings.items() if name not in ignored)
            measured_on = (_text(run), _evaluated_tokens(run))
            groups.setdefault(repr((measured_on, same)), {})[run.settings.get("seed")] = (
                run  # a repeated seed is not an independent sample
            )
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
    """Whether the best configuration beats the second significantly; None if either has only one seed."""
    if len(found) < 2 or found[0].sd is None or found[1].sd is None:
        return None
    first, second = found[0], found[1]
    if loss_units([first.runs[0], second.runs[0]]):
        return None
    p, how = _compare(first, second)
    significant = p < SIGNIFICANCE_LEVEL
    more = "" if significant else "; run more seeds to decide"
    return (
        f"The best configuration is {second.mean - first.mean:.4f} nats below the second, which "
        f"{'is' if significant else 'is not'} significant ({how}, p = {p:.2g}, threshold {SIGNIFICANCE_LEVEL}){more}."
    )


def _compare(first: Configuration, second: Configuration) -> tuple[float, str]:
    """The p-value of the difference of two means, and the test.

    Runs with the same seed have the same batches and initial draws, so they are compared in pairs, if all seeds of one
    configuration are seeds of the other too. Few pairs can't be significant by their signs alone, and are taken as
    normally distributed.
    """
    one, other = first.by_seed, second.by_seed
    shared = one.keys() & other.keys()
    if len(shared) < min(len(one), len(other)):
        test = welch_t_test(first.losses, second.losses)
        return test.p, f"Welch's t-test: t = {test.t:.2f}, {test.degrees:.1f} degrees of freedom"
    differences = [other[seed] - one[seed] for seed in sorted(shared, key=repr)]
    pairs = f"over {len(shared)} shared seeds"
    if 2.0 ** (1 - len(shared)) < SIGNIFICANCE_LEVEL:
        return sign_flip_test(differences), f"sign-flip test {pairs}"
    test = paired_t_test(differences)
    return test.p, f"paired t-test {pairs}: t = {test.t:.2f}"


def render(runs: Sequence[Run], format: str = "table", width: int | None = None) -> str:
    """The table of runs in the given order, followed by the table of configurations if any has several seeds.

    Args:
        runs: the rows.
        format: one of FORMATS.
        width: of the terminal, in columns; by default that of the current one.
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
    significance = verdict(grouped)
    notes += [significance] if significance else []
    comparable = comparability(runs)
    notes += [comparable] if comparable else []
    if format == "table":
        notes = [textwrap.fill(note, max(MIN_WIDTH, width or shutil.get_terminal_size().columns)) for note in notes]
    return "\n\n".join([*parts, *notes])


def short_names(names: Sequence[str]) -> list[str]:
    """The last part of each dotted key, or the whole key where that is ambiguous."""
    last = [name.rpartition(".")[2] for name in names]
    return [short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)]


def format_value(value: Any) -> str:
    """A value of a setting as it would be typed, escaped for a terminal."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else printable(str(value))


def printable(text: str) -> str:
    """Text from a file, escaped for a terminal, on one line of at most 300 characters."""
    return one_line(text)[:300]


def side_by_side(runs: Sequence[Run], heads: Sequence[str]) -> str:
    """The settings that differ and the results, one column per run, as in `microgpt compare`."""
    names = shown_keys(runs)
    rows = [
        [short, *(format_setting(run, name) for run in runs)]
        for name, short in zip(names, short_names(names), strict=True)
    ]
    results = [result_cells(run) for run in runs]
    rows += [[name, *(result[name] for result in results)] for name in results[0]]
    return "\n".join(_aligned(["", *heads], rows))


def result_cells(run: Run) -> dict[str, str]:
    """Column name → formatted result of a run."""
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
    """The header and the rows of the table, with the runs named relative to `where`."""
    header, names, rows = _rows(runs, where)
    return [*header, *names], rows


def _rows(runs: Sequence[Run], where: Path | None) -> tuple[list[str], list[str], list[list[str]]]:
    """The fixed columns, the settings that differ, and the rows of both."""
    names = shown_keys(runs)
    rows = []
    for run in runs:
        results = result_cells(run)
        path = printable(os.path.relpath(run.path, where) if where else str(run.path))
        cells = [format_setting(run, name) for name in names]
        rows.append([path, *(results[name] for name in RESULT_COLUMNS), *cells])
    return ["run", *RESULT_COLUMNS], short_names(names), rows


def _grouped_rows(found: Sequence[Configuration]) -> tuple[list[str], list[str], list[list[str]]]:
    names = [name for name in shown_keys([c.runs[0] for c in found]) if name not in NO_EFFECT]
    rows = []
    for number, configuration in enumerate(found, 1):
        spread = "" if configuration.sd is None else f" ± {configuration.sd:.4f}"
        cells = [format_setting(configuration.runs[0], name) for name in names]
        rows.append([str(number), str(len(configuration.runs)), f"{configuration.mean:.4f}{spread}", *cells])
    return ["configuration", "seeds", "best val loss, mean ± sd"], short_names(names), rows


def common_folder(runs: Sequence[Run]) -> Path:
    """The innermost folder that contains all runs."""
    parents = [run.path.parent for run in runs]
    if len({parent.is_absolute() for parent in parents}) > 1:
        parents = [parent.absolute() for parent in parents]
    return Path(os.path.commonpath(parents))


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))) if seconds < 1e9 else f"{seconds:g} s"


def _columns(
    fixed: Sequence[str], settings: Sequence[str], rows: Sequence[Sequence[str]], format: str, width: int | None
) -> str:
    """Aligned columns; if the terminal is too narrow, the settings go on separate lines."""
    if format == "md":
        return _markdown([*fixed, *settings], rows)
    width = max(MIN_WIDTH, width or shutil.get_terminal_size().columns)
    lines = _aligned([fixed[0], *settings, *fixed[1:]], [[r[0], *r[len(fixed) :], *r[1 : len(fixed)]] for r in rows])
    if max(map(len, lines)) <= width or not settings:
        return "\n".join(lines)
    lines = _aligned(fixed, [row[: len(fixed)] for row in rows])
    folded = lines[:1]
    for line, row in zip(lines[1:], rows, strict=True):
        text = "  ".join(f"{name}={cell}" for name, cell in zip(settings, row[len(fixed) :], strict=True))
        folded += [line, *textwrap.wrap(text, width, initial_indent="    ", subsequent_indent="    ")]
    return "\n".join(folded)


def _aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns, the first left-aligned, the others right-aligned."""
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
    names = [name for name in differing(runs) if name not in COLUMNS]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", *COLUMNS, *names])
    for run in runs:
        writer.writerow([value_of(run, name) for name in ("path", *COLUMNS, *names)])
    return text.getvalue().rstrip("\n")


def _json(runs: Sequence[Run]) -> str:
    names = [name for name in differing(runs) if name not in COLUMNS]
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
                "settings": {name: value_of(configuration.runs[0], name) for name in grouped_names},
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
