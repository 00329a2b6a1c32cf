"""A hyperparameter search: an Optuna study in a journal file in the sweep's folder, shared by all jobs of the sweep.

Trial N is job N, so a job finds its trial by the name of its folder. Sampled values are functions of the seed and the
trial's number, so a search that is killed and resumed samples the same values. Optuna is an extra, imported when a
study is opened.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microgpt_cli.errors import UserError
from microgpt_cli.runs import storage

if TYPE_CHECKING:
    import optuna

JOURNAL = "study.journal"
NAME, SETTINGS = "microgpt", "settings"  # name of the study in the journal, and of its attribute with the settings
STARTUP_TRIALS = 10  # random trials before TPE starts; Optuna's default
MEDIAN_STARTUP_TRIALS = 4
MAX_JOURNAL_BYTES = 1 << 28
MIN_IMPORTANCE_TRIALS = 8  # fewer give no useful importances
MAX_GRID = 10_000


@dataclass(frozen=True)
class Dimension:
    """One dimension of the search space: a list of values, a range or an interval.

    Args:
        key: as typed, `optim.learning_rate` or `model`.
        values: the choices as typed; all numbers of a range; empty for an interval.
        low, high: the bounds of a range or an interval, inclusive.
        step: of a range.
        log: sample uniformly in the logarithm.
    """

    key: str
    values: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    step: float | None = None
    log: bool = False

    @property
    def is_number(self) -> bool:
        return self.low is not None

    @property
    def is_integer(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step, int | None)

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """The Optuna distribution."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.low is None or self.high is None:
            return CategoricalDistribution(self.values)
        if self.is_integer:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=None if self.log else self.step)

    def text(self, value: Any) -> str:
        """A value as an override: sampled numbers are rounded to four digits, within the bounds."""
        if self.low is None or self.high is None or self.is_integer:
            return str(value)
        if self.step is not None and not self.log:
            return f"{value:.12g}"
        text = f"{value:.4g}"
        return text if self.low <= float(text) <= self.high else repr(min(max(value, self.low), self.high))

    def describe(self) -> list[str] | str:
        """The values, or a description of the bounds, for `sweep.json` and messages."""
        if self.values:
            return list(self.values)
        kind = "an integer " if self.is_integer else ""
        return f"{kind}from {self.low:g} to {self.high:g}{', logarithmic' if self.log else ''}"

    def value(self, text: str) -> Any:
        """The inverse of `text`: the value in the study for a value as typed."""
        return text if not self.is_number else int(text) if self.is_integer else float(text)


@dataclass(frozen=True)
class Settings:
    """Settings of a search.

    Args:
        sampler: "tpe", "random" or "grid".
        pruner: "none", "asha" or "median".
        n_trials: number of trials; None: the size of the grid.
        min_steps: no trial is pruned before this step.
        keep_one_in: the reduction factor of ASHA; the name is that of the key `sweep.keep_one_in`.
        seed: of the sampler.
    """

    sampler: str
    pruner: str
    n_trials: int | None
    min_steps: int
    keep_one_in: int
    seed: int


@dataclass(frozen=True)
class Trial:
    """The state of a trial."""

    number: int
    values: dict[str, Any]  # key → text, or number
    state: str  # "complete", "pruned", "running"
    losses: dict[int, float]  # step → val_loss
    best: float | None  # the lowest val_loss so far


class TrialPruner:
    """Decides within a job whether its trial is pruned.

    Args:
        folder: of the job.
    """

    def __init__(self, folder: Path) -> None:
        require_optuna()
        self._storage, self._study = _open(folder.parent / JOURNAL)
        self._pruner = _pruner(Settings(**self._study.user_attrs[SETTINGS]))
        study_id = self._storage.get_study_id_from_name(NAME)
        self._id = self._storage.get_trial_id_from_study_id_trial_number(study_id, int(folder.name))

    def should_prune(self, step: int, val_loss: float) -> bool:
        """Record an evaluation in the study and return whether to prune the trial."""
        self._storage.set_trial_intermediate_value(self._id, step, val_loss)
        return bool(self._pruner.prune(self._study, self._storage.get_trial(self._id)))


def trial_pruner(folder: Path) -> TrialPruner | None:
    """The pruner of a job, if its sweep is a search."""
    return TrialPruner(folder) if (folder.parent / JOURNAL).is_file() else None


