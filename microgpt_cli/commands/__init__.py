"""One file a verb, each a `run(config, invocation)`: wiring and words, no arithmetic."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Invocation:
    """How a verb was called, beyond its config."""

    typed: tuple[str, ...] = ()  # the keys and groups that were given a value
    sweep_dir: Path | None = None  # in a sweep: the folder of this job
    worker: Callable[[], int] | None = None  # in a sweep whose jobs run side by side: a number that is this process's
    compose: Callable[[str, Sequence[str]], dict[str, Any]] | None = None  # (verb, words) → dotted key → value
    hydra_files: dict[str, str] = field(default_factory=dict)  # what Hydra keeps in `.hydra/`: name → YAML
