"""The keys of a sweep and of a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from microgpt_cli.config.schema import Node, key


@dataclass
class SweepConfig(Node):
    """How `microgpt train -m` sweeps: no part of a run's config; Hydra has these keys in `hydra.sweeper`."""

    NODE: ClassVar[str] = "sweep."

    resume: str | None = key("continue the sweep in this folder; latest: the newest sweep")
    fail_fast: bool = key("start no further job after one has failed")


@dataclass
class SearchConfig(SweepConfig):
    """What `hydra/sweeper=optuna` takes beside."""

    sampler: str = key("sampler of settings", choices=("tpe", "random", "grid"))
    n_trials: int | None = key("settings to try (null: 20, or the whole grid)", at_least=1, at_most=1 << 20)
    pruner: str = key("pruner that stops worse runs early", choices=("asha", "median", "none"))
    min_steps: int | None = key("steps before a run may be pruned (null: those of the warm-up)", at_least=1)
    keep_one_in: int = key("ASHA reduction factor", at_least=2, at_most=64)
    at_once: int | None = key("trials started together (null: as many as the launcher runs at once)", at_least=1)
    seed: int = key("random seed of the sampler, not of the runs", at_least=0)
