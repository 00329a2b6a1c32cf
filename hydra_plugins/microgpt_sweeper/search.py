"""`hydra/sweeper=optuna`: settings drawn by Optuna, and runs that do worse than others ended early.

What is searched over is typed in Hydra's grammar: `tag(log,interval(1e-4,1e-1))`, `int(interval(2,8))`,
`range(2,9,2)`, `choice(micro,mini)` or `micro,mini`. Without `from __future__ import annotations`: see grid.py.
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
    from microgpt_cli.sweeps.study import Axis, Settings, Study

MOST_VALUES = 10_000  # of a range
MOST_PROBES = 64  # values of a key that are looked at before the first trial
MOST_AT_ONCE = 8  # trials, unless more are asked for: those drawn together can't learn from each other
TRIALS = 20  # unless said


@dataclass
class OptunaConf:
    """The `sweep.` keys; what they mean stands in microgpt_cli/config.py."""

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
    """Draws settings, launches them in batches, and tells the study what became of them."""

    KIND = "optuna"
    options: "SearchConfig"

    def schema(self) -> "type[SearchConfig]":
        from microgpt_cli.config import SearchConfig

        return SearchConfig

    @property
    def count(self) -> int:
        whole = math.prod(len(axis.values) for axis in self.axes)
        wanted = self.search_settings.n_trials
        return wanted if self.options.sampler != "grid" and wanted else min(wanted or whole, whole)

    def _begin(self, arguments: list[str]) -> None:
        from microgpt_cli.sweeps import record

        if self.options.resume is not None:  # what is not typed stays as it was
            old = record.read(record.find(self.options.resume)).settings
            typed = {word.partition("=")[0] for word in self.config.hydra.overrides.hydra}
            names = [field.name for field in dataclasses.fields(self.options) if f"sweep.{field.name}" in old]
            kept = {name: old[f"sweep.{name}"] for name in names if f"hydra.sweeper.{name}" not in typed}
            self.options = dataclasses.replace(self.options, **kept)
        super()._begin(arguments)
        self.record.settings |= self._own_settings()

    def _own_settings(self) -> dict[str, Any]:
        names = ("sampler", "n_trials", "pruner", "min_steps", "keep_one_in", "seed")
        return {f"sweep.{name}": getattr(self.options, name) for name in names}

    def plan(self, arguments: list[str]) -> "Record":
        from microgpt_cli.errors import UserError
        from microgpt_cli.sweeps import study
        from microgpt_cli.sweeps.record import Record, flat

        study.require_optuna()
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides(arguments)
        self.axes = [axis_of(override) for override in overrides if override.is_sweep_override()]
        self.fixed = [
            f"{override.get_key_element()}={override.get_value_element_as_str()}"
            for override in overrides
            if not override.is_sweep_override()
        ]
        if not self.axes:
            raise UserError("nothing to search over; give a key several values, as in optim.learning_rate=1e-3,3e-3")
        if self.options.sampler == "grid":
            study.grid(self.axes, 0)
        first, *others = [self.compose([*self.fixed, *words]) for words in self._probes()]
        self.search_settings = self._settings(first)
        return Record(
            sweeper=self.KIND,
            words=arguments,
            space={axis.key: axis.described() for axis in self.axes},
            settings=flat(dataclasses.asdict(first)) | self._own_settings(),
            texts=self.texts([first, *others]),
            jobs=[],
        )

    def _probes(self) -> Iterable[list[str]]:
        """What is composed beforehand: each value and each end once, so that a mistake in one costs no trial."""
        ends = [axis.values or (axis.text(axis.low), axis.text(axis.high)) for axis in self.axes]
        first = [f"{axis.key}={texts[0]}" for axis, texts in zip(self.axes, ends, strict=True)]
        yield first
        for i, (axis, texts) in enumerate(zip(self.axes, ends, strict=True)):
            for text in texts[1:MOST_PROBES]:
                yield [*first[:i], f"{axis.key}={text}", *first[i + 1 :]]

    def _settings(self, config: "TrainConfig") -> "Settings":
        """Raises `UserError` if runs are not evaluated along the way, and so can't be pruned."""
        from microgpt_cli.errors import UserError
        from microgpt_cli.sweeps.study import Settings, first_rung

        options, interval = self.options, config.eval_interval
        if options.pruner != "none" and not 0 < interval < config.max_steps:
            raise UserError(
                f"sweep.pruner={options.pruner}: eval_interval={interval} gives no evaluation before max_steps="
                f"{config.max_steps}; take eval_interval={max(1, config.max_steps // 12)}, or sweep.pruner=none"
            )
        return Settings(
            sampler=options.sampler,
            pruner=options.pruner,
            n_trials=options.n_trials or (None if options.sampler == "grid" else TRIALS),
            min_steps=options.min_steps or first_rung(config.max_steps, interval, config.optim.warmup_steps),
            keep_one_in=options.keep_one_in,
            seed=options.seed,
        )

    def search(self) -> None:
        from microgpt_cli.commands import search as show
        from microgpt_cli.sweeps import job
        from microgpt_cli.sweeps.record import Job
        from microgpt_cli.sweeps.study import Study

        study = Study(self.sweep_folder, self.axes, self.search_settings)
        # drawn, but not noted in the record, by a process that was killed just then
        lost = range(len(self.record.jobs), study.begun)
        self.add([Job([*self.fixed, *study.overrides(number)]) for number in lost])
        at_once = self.options.at_once or self._launcher_runs()
        self._run(study, [n for n in study.ended if job.look(self._folder(n)).status in job.DONE])
        self._run(study, study.running)
        while study.begun < study.n_trials and self.goes_on:
            drawn = [study.ask() for _ in range(min(at_once, study.n_trials - study.begun))]
            self._run(study, self.add([Job([*self.fixed, *words]) for _, words in drawn]))
        self._show.look()
        show.report(study, self.sweep_folder, self._show.say)

    def _run(self, study: "Study", numbers: list[int]) -> None:
        """Launch trials, and tell the study of those that ended."""
        from microgpt_cli.errors import UserError

        for number in numbers:
            with contextlib.suppress(UserError):  # values that don't go together: the job says so, and the others go on
                self.compose(self.record.jobs[number].overrides)
        for number, look in zip(numbers, self.launch(numbers), strict=True):
            study.tell(number, look.status, look.best_val_loss)

    def _launcher_runs(self) -> int:
        """How many jobs the launcher runs at once; a batch waits for its slowest, and learns from none of its own."""
        launcher = self.config.hydra.launcher
        count = launcher.get("n_jobs") or launcher.get("array_parallelism") or 1
        return min(MOST_AT_ONCE, count if count > 0 else os.cpu_count() or 1)