class Study:
    """The study of a sweep, for the process that runs it.

    Args:
        sweep: its folder, locked by that process.
        space: the dimensions of the search space.
        settings: of the search.

    Raises:
        UserError: Optuna is missing, or the search space is empty.
    """

    def __init__(self, sweep: Path, space: Sequence[Dimension], settings: Settings) -> None:
        if not space:
            raise UserError(
                "the search space is empty; give a key several values, as in optim.learning_rate=1e-3,3e-3, or a range"
            )
        require_optuna()
        self.space, self.settings = space, settings
        journal = sweep / JOURNAL
        is_new = not journal.exists()
        if not is_new:
            _repair(journal)
        self._storage, self._study = _open(journal)
        self._study.set_user_attr(SETTINGS, asdict(settings))
        if is_new and settings.sampler == "grid":
            for point in grid(space, settings.seed):
                self._study.enqueue_trial(
                    {dimension.key: dimension.value(text) for dimension, text in zip(space, point, strict=True)}
                )

    @property
    def n_trials(self) -> int:
        """The total number of trials."""
        wanted = self.settings.n_trials
        if self.settings.sampler != "grid":
            assert wanted is not None
            return wanted
        points = len(self._study.get_trials(deepcopy=False))
        return points if wanted is None else min(wanted, points)

    @property
    def sampled(self) -> int:
        """The number of trials sampled so far."""
        return sum(trial.state.name != "WAITING" for trial in self._study.get_trials(deepcopy=False))

    @property
    def ended(self) -> list[int]:
        """The trials that are complete or pruned."""
        return [trial.number for trial in self.trials() if trial.state in ("complete", "pruned")]

    @property
    def running(self) -> list[int]:
        """The sampled trials whose runs have not ended, or failed before their first evaluation."""
        return [trial.number for trial in self.trials() if trial.state == "running"]

    def ask(self) -> tuple[int, list[str]]:
        """Sample the next trial: its number and its overrides."""
        number, distributions = self.sampled, {dimension.key: dimension.distribution() for dimension in self.space}
        if number == len(self._study.get_trials(deepcopy=False)):  # no queued values, of a grid or from before a kill
            self._study.enqueue_trial(self._sample(number, distributions))
        trial = self._study.ask(distributions)
        assert trial.number == number
        return number, self.overrides(number)

    def _sample(self, number: int, distributions: dict[str, Any]) -> dict[str, Any]:
        """The values of a trial, random or from TPE.

        Optuna ranks every complete trial above every pruned one. But ASHA runs the first few trials far regardless of
        their quality, so TPE is given the difference between a trial's loss and the lowest loss of any trial up to the
        same step.
        """
        import optuna

        seed = random.Random(f"{self.settings.seed}/{number}").getrandbits(32)
        study = optuna.create_study(sampler=_sampler(self.settings.sampler, seed))
        done = [trial for trial in self.trials() if trial.losses and trial.state != "running"]
        for trial in done:
            step = max(trial.losses)
            lowest = min(loss for other in done for at, loss in other.losses.items() if at <= step)
            regret = trial.losses[step] - lowest
            study.add_trial(optuna.trial.create_trial(params=trial.values, distributions=distributions, value=regret))
        return dict(study.ask(distributions).params)

    def overrides(self, number: int) -> list[str]:
        """The overrides of a sampled trial."""
        params = self._study.get_trials(deepcopy=False)[number].params
        return [f"{dimension.key}={dimension.text(params[dimension.key])}" for dimension in self.space]

    def tell(self, number: int, status: str, best_val_loss: float | None) -> None:
        """Record the outcome of a trial, unless it is already recorded.

        A run that failed after an evaluation has most likely diverged: it counts as pruned, so that the sampler avoids
        its settings. One that failed earlier, on a full disk for example, stays open and is run again on resume.

        Args:
            status: of the run.
            best_val_loss: of the run.
        """
        from optuna.trial import TrialState

        trial = self._study.get_trials(deepcopy=False)[number]
        if trial.state.is_finished():
            return
        if status in ("finished", "stopped_early") and best_val_loss is not None:
            self._study.tell(number, best_val_loss)
        elif status == "pruned" or (status == "failed" and trial.intermediate_values):
            self._study.tell(number, state=TrialState.PRUNED)

    def trials(self) -> list[Trial]:
        """All sampled trials, by number."""
        return [
            Trial(
                trial.number,
                dict(trial.params),
                trial.state.name.lower(),
                dict(trial.intermediate_values),
                trial.value
                if trial.state.name == "COMPLETE"
                else min(trial.intermediate_values.values(), default=None),
            )
            for trial in self._study.get_trials(deepcopy=False)
            if trial.state.name != "WAITING"
        ]

    def importance(self) -> tuple[int | None, dict[str, float]]:
        """The importance of each key for the loss (PED-ANOVA, arXiv:2304.10255), the largest first.

        If trials were pruned, all are compared by their loss at the last evaluation that all of them reached, else by
        their best loss.

        Returns:
            That step, or None for the best loss; and key → share, summing to 1, empty if there are too few trials.
        """
        import optuna

        trials = [trial for trial in self.trials() if trial.best is not None]
        step = None
        if any(trial.state == "pruned" for trial in trials):
            trials = [trial for trial in trials if trial.losses]
            common = set.intersection(*(set(trial.losses) for trial in trials)) if trials else set()
            step = max(common, default=None)
            trials = trials if step is not None else []
        if len(trials) < MIN_IMPORTANCE_TRIALS:
            return step, {}
        copy = optuna.create_study()
        distributions = {dimension.key: dimension.distribution() for dimension in self.space}
        for trial in trials:
            value = trial.best if step is None else trial.losses[step]
            copy.add_trial(optuna.trial.create_trial(params=trial.values, distributions=distributions, value=value))
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return step, dict(optuna.importance.get_param_importances(copy, evaluator=evaluator))


