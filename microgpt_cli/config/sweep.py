"""The keys of a sweep and of a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from microgpt_cli.config.schema import Node, key


@dataclass
class SweepConfig(Node):
    """How `microgpt train -m` sweeps: no part of a run's config; Hydra has these keys in `hydra.sweeper`."""

    NODE: ClassVar[str] = "sweep."

    resume: str | None = key("go on with the sweep in this folder, or with the newest: latest")
    fail_fast: bool = key("begin no further job after one has failed")


@dataclass
class SearchConfig(SweepConfig):
    """What `hydra/sweeper=optuna` takes beside."""

    sampler: str = key("how settings are drawn", choices=("tpe", "random", "grid"))
    n_trials: int | None = key("settings to try (null: 20, or the whole grid)", at_least=1, at_most=1 << 20)
    pruner: str = key("how runs that do worse are ended early", choices=("asha", "median", "none"))
    min_steps: int | None = key("no run is pruned before so many steps (null: those of the warm-up)", at_least=1)
    keep_one_in: int = key("asha: one run in so many goes on to so many times the steps", at_least=2, at_most=64)
    at_once: int | None = key("trials begun together (null: as many as the launcher runs at once)", at_least=1)
    seed: int = key("of the draws; the runs have a seed of their own", at_least=0)
