"""`hydra/sweeper=grid`, what `-m` does unless told otherwise: every combination of the values that were typed.

Without `from __future__ import annotations`: Hydra runs a plugin's module before `dataclass` could look it up.
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

MOST_JOBS = 10_000
MOST_CHECKED = 64  # jobs that are all looked at before the first begins; of more, each value once


@dataclass
class GridConf:
    """The `sweep.` keys; what they mean stands in microgpt_cli/config.py."""

    _target_: str = "hydra_plugins.microgpt_sweeper.grid.GridSweeper"
    resume: str | None = None
    fail_fast: bool = False


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridConf, provider="microgpt")


class GridSweeper(JobSweeper):
    """Every combination of the values, the last key's changing fastest."""

    KIND = "grid"

    def plan(self, arguments: list[str]) -> "Record":
        from microgpt_cli.sweeps.record import Job, Record, changes_of, flat

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        columns = {override.get_key_element(): _words(override) for override in parser.parse_overrides(arguments)}
        self._check_size(columns)
        jobs = [list(words) for words in itertools.product(*columns.values())]
        configs = {i: self.compose(jobs[i]) for i in _checked(jobs, columns)}
        settings = {i: flat(dataclasses.asdict(config)) for i, config in configs.items()}
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
                raise UserError(f"{key}: a sweep over no values; give at least one")
            if count > MOST_JOBS:
                raise UserError(f"{key}: a sweep of more than {MOST_JOBS:,} jobs; take fewer values")


def _words(override: "Override") -> list[str]:
    """An override for each value that one stands for."""
    from microgpt_cli.errors import UserError

    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise UserError(f"{override.input_line}: a grid takes single values, as in {key}=1,2,3 or {key}=range(5)")
    return [f"{key}={value}" for value in itertools.islice(override.sweep_string_iterator(), MOST_JOBS + 1)]


def _checked(jobs: list[list[str]], columns: dict[str, list[str]]) -> list[int]:
    """The jobs to look at beforehand: all if they are few, else the first, and each other value in its place."""
    if len(jobs) <= MOST_CHECKED:
        return list(range(len(jobs)))
    numbers, stride = [0], len(jobs)
    for words in columns.values():
        stride //= len(words)
        numbers += [stride * index for index in range(1, len(words))][:MOST_CHECKED]
    return numbers
