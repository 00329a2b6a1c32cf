"""Runs read from their folders, as far as they can be read. No torch here.

A run's folder is read, never written, and a damaged one is a run that says so. A run that has ended costs two open
files, `config.json` and `result.json`; any other has its lock and its logs looked at, for it may be training right now.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microgpt_cli.config import TrainConfig
from microgpt_cli.config.schema import absent_values
from microgpt_cli.errors import UserError
from microgpt_cli.runs import layout, log, storage

Setting = bool | int | float | str | None
CONCLUDED = ("finished", "stopped_early")  # the others may still get better
STATUSES = (*CONCLUDED, "pruned", "interrupted", "failed", "running", "killed", "damaged")
LARGEST = 1e60  # number that a result of ours can hold; the same as in training/meta.py


@dataclass(frozen=True)
class Run:
    """A row: what a run's folder says. What it does not say, or says wrongly, is None."""

    path: Path
    status: str  # one of STATUSES
    settings: Mapping[str, Setting] = field(default_factory=dict)  # dotted key → value, all of them
    step: int | None = None
    val_loss: float | None = None  # the last one
    best_val_loss: float | None = None
    best_step: int | None = None
    seconds: float | None = None  # in steps: evaluating and saving left out
    tokens_per_sec: float | None = None
    parameters: int | None = None
    problem: str | None = None  # what is damaged


COLUMNS = tuple(item.name for item in dataclasses.fields(Run) if item.name not in ("path", "settings", "problem"))


def read_runs(paths: Sequence[Path | str] = (layout.OUTPUTS,)) -> list[Run]:
    """All runs in and under some folders, each once, in the order of their names.

    Raises:
        UserError: one of the folders is not there.
    """
    found: dict[str, Path] = {}
    for path in paths:
        for folder in find_folders(layout.find_run(str(path), "paths")):
            found.setdefault(os.path.realpath(folder), folder)
    return [read_run(folder) for folder in found.values()]


def find_folders(top: Path) -> Iterator[Path]:
    """The runs' folders in and under a folder, in the order of their names; links are not followed."""
    try:
        entries = sorted(os.scandir(top), key=lambda entry: _natural(entry.name))
    except OSError:
        return  # not for us to read
    names = {entry.name for entry in entries}
    if names & layout.MARKS and layout.MANIFEST not in names:
        yield top
        return
    for entry in entries:
        if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield from find_folders(top / entry.name)


def _natural(name: str) -> tuple[bool, int, str]:
    """The jobs of a sweep are numbered: 2 comes before 10."""
    numbered = name.isascii() and name.isdecimal() and len(name) < 10
    return not numbered, int(name) if numbered else 0, name


def read_run(folder: Path) -> Run:
    """One run, as far as it can be read."""
    settings, problem = _settings(folder)
    result, problem_of_result = _result(folder)
    run = Run(folder, "killed", settings, problem=problem or problem_of_result, **result["numbers"])
    last_step = settings.get("max_steps")
    ended = result["status"]
    if ended == "finished" and (run.step is None or not isinstance(last_step, int) or run.step >= last_step):
        return dataclasses.replace(run, status=ended)
    logged = read_log(folder)
    went_on = ended is None or (logged and logged[-1]["step"] > (run.step or 0))
    if layout.is_in_use(folder):
        run = _from_log(dataclasses.replace(run, status="running"), logged)
    elif went_on or ended == "finished":  # finished, and then resumed to go beyond: its config says so
        run = _from_log(run, logged)
    else:
        return dataclasses.replace(run, status=ended)
    return dataclasses.replace(run, status="damaged") if problem and run.status == "killed" else run


def read_log(folder: Path, name: str = layout.METRICS) -> list[dict[str, Any]]:
    """The lines of a run's log that can be read."""
    try:
        return log.read(folder / name)
    except OSError:
        return []


def _settings(folder: Path) -> tuple[dict[str, Setting], str | None]:
    """All settings by dotted key, and what is wrong with the file."""
    try:
        data = storage.parse_json(storage.read_bytes(folder / layout.CONFIG), layout.CONFIG)
    except UserError as error:
        return {}, str(error)
    if not isinstance(data, dict):
        return {}, f"{layout.CONFIG}: must be an object"
    return {**_absent(), **dict(_flat(data))}, None


@functools.cache
def _absent() -> Mapping[str, Setting]:
    return absent_values(TrainConfig)


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Setting]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, ", ".join(map(str, value)) if isinstance(value, list) else value


def _result(folder: Path) -> tuple[dict[str, Any], str | None]:
    """`result.json`: its status, and its numbers as far as they are numbers; what is wrong with it."""
    nothing: dict[str, Any] = {"status": None, "numbers": {}}
    path = folder / layout.RESULT
    if not path.exists():
        return nothing, None
    try:
        data = storage.parse_json(storage.read_bytes(path), layout.RESULT)
    except UserError as error:
        return nothing, str(error)
    if not isinstance(data, dict) or data.get("status") not in STATUSES:
        return nothing, f"{layout.RESULT}: no status in it"
    kinds = {item.name: (int, float) if "float" in str(item.type) else (int,) for item in dataclasses.fields(Run)}
    numbers = {name: data[name] for name in COLUMNS[1:] if type(data.get(name)) in kinds[name]}
    numbers = {name: value for name, value in numbers.items() if abs(value) <= LARGEST}
    return {"status": data["status"], "numbers": numbers}, None


def _from_log(run: Run, logged: Sequence[Mapping[str, Any]]) -> Run:
    """A run that has not ended: what its logs say is newer than what its result says."""
    evaluated = [line for line in logged if "val_loss" in line]
    timed = [line for line in read_log(run.path, layout.TIMINGS) if line.get("seconds", 0) > 0]
    steps = [line["step"] for line in logged[-1:]]
    steps += [int(layout.STEP_NAME.fullmatch(path.name)[1]) for path in layout.step_folders(run.path)[:1]]  # type: ignore[index]
    best = min(evaluated, key=lambda line: line["val_loss"], default={})
    speed = None
    if timed:
        tokens = next((line["tokens"] for line in logged if line["step"] == timed[-1]["step"] and "tokens" in line), 0)
        speed = tokens / timed[-1]["seconds"] or None
    return dataclasses.replace(
        run,
        step=max(steps, default=0),
        val_loss=evaluated[-1]["val_loss"] if evaluated else None,
        best_val_loss=best.get("val_loss"),
        best_step=best.get("step"),
        seconds=timed[-1]["seconds"] if timed else None,
        tokens_per_sec=speed,
    )


def val_curve(run: Run) -> list[tuple[float, float]]:
    """(step, val_loss) of each evaluation that the run has logged."""
    return [(line["step"], line["val_loss"]) for line in read_log(run.path) if "val_loss" in line]
