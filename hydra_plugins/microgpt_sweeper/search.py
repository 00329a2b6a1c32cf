"""`hydra/sweeper=optuna`: settings are sampled by Optuna, and runs that are worse than others are pruned.

The search space is given in Hydra's grammar: `tag(log,interval(1e-4,1e-1))`, `int(interval(2,8))`, `range(2,9,2)`,
`choice(micro,mini)` or `micro,mini`. No `from __future__ import annotations`: see grid.py.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, RangeSweep

from hydra_plugins.microgpt_sweeper.core import JobSweeper

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from microgpt_cli.config import SearchConfig, TrainConfig
    from microgpt_cli.sweeps.record import Record
    from microgpt_cli.sweeps.study import Dimension, Settings, Study

MAX_VALUES = 10_000  # of a range
MAX_PROBES = 64  # values of a key that are checked before the first trial
MAX_AT_ONCE = 8  # default limit of concurrent trials, which can't use each other's results
DEFAULT_TRIALS = 20


@dataclass
class OptunaConf:
    """The `sweep.` keys, documented in microgpt_cli/config."""

    _target_: str = "hydra_plugins.microgpt_sweeper.search.SearchSweeper"
    resume: str | None = None
    fail_fast: bool = False
    sampler: str = "tpe"
    n_trials: int | None = None
    pruner: str = "asha"
    min_steps: int | None = None
    keep_one_in: int = 4
    at_once: int | None = None
    seed: int = 0


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaConf, provider="microgpt")


class SearchSweeper(JobSweeper):
    """Samples settings, launches them in batches, and records the results in the study."""

    KIND = "optuna"
    options: "SearchConfig"

    def schema(self) -> "type[SearchConfig]":
        from microgpt_cli.config import SearchConfig

        return SearchConfig

    @property
    def count(self) -> int:
        grid_size = math.prod(len(dimension.values) for dimension in self.space)
        wanted = self.search_settings.n_trials
        return wanted if self.options.sampler != "grid" and wanted else min(wanted or grid_size, grid_size)

    def _start(self, arguments: list[str]) -> None:
        from microgpt_cli.sweeps import record

        if self.options.resume is not None:  # keys that are not given keep their values
            old = record.read(record.find(self.options.resume)).settings
            typed = {word.partition("=")[0] for word in self.config.hydra.overrides.hydra}
            names = [field.name for field in dataclasses.fields(self.options) if f"sweep.{field.name}" in old]
            kept = {name: old[f"sweep.{name}"] for name in names if f"hydra.sweeper.{name}" not in typed}
            self.options = dataclasses.replace(self.options, **kept)
        super()._start(arguments)
        self.record.settings |= self._own_settings()

    def _own_settings(self) -> dict[str, Any]:
        names = ("sampler", "n_trials", "pruner", "min_steps", "keep_one_in", "seed")
        return {f"sweep.{name}": getattr(self.options, name) for name in names}

    def plan(self, arguments: list[str]) -> "Record":
        from microgpt_cli.config.schema import flatten
        from microgpt_cli.errors import UserError
        from microgpt_cli.sweeps import study
        from microgpt_cli.sweeps.record import Record

        study.require_optuna()
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides(arguments)
        self.space = [dimension_of(override) for override in overrides if override.is_sweep_override()]
        self.fixed = [
            f"{override.get_key_element()}={override.get_value_element_as_str()}"
            for override in overrides
            if not override.is_sweep_override()
        ]
        if not self.space:
            raise UserError("the search space is empty; give a key several values, as in optim.learning_rate=1e-3,3e-3")
        if self.options.sampler == "grid":
            study.grid(self.space, 0)
        first, *others = [self.compose([*self.fixed, *words]) for words in self._probes()]
        self.search_settings = self._settings(first)
        return Record(
            sweeper=self.KIND,
            words=arguments,
            space={dimension.key: dimension.describe() for dimension in self.space},
            settings=flatten(dataclasses.asdict(first)) | self._own_settings(),
            texts=self.texts([first, *others]),
            jobs=[],
        )

    def _probes(self) -> Iterable[list[str]]:
        """The overrides to compose before the first trial: each value and each bound once, to detect invalid ones."""
        values = [d.values or (d.text(d.low), d.text(d.high)) for d in self.space]
        first = [f"{dimension.key}={texts[0]}" for dimension, texts in zip(self.space, values, strict=True)]
        yield first
        for i, (dimension, texts) in enumerate(zip(self.space, values, strict=True)):
            for text in texts[1:MAX_PROBES]:
                yield [*first[:i], f"{dimension.key}={text}", *first[i + 1 :]]

    def _settings(self, config: "TrainConfig") -> "Settings":
        """The settings of the search. Raises `UserError` if there is no evaluation before the end to prune at."""
        from microgpt_cli.errors import UserError
        from microgpt_cli.sweeps.study import Settings, first_rung

        options, interval = self.options, config.eval_interval
        if options.pruner != "none" and not 0 < interval < config.max_steps:
            raise UserError(
                f"sweep.pruner={options.pruner}: eval_interval={interval} gives no evaluation before max_steps="
                f"{config.max_steps}; use eval_interval={max(1, config.max_steps // 12)}, or sweep.pruner=none"
            )
        return Settings(
            sampler=options.sampler,
            pruner=options.pruner,
            n_trials=options.n_trials or (None if options.sampler == "grid" else DEFAULT_TRIALS),
            min_steps=options.min_steps or first_rung(config.max_steps, interval, config.optim.warmup_steps),
            keep_one_in=options.keep_one_in,
            seed=options.seed,
        )

    def search(self) -> None:
        from microgpt_cli.commands import search as output
        from microgpt_cli.sweeps import job
        from microgpt_cli.sweeps.record import Job
        from microgpt_cli.sweeps.study import Study

        study = Study(self.sweep_folder, self.space, self.search_settings)
        # sampled, but not yet recorded, by a process that was killed
        lost = range(len(self.record.jobs), study.sampled)
        self.add([Job([*self.fixed, *study.overrides(number)]) for number in lost])
        at_once = self.options.at_once or self._launcher_runs()
        self._run(study, [n for n in study.ended if job.read_status(self._folder(n)).status in job.DONE])
        self._run(study, study.running)
        while study.sampled < study.n_trials and self.may_start_jobs:
            trials = [study.ask() for _ in range(min(at_once, study.n_trials - study.sampled))]
            self._run(study, self.add([Job([*self.fixed, *words]) for _, words in trials]))
        self._display.poll()
        output.report(study, self.sweep_folder, self._display.say)

    def _run(self, study: "Study", numbers: list[int]) -> None:
        """Launch trials, and record the outcome of those that ended in the study."""
        from microgpt_cli.errors import UserError

        for number in numbers:
            with contextlib.suppress(UserError):  # incompatible values: the job fails, and the others continue
                self.compose(self.record.jobs[number].overrides)
        for number, end in zip(numbers, self.launch(numbers), strict=True):
            study.tell(number, end.status, end.best_val_loss)

    def _launcher_runs(self) -> int:
        """How many jobs the launcher runs at once; the trials of a batch can't use each other's results."""
        launcher = self.config.hydra.launcher
        count = launcher.get("n_jobs") or launcher.get("array_parallelism") or 1
        return min(MAX_AT_ONCE, count if count > 0 else os.cpu_count() or 1)


def dimension_of(override: "Override") -> "Dimension":
    """A dimension of the search space, from its override.

    Raises:
        UserError: invalid bounds, no values, or a logarithmic scale that is not possible.
    """
    from microgpt_cli.errors import UserError
    from microgpt_cli.sweeps.study import Dimension

    key, sweep, line = override.get_key_element(), override.value(), override.input_line
    tags = set(getattr(sweep, "tags", set()))
    if tags - {"log"}:
        raise UserError(f"{line}: unknown tag {sorted(tags - {'log'})[0]}; only the tag 'log' is supported")
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        step = None
        values: tuple[str, ...] = ()
    elif isinstance(sweep, RangeSweep):
        values = tuple(text for text, _ in zip(override.sweep_string_iterator(), range(MAX_VALUES), strict=False))
        whole = all(isinstance(number, int) for number in (sweep.start, sweep.stop, sweep.step))
        numbers = [int(text) if whole else float(text) for text in values]
        low, high, step = min(numbers, default=None), max(numbers, default=None), abs(sweep.step)
    else:
        values = tuple(override.sweep_string_iterator())
        if tags:
            raise UserError(f"{line}: a list can't be logarithmic; use an interval: {key}=tag(log,interval(1e-4,1e-1))")
        return Dimension(key, values)
    if low is None or high is None or not low <= high:
        raise UserError(f"{line}: contains no numbers; give the lower bound first")
    if "log" in tags and (low <= 0 or step not in (None, 1)):
        raise UserError(f"{line}: a logarithmic scale needs numbers above 0 and no step")
    return Dimension(key, values, low, high, step, "log" in tags)
