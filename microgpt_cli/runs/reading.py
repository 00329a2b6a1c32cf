"""Read the state of runs from their folders. No torch here.

Folders are only read, and a damaged run is listed with the status "damaged". For a run that has ended, only the files
`config.json` and `result.json` are opened; for others the lock and the logs are checked too, as they may be training.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microgpt_cli.config import TrainConfig
from microgpt_cli.config.schema import absent_values, flatten
from microgpt_cli.errors import UserError
from microgpt_cli.runs import layout, log, storage

Setting = bool | int | float | str | None
CONCLUDED = ("finished", "stopped_early")  # runs with any other status may be continued
TEXT = "text_sha256"
SHA256 = re.compile("[0-9a-f]{64}")
STATUSES = (*CONCLUDED, "pruned", "interrupted", "failed", "running", "killed", "damaged")


@dataclass(frozen=True)
class Run:
    """The state of a run; values that are missing from its folder or invalid are None."""

    path: Path
    status: str  # one of STATUSES
    settings: Mapping[str, Setting] = field(default_factory=dict)  # every dotted key → value
    step: int | None = None
    val_loss: float | None = None  # in the last evaluation
    best_val_loss: float | None = None
    best_step: int | None = None
    seconds: float | None = None  # in training steps, without evaluating and saving
    tokens_per_sec: float | None = None
    parameters: int | None = None
    val_tokens: int | None = None  # that an evaluation predicts
    text_sha256: str | None = None  # of the text, whatever its name; None in runs of old versions
    problem: str | None = None  # what is damaged, if anything
    swept: Mapping[str, str] = field(default_factory=dict)  # key or group that its sweep varies → value as typed


COLUMNS = tuple(
    item.name for item in dataclasses.fields(Run) if item.name not in ("path", "settings", "swept", "problem")
)


def read_runs(paths: Sequence[Path | str] = (layout.OUTPUTS,)) -> list[Run]:
    """All runs in some folders and their subfolders, each once, ordered by name.

    Raises:
        UserError: one of the folders does not exist.
    """
    found: dict[str, Path] = {}
    for path in paths:
        for folder in find_folders(layout.find_run(str(path), "paths")):
            found.setdefault(os.path.realpath(folder), folder)
    sweeps: dict[Path, Mapping[str, Mapping[str, str]]] = {}
    for folder in found.values():
        if folder.parent not in sweeps:
            sweeps[folder.parent] = read_swept(folder.parent)
    return [
        dataclasses.replace(read_run(folder), swept=sweeps[folder.parent].get(folder.name, {}))
        for folder in found.values()
    ]


def read_swept(sweep: Path) -> dict[str, dict[str, str]]:
    """Job → swept key → value, from the record of a sweep; empty if the folder has no valid one."""
    if not (sweep / layout.SWEEP).is_file():
        return {}
    try:
        data = storage.parse_json(storage.read_bytes(sweep / layout.SWEEP), layout.SWEEP)
        return {
            str(number): {
                key: value
                for key, _, value in (str(word).partition("=") for word in job["overrides"])
                if key in data["space"]
            }
            for number, job in enumerate(data["jobs"])
        }
    except (UserError, TypeError, KeyError):
        return {}


def find_folders(top: Path) -> Iterator[Path]:
    """The folders of runs in a folder and its subfolders, ordered by name; links are not followed."""
    try:
        entries = sorted(os.scandir(top), key=lambda entry: _natural_order(entry.name))
    except OSError:
        return  # not readable
    names = {entry.name for entry in entries}
    if names & layout.RUN_FILES and layout.MANIFEST not in names:
        yield top
        return
    for entry in entries:
        if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield from find_folders(top / entry.name)


def _natural_order(name: str) -> tuple[bool, int, str]:
    """Sort key for the numbered jobs of a sweep: 2 before 10."""
    numbered = name.isascii() and name.isdecimal() and len(name) < 10
    return not numbered, int(name) if numbered else 0, name


def read_run(folder: Path) -> Run:
    """Read one run."""
    settings, problem = _settings(folder)
    result, problem_of_result = _result(folder)
    run = Run(folder, "killed", settings, problem=problem or problem_of_result, **result["numbers"])
    last_step = settings.get("max_steps")
    ended = result["status"]
    if ended == "finished" and (run.step is None or not isinstance(last_step, int) or run.step >= last_step):
        return dataclasses.replace(run, status=ended)
    logged = read_log(folder)
    if ended is None:
        run = dataclasses.replace(run, text_sha256=_text_of_about(folder))
    continued = ended is None or (logged and logged[-1]["step"] > (run.step or 0))
    if layout.is_in_use(folder):
        run = _from_log(dataclasses.replace(run, status="running"), logged)
    elif continued or ended == "finished":  # finished and later resumed with a larger max_steps
        run = _from_log(run, logged)
    else:
        return dataclasses.replace(run, status=ended)
    return dataclasses.replace(run, status="damaged") if problem and run.status == "killed" else run


def read_log(folder: Path, name: str = layout.METRICS) -> list[dict[str, Any]]:
    """The valid lines of a run's log; none if the file can't be read."""
    try:
        return log.read(folder / name)
    except OSError:
        return []


def _settings(folder: Path) -> tuple[dict[str, Setting], str | None]:
    """All settings by dotted key, and the problem with the file if there is one."""
    try:
        data = storage.parse_json(storage.read_bytes(folder / layout.CONFIG), layout.CONFIG)
    except UserError as error:
        return {}, str(error)
    if not isinstance(data, dict):
        return {}, f"{layout.CONFIG}: must be an object"
    values = {key: ", ".join(map(str, v)) if isinstance(v, list) else v for key, v in flatten(data).items()}
    return {**_absent(), **values}, None


@functools.cache
def _absent() -> Mapping[str, Setting]:
    return absent_values(TrainConfig)


def _result(folder: Path) -> tuple[dict[str, Any], str | None]:
    """The status and the valid numbers of `result.json`, and the problem with the file if there is one."""
    nothing: dict[str, Any] = {"status": None, "numbers": {}}
    path = folder / layout.RESULT
    if not path.exists():
        return nothing, None
    try:
        data = storage.parse_json(storage.read_bytes(path), layout.RESULT)
    except UserError as error:
        return nothing, str(error)
    if not isinstance(data, dict) or data.get("status") not in STATUSES:
        return nothing, f"{layout.RESULT}: has no valid status"
    kinds = {item.name: (int, float) if "float" in str(item.type) else (int,) for item in dataclasses.fields(Run)}
    numbers = {name: data[name] for name in COLUMNS[1:] if type(data.get(name)) in kinds[name]}
    numbers = {name: value for name, value in numbers.items() if abs(value) <= storage.LARGEST_NUMBER}
    return {"status": data["status"], "numbers": numbers | {TEXT: _text_sha256(data)}}, None


def _text_sha256(data: Mapping[str, Any]) -> str | None:
    """The checksum of the text in `result.json` or `about.json`, if there is one."""
    found = data.get(TEXT)
    return found if isinstance(found, str) and SHA256.fullmatch(found) else None


def _text_of_about(folder: Path) -> str | None:
    try:
        about = storage.parse_json(storage.read_bytes(folder / layout.ABOUT), layout.ABOUT)
    except UserError:
        return None
    return _text_sha256(about) if isinstance(about, dict) else None


def _from_log(run: Run, logged: Sequence[Mapping[str, Any]]) -> Run:
    """A run that has not ended, updated from its logs, which are newer than its result."""
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
    """(step, val_loss) of each logged evaluation."""
    return [(line["step"], line["val_loss"]) for line in read_log(run.path) if "val_loss" in line]
