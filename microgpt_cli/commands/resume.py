"""The configuration of a run that is resumed, or started from another: the stored one plus overrides."""

import dataclasses
from pathlib import Path
from typing import Any

from microgpt_cli.config import TrainConfig
from microgpt_cli.config.schema import from_json, leaves
from microgpt_cli.errors import UserError
from microgpt_cli.runs import layout, storage

# Keys that may change on resume; the text itself is compared by its checksum.
CHANGEABLE = {
    *("max_steps", "log_interval", "eval_interval", "eval_tokens", "checkpoint_interval", "sample_interval"),
    *("early_stop_patience", "logger", "device", "dtype", "engine", "compile", "threads"),
    *("data.source", "data.path", "data.folder", "data.cache_dir"),
}
BATCH = {"batch_size", "grad_accum_steps"}  # may change if their product stays: see _same_batch
IDENTITY = {"resume"}  # names the run


def _typed_changes(typed: TrainConfig, stored: TrainConfig, names: tuple[str, ...]) -> dict[str, tuple[Any, Any]]:
    """Keys given directly or through a group whose value differs from the run's: key → (old, new)."""
    old, new = dataclasses.asdict(stored), dataclasses.asdict(typed)
    changes = {}
    for leaf in leaves(TrainConfig):
        node, _, key = leaf.name.rpartition(".")
        sources = {leaf.name, node, "experiment"} | ({"arch"} if node == "model" else set())
        before, after = (old[node][key], new[node][key]) if node else (old[key], new[key])
        if sources & set(names) and before != after:
            changes[leaf.name] = (before, after)
    return changes


def _changed(config: TrainConfig, values: dict[str, Any], where: str) -> TrainConfig:
    """A config with the values of some dotted keys replaced."""
    data = dataclasses.asdict(config)
    for name, value in values.items():
        node, _, key = name.rpartition(".")
        (data[node] if node else data)[key] = value
    return from_json(TrainConfig, data, where)


def resumed_config(typed: TrainConfig, stored: TrainConfig, names: tuple[str, ...], run_folder: Path) -> TrainConfig:
    """The config of the run with the overrides applied.

    Raises:
        UserError: an override changes a key that must stay.
    """
    changes = {name: pair for name, pair in _typed_changes(typed, stored, names).items() if name not in IDENTITY}
    may_change = CHANGEABLE | (BATCH if _same_batch(stored, changes) else set())
    refused = [f"{name}={new} (the run has {old})" for name, (old, new) in changes.items() if name not in may_change]
    if refused:
        hint = " (batch_size × grad_accum_steps must stay the same)" if BATCH & set(changes) else ""
        raise UserError(
            f"resume={run_folder}: can't be changed on resume: {', '.join(refused)}{hint}; omit it, or start a new "
            f"run with from_run={run_folder}"
        )
    here = {"data.cache_dir": typed.data.cache_dir}  # a property of this machine, not of the run
    return _changed(stored, here | {name: new for name, (_, new) in changes.items()}, str(run_folder / layout.CONFIG))


def _same_batch(stored: TrainConfig, changes: dict[str, tuple[Any, Any]]) -> bool:
    """Whether a step still has as many sequences; the split into micro-batches changes only rounding."""
    batch_size, grad_accum_steps = (changes.get(name, (None, getattr(stored, name)))[1] for name in sorted(BATCH))
    return bool(batch_size * grad_accum_steps == stored.batch_size * stored.grad_accum_steps)


def config_from_run(typed: TrainConfig, names: tuple[str, ...]) -> TrainConfig:
    """The configuration of another run with the overrides applied."""
    assert typed.from_run is not None
    path = layout.find_run(typed.from_run, "from_run") / layout.CONFIG
    stored = from_json(TrainConfig, storage.parse_json(storage.read_bytes(path), str(path)), str(path))
    changes = {name: new for name, (_, new) in _typed_changes(typed, stored, names).items()}
    return _changed(stored, {"out_dir": None, "resume": None, "from_run": typed.from_run} | changes, str(path))
