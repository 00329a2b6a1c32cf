"""The commands: one module per verb with `run(config, invocation)`, which connects the parts and prints."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Invocation:
    """How a verb was called, beyond its config."""

    typed: tuple[str, ...] = ()  # keys and groups on the command line
    sweep_dir: Path | None = None  # folder of this job, in a sweep
    worker: Callable[[], int] | None = None  # number of this process, where jobs run in parallel
    compose: Callable[[str, Sequence[str]], dict[str, Any]] | None = None  # (verb, words) → dotted key → value
    hydra_files: dict[str, str] = field(default_factory=dict)  # contents of `.hydra/`: name → YAML
