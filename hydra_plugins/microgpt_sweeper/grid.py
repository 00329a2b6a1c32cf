"""`hydra/sweeper=grid`, the default of `-m`: every combination of the given values.

No `from __future__ import annotations`: Hydra executes a plugin's module before it is in `sys.modules`, where
`dataclass` would look up the annotations.
"""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from hydra_plugins.microgpt_sweeper.core import JobSweeper

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from microgpt_cli.sweeps.record import Record

MAX_JOBS = 10_000
MAX_CHECKED = 64  # up to this many jobs are all composed before the first starts; beyond it, each value once


@dataclass
class GridConf:
    """The `sweep.` keys, documented in microgpt_cli/config."""

    _target_: str = "hydra_plugins.microgpt_sweeper.grid.GridSweeper"
    resume: str | None = None
    fail_fast: bool = False


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridConf, provider="microgpt")


class GridSweeper(JobSweeper):
    """Every combination of the values; those of the last key vary fastest."""

    KIND = "grid"

    def plan(self, arguments: list[str]) -> "Record":
        from microgpt_cli.config.schema import flatten
        from microgpt_cli.sweeps.record import Job, Record, changes_of

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        columns = {override.get_key_element(): _words(override) for override in parser.parse_overrides(arguments)}
        self._check_size(columns)
        jobs = [list(words) for words in itertools.product(*columns.values())]
        configs = {i: self.compose(jobs[i]) for i in _checked(jobs, columns)}
        settings = {i: flatten(dataclasses.asdict(config)) for i, config in configs.items()}
        changes = changes_of([settings.get(i) for i in range(len(jobs))])
        return Record(
            sweeper=self.KIND,
            words=arguments,
            space={key: [word.partition("=")[2] for word in words] for key, words in columns.items() if len(words) > 1},
            settings=settings[0],
            texts=self.texts(configs.values()),
            jobs=[Job(words, change) for words, change in zip(jobs, changes, strict=True)],
        )

    def search(self) -> None:
        self.launch(range(len(self.record.jobs)))

    def _check_size(self, columns: dict[str, list[str]]) -> None:
        from microgpt_cli.errors import UserError

        count = 1
        for key, words in columns.items():
            count *= len(words)
            if count == 0:
                raise UserError(f"{key}: has no values; give at least one")
            if count > MAX_JOBS:
                raise UserError(f"{key}: the sweep exceeds the limit of {MAX_JOBS:,} jobs; use fewer values")


def _words(override: "Override") -> list[str]:
    """One override per value of a sweep override."""
    from microgpt_cli.errors import UserError

    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise UserError(f"{override.input_line}: a grid needs single values, as in {key}=1,2,3 or {key}=range(5)")
    return [f"{key}={value}" for value in itertools.islice(override.sweep_string_iterator(), MAX_JOBS + 1)]


def _checked(jobs: list[list[str]], columns: dict[str, list[str]]) -> list[int]:
    """The jobs to compose before the sweep starts: all if they are few, else the first, and each other value once."""
    if len(jobs) <= MAX_CHECKED:
        return list(range(len(jobs)))
    numbers, stride = [0], len(jobs)
    for words in columns.values():
        stride //= len(words)
        numbers += [stride * index for index in range(1, len(words))][:MAX_CHECKED]
    return numbers
