"""Read `about.json`, which `microgpt train` writes: the text, its baseline losses, the parameters of each module."""

from pathlib import Path
from typing import Any

from microgpt_cli.errors import UserError
from microgpt_cli.runs import layout, storage
from microgpt_cli.runs.diagnose import RunContext

BASELINES = ("uniform", "unigram", "bigram")
COUNTS = ("vocab_size", "train_tokens", "val_tokens", "parameters")


def read_run_summary(run: Path) -> dict[str, Any] | None:
    """The contents of `about.json`; None for runs of versions that did not write it.

    Raises:
        UserError: the file is damaged.
    """
    path = run / layout.ABOUT
    if not path.exists():
        return None
    about = storage.parse_json(storage.read_bytes(path), str(path))
    if not (
        isinstance(about, dict)
        and all(isinstance(about.get(name), str) for name in ("text", "unit"))
        and all(type(about.get(name)) is int and 0 < about[name] < storage.LARGEST_NUMBER for name in COUNTS)
        and _is_table(about.get("baselines"), float)
        and set(about["baselines"]) == set(BASELINES)
        and _is_table(about.get("parts"), int)
        and _is_table(about.get("machine"), str)
    ):
        raise UserError(f"{path}: damaged: not a file that microgpt train wrote")
    return about


def _is_table(value: Any, kind: type) -> bool:
    return isinstance(value, dict) and all(type(item) is kind for item in value.values())


def run_context(about: dict[str, Any]) -> RunContext:
    """The baselines and sizes for `diagnose`."""
    counts = {name: about[name] for name in ("unit", "train_tokens", "val_tokens", "parameters")}
    return RunContext(**about["baselines"], **counts)