def grid(space: Sequence[Dimension], seed: int) -> list[tuple[str, ...]]:
    """All combinations of values in random order, because a pruner compares a trial with those before it.

    Raises:
        UserError: a dimension is an interval, or there are too many combinations.
    """
    size = 1
    for dimension in space:
        if not dimension.values:
            bounds = f"{dimension.low:g},{dimension.high:g}"
            raise UserError(
                f"{dimension.key}: sweep.sampler=grid needs a list of values, not an interval; use for example "
                f"{dimension.key}={bounds}, or sweep.sampler=tpe"
            )
        size *= len(dimension.values)
    if size > MAX_GRID:
        raise UserError(
            f"a grid of {size:,} trials exceeds the limit of {MAX_GRID:,}; use fewer values, or sweep.sampler=random"
        )
    points = list(product(*(dimension.values for dimension in space)))
    random.Random(f"{seed}/grid").shuffle(points)
    return points


def require_optuna() -> None:
    """Raises `UserError` with the install command if Optuna is missing, or too old."""
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "hydra/sweeper=optuna needs Optuna, which is not installed: pip install 'microgpt-cli[sweep]'"
        ) from error
    if tuple(map(int, optuna.__version__.split(".")[:2])) < (4, 9):
        raise UserError(
            f"hydra/sweeper=optuna needs Optuna 4.9 or newer, not {optuna.__version__}: "
            "pip install -U 'microgpt-cli[sweep]'"
        )


def _open(journal: Path) -> tuple[optuna.storages.BaseStorage, optuna.Study]:
    """The storage and its study, created if missing."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # messages are printed by commands/search.py
    store = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
    return store, optuna.create_study(storage=store, study_name=NAME, load_if_exists=True)


def _repair(journal: Path) -> None:
    """Remove incomplete lines, left by a full disk or a crash: Optuna does not read past them."""
    data = storage.read_bytes(journal, MAX_JOURNAL_BYTES)
    complete = [line for line in data.split(b"\n")[:-1] if _is_json(line)]
    repaired = b"".join(line + b"\n" for line in complete)
    if repaired != data:
        storage.replace(journal, repaired)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _sampler(kind: str, seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    if kind == "tpe":
        return optuna.samplers.TPESampler(n_startup_trials=STARTUP_TRIALS, seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(settings: Settings) -> optuna.pruners.BasePruner:
    import optuna

    if settings.pruner == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=settings.min_steps, reduction_factor=settings.keep_one_in
        )
    if settings.pruner == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=MEDIAN_STARTUP_TRIALS,
            n_warmup_steps=settings.min_steps,
            n_min_trials=MEDIAN_STARTUP_TRIALS,
        )
    return optuna.pruners.NopPruner()


def first_rung(max_steps: int, eval_interval: int, warmup_steps: int) -> int:
    """The default of `sweep.min_steps`: the first evaluation after the warm-up.

    During warm-up, learning rates that are too high for the rest of the run have the lowest losses.
    """
    rung = eval_interval * max(1, math.ceil(warmup_steps / eval_interval))
    return rung if rung < max_steps else eval_interval
