"""The record of a sweep in its folder, from which it is resumed and checked against the resuming command.

outputs/sweeps/DATE_TIME/
    sweep.json         the command, the search space, every job's overrides and settings
    0/ 1/ 2/ …         a run's folder for each job: see runs/layout.py, and job.py for additional files
    .lock  .stop       locked by the sweep's process; start no further job
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microgpt_cli.errors import UserError
from microgpt_cli.runs import layout, storage

RECORD = layout.SWEEP
SWEEPS = layout.OUTPUTS / "sweeps"
FORMAT = 1
MAX_SHOWN = 8  # differences in a message
# Settings that may change when a sweep is resumed: the hardware, and where data is stored.
MAY_CHANGE = {"device", "engine", "compile", "threads", "data.folder", "data.cache_dir", "sweep.n_trials"}


@dataclass
class Job:
    """One run of a sweep.

    Args:
        overrides: in Hydra's grammar.
        settings: the keys whose values differ from those of the sweep's first job, if its config was composed.
    """

    overrides: list[str]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Record:
    """The contents of `sweep.json`.

    Args:
        sweeper: "grid" or "optuna".
        words: the overrides as typed, so that resuming does not need them.
        space: key → values, or a description of the interval for a search.
        settings: every dotted key of the first job.
        texts: name → sha256 of the texts that jobs train on.
        jobs: by number; a search adds jobs as it proceeds.
    """

    sweeper: str
    words: list[str]
    space: dict[str, Any]
    settings: dict[str, Any]
    texts: dict[str, str]
    jobs: list[Job]

    def write(self, sweep: Path) -> None:
        """Write it to the sweep's folder, durably."""
        storage.replace(sweep / RECORD, storage.json_bytes({"format": FORMAT, **dataclasses.asdict(self)}))

    def differences(self, new: Record) -> list[str]:
        """How `new` differs, each as `key old → new`; empty if it is the same sweep."""
        found = [f"sweeper {self.sweeper} → {new.sweeper}"] if self.sweeper != new.sweeper else []
        swept = _changes(self.space, new.space)
        found += [f"{key} {change}" for key, change in swept.items()]
        # A group whose values changed, such as `model`, implies changed keys `model.…`: report only the group.
        reported = {*self.space, *swept} | MAY_CHANGE
        for key, change in _changes(self.settings, new.settings).items():
            if key not in reported and key.partition(".")[0] not in swept:
                found.append(f"{key} {change}")
        for number, (old, job) in enumerate(zip(self.jobs, new.jobs, strict=False)):
            for key, change in _changes(old.settings, job.settings).items():
                if not found and key not in reported:
                    found.append(f"{key} of job {number} {change}")
        return found + [
            f"the text {name} has changed" for name in self.texts if new.texts.get(name) != self.texts[name]
        ]


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Key → `old → new`, where they differ."""
    keys = dict.fromkeys([*old, *new])
    return {key: f"{_shown(old, key)} → {_shown(new, key)}" for key in keys if _shown(old, key) != _shown(new, key)}


def _shown(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key, "(not given)")
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def refuse_if_other(sweep: Path, old: Record, new: Record) -> None:
    """Raises `UserError` with the differences if `new` is not the sweep that was started in the folder."""
    found = old.differences(new)
    if found:
        more = f", and {len(found) - MAX_SHOWN} more" if len(found) > MAX_SHOWN else ""
        raise UserError(
            f"sweep.resume={sweep}: this folder contains a different sweep: {'; '.join(found[:MAX_SHOWN])}{more}; "
            "give the same command, or start a new sweep without sweep.resume"
        )


def find(name: str) -> Path:
    """The folder of a sweep: a path, or `latest`. Raises `UserError` if there is none."""
    if name == "latest" and not os.path.exists(name):
        found = sorted(path.parent for path in SWEEPS.glob(f"*/{RECORD}"))
        if not found:
            raise UserError(f"sweep.resume={name}: no sweep in {SWEEPS}/ yet; leave it out to start one")
        return found[-1]
    sweep = Path(os.path.expanduser(name))
    if not os.path.isfile(sweep / RECORD):
        kind = "no sweep in this folder" if os.path.isdir(sweep) else "no such folder"
        raise UserError(f"sweep.resume={name}: {kind}; give a sweep's, as in {SWEEPS}/…")
    return sweep


def read(sweep: Path) -> Record:
    """Read `sweep.json`. Raises `UserError` if it is invalid."""
    path = sweep / RECORD
    data = storage.parse_json(storage.read_bytes(path), str(path))
    problem = _problem(data)
    if problem:
        raise UserError(f"{path}: {problem}")
    jobs = [Job(job["overrides"], job["settings"]) for job in data.pop("jobs")]
    del data["format"]
    return Record(**data, jobs=jobs)


def _problem(data: Any) -> str:
    """The problem with a record, or an empty string."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        return f"not of format {FORMAT}"
    kinds = {"sweeper": str, "words": list, "space": dict, "settings": dict, "texts": dict, "jobs": list}
    if set(data) != {"format", *kinds}:
        return f"must have the keys {', '.join(['format', *kinds])}"
    wrong = [name for name, kind in kinds.items() if not isinstance(data[name], kind)]
    wrong = wrong or [name for name in ("words", "texts") if not _are_texts(data[name])]
    for job in data["jobs"] if not wrong else ():
        if not (
            isinstance(job, dict)
            and set(job) == {"overrides", "settings"}
            and _are_texts(job["overrides"])
            and isinstance(job["settings"], dict)
        ):
            wrong.append("jobs")
    return f"{wrong[0]} is of a wrong type" if wrong else ""


def _are_texts(values: Any) -> bool:
    texts = values.values() if isinstance(values, dict) else values
    return isinstance(texts, Iterable) and all(isinstance(text, str) for text in texts)


def job_folder(sweep: Path, number: int) -> Path:
    return sweep / str(number)


def changes_of(settings: Sequence[Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """For each job, the settings that differ from the first one's; empty for a job that was not composed."""
    first = settings[0] or {}
    return [{k: v for k, v in job.items() if first.get(k) != v} if job else {} for job in settings]
