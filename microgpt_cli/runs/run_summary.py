"""`about.json`: the text of a run, what counting reaches on it, the model's parts. Written by `microgpt train`."""

from pathlib import Path
from typing import Any

from microgpt_cli.errors import UserError
from microgpt_cli.runs import layout, storage
from microgpt_cli.runs.diagnose import Setting

BASELINES = ("uniform", "unigram", "bigram")
COUNTS = ("vocab_size", "train_tokens", "val_tokens", "parameters")
LARGEST = 1e60


def read_about(run: Path) -> dict[str, Any] | None:
    """What `about.json` of a run says; None for a run that is older than this file.

    Raises:
        UserError: it is damaged.
    """
    path = run / layout.ABOUT
    if not path.exists():
        return None
    about = storage.parse_json(storage.read_bytes(path), str(path))
    if not (
        isinstance(about, dict)
        and all(isinstance(about.get(name), str) for name in ("text", "unit"))
        and all(type(about.get(name)) is int and 0 < about[name] < LARGEST for name in COUNTS)
        and _is_table(about.get("baselines"), float)
        and set(about["baselines"]) == set(BASELINES)
        and _is_table(about.get("parts"), int)
        and _is_table(about.get("machine"), str)
    ):
        raise UserError(f"{path}: damaged: not what train writes there")
    return about


def _is_table(value: Any, kind: type) -> bool:
    return isinstance(value, dict) and all(type(item) is kind for item in value.values())


def setting_of(about: dict[str, Any]) -> Setting:
    """What to judge a run by."""
    counts = {name: about[name] for name in ("unit", "train_tokens", "val_tokens", "parameters")}
    return Setting(**about["baselines"], **counts)