def axis_of(override: "Override") -> "Axis":
    """What is searched over, from its override.

    Raises:
        UserError: ends that are none, no values, or a logarithm of what has none.
    """
    from microgpt_cli.errors import UserError
    from microgpt_cli.sweeps.study import Axis

    key, sweep, line = override.get_key_element(), override.value(), override.input_line
    tags = set(getattr(sweep, "tags", set()))
    if tags - {"log"}:
        raise UserError(f"{line}: unknown tag {sorted(tags - {'log'})[0]}; the one there is, is log")
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        step = None
        values: tuple[str, ...] = ()
    elif isinstance(sweep, RangeSweep):
        values = tuple(text for text, _ in zip(override.sweep_string_iterator(), range(MOST_VALUES), strict=False))
        whole = all(isinstance(number, int) for number in (sweep.start, sweep.stop, sweep.step))
        numbers = [int(text) if whole else float(text) for text in values]
        low, high, step = min(numbers, default=None), max(numbers, default=None), abs(sweep.step)
    else:
        values = tuple(override.sweep_string_iterator())
        if tags:
            raise UserError(f"{line}: a list has no logarithm; give an interval: {key}=tag(log,interval(1e-4,1e-1))")
        return Axis(key, values)
    if low is None or high is None or not low <= high:
        raise UserError(f"{line}: no numbers in it; the lower end comes first")
    if "log" in tags and (low <= 0 or step not in (None, 1)):
        raise UserError(f"{line}: on a logarithmic scale numbers are above 0 and without a step")
    return Axis(key, values, low, high, step, "log" in tags)
