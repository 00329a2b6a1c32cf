"""What a sweep consists of, kept in its folder, so that it can be gone on with and not mistaken for another.

outputs/sweeps/DATE_TIME/
    sweep.json         what was typed, what is swept over, every job's overrides and settings
    0/ 1/ 2/ …         a run's folder for each job: see runs/folder.py, and here job.py for what is added to it
    .lock  .stop       one process drives a sweep; no further job shall begin
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

RECORD = "sweep.json"
SWEEPS = layout.OUTPUTS / "sweeps"
FORMAT = 1
MOST_SHOWN = 8  # differences in a message
# What may be another when a sweep is gone on with: where it computes, and where data is kept.
MAY_CHANGE = {"device", "engine", "compile", "threads", "data.folder", "data.cache_dir", "sweep.n_trials"}


@dataclass
class Job:
    """One run of a sweep.

    Args:
        overrides: what is set for it, in Hydra's grammar.
        settings: the keys whose values differ from those of the sweep's first job, where they were looked at.
    """

    overrides: list[str]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Record:
    """What `sweep.json` says.

    Args:
        sweeper: the kind of sweep: "grid".
        words: what was typed, to go on without typing it again.
        space: what is swept over: key → values, or whatever says the same for a sweeper that draws.
        settings: every key of the first job, dotted.
        texts: the texts that jobs learn from: name → sha256.
        jobs: in the order of their numbers; a sweeper that draws adds to them as it goes.
    """

    sweeper: str
    words: list[str]
    space: dict[str, Any]
    settings: dict[str, Any]
    texts: dict[str, str]
    jobs: list[Job]

    def write(self, sweep: Path) -> None:
        """Put it into the sweep's folder, durably."""
        storage.replace(sweep / RECORD, storage.json_bytes({"format": FORMAT, **dataclasses.asdict(self)}))

    def differences(self, new: Record) -> list[str]:
        """What `new` would do otherwise, each as `key old → new`; nothing if it is the same sweep."""
        found = [f"sweeper {self.sweeper} → {new.sweeper}"] if self.sweeper != new.sweeper else []
        swept = _changes(self.space, new.space)
        found += [f"{key} {change}" for key, change in swept.items()]
        # A group that is swept otherwise, `model` say, has changed keys `model.…` too: told once.
        told = {*self.space, *swept} | MAY_CHANGE
        for key, change in _changes(self.settings, new.settings).items():
            if key not in told and key.partition(".")[0] not in swept:
                found.append(f"{key} {change}")
        for number, (old, job) in enumerate(zip(self.jobs, new.jobs, strict=False)):
            for key, change in _changes(old.settings, job.settings).items():
                if not found and key not in told:
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
    """Raises `UserError` that shows the differences if `new` is not the sweep that was begun in the folder."""
    found = old.differences(new)
    if found:
        more = f", and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
        raise UserError(
            f"sweep.resume={sweep}: another sweep was begun there: {'; '.join(found[:MOST_SHOWN])}{more}; "
            "give the same command, or begin a new sweep without sweep.resume"
        )


def find(name: str) -> Path:
    """The folder of a sweep: a path, or `latest`. Raises `UserError` if there is none."""
    if name == "latest" and not os.path.exists(name):
        found = sorted(path.parent for path in SWEEPS.glob(f"*/{RECORD}"))
        if not found:
            raise UserError(f"sweep.resume={name}: no sweep under {SWEEPS}/ yet; leave it out to begin one")
        return found[-1]
    sweep = Path(os.path.expanduser(name))
    if not os.path.isfile(sweep / RECORD):
        kind = "no sweep in this folder" if os.path.isdir(sweep) else "no such folder"
        raise UserError(f"sweep.resume={name}: {kind}; give a sweep's, as in {SWEEPS}/…")
    return sweep


def read(sweep: Path) -> Record:
    """Raises `UserError` if `sweep.json` is not one of ours."""
    path = sweep / RECORD
    data = storage.parse_json(storage.read_bytes(path), str(path))
    problem = _problem(data)
    if problem:
        raise UserError(f"{path}: {problem}")
    jobs = [Job(job["overrides"], job["settings"]) for job in data.pop("jobs")]
    del data["format"]
    return Record(**data, jobs=jobs)


def _problem(data: Any) -> str:
    """What is wrong with a record, or nothing."""
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


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted key → value."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def changes_of(settings: Sequence[Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """For each job's settings, those that differ from the first one's; nothing for a job that was not looked at."""
    first = settings[0] or {}
    return [{k: v for k, v in job.items() if first.get(k) != v} if job else {} for job in settings]
