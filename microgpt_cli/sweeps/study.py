"""A search: Optuna's study, in a journal in the sweep's folder that every job of the sweep reads and writes.

Trial N is job N, so a job finds its trial by the name of its folder. Draws are functions of the seed and the trial's
number: a search that was killed and gone on with draws what it would have drawn. Optuna is an extra, imported where a
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
NAME, SETTINGS = "microgpt", "settings"  # of the one study in the journal, and of what its jobs read there
FIRST_AT_RANDOM = 10  # trials before TPE has something to go by; Optuna's default
FIRST_FOR_MEDIAN = 4  # trials before the median is one
MOST_JOURNAL_BYTES = 1 << 28
LEAST_FOR_IMPORTANCE = 8  # trials; fewer say little
MOST_GRID = 10_000


@dataclass(frozen=True)
class Axis:
    """One key that is searched over: a list of values, or the numbers between two ends.

    Args:
        key: as typed, `optim.learning_rate` or `model`.
        values: to choose among, as typed; of a range all of its numbers, of an interval none.
        low, high: the ends of a range or an interval, both included.
        step: of a range.
        log: drawn evenly over the logarithm.
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
        """What Optuna draws from."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.low is None or self.high is None:
            return CategoricalDistribution(self.values)
        if self.is_integer:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=None if self.log else self.step)

    def text(self, value: Any) -> str:
        """A value as it is typed: four digits of a drawn number are enough, and never beyond the ends."""
        if self.low is None or self.high is None or self.is_integer:
            return str(value)
        if self.step is not None and not self.log:
            return f"{value:.12g}"
        text = f"{value:.4g}"
        return text if self.low <= float(text) <= self.high else repr(min(max(value, self.low), self.high))

    def described(self) -> list[str] | str:
        """For `sweep.json` and for people: the values, or the ends."""
        if self.values:
            return list(self.values)
        kind = "an integer " if self.is_integer else ""
        return f"{kind}from {self.low:g} to {self.high:g}{', logarithmic' if self.log else ''}"

    def value(self, text: str) -> Any:
        """The other way: what stands for a value as typed in the study."""
        return text if not self.is_number else int(text) if self.is_integer else float(text)


@dataclass(frozen=True)
class Settings:
    """How to search.

    Args:
        sampler: "tpe", "random" or "grid".
        pruner: "none", "asha" or "median".
        n_trials: how many; None: as many as the grid has.
        min_steps: no trial is pruned before so many steps.
        keep_one_in: asha lets the best of so many trials go on from a rung, to one so many times higher.
        seed: of the draws.
    """

    sampler: str
    pruner: str
    n_trials: int | None
    min_steps: int
    keep_one_in: int
    seed: int


@dataclass(frozen=True)
class Trial:
    """What became of a trial."""

    number: int
    values: dict[str, Any]  # key → text, or number
    state: str  # "complete", "pruned", "running"
    losses: dict[int, float]  # step → val_loss
    best: float | None  # the lowest val_loss; of a pruned one up to where it was pruned


class Judge:
    """Says whether a trial shall go on, from within its job.

    Args:
        folder: the job's.
    """

    def __init__(self, folder: Path) -> None:
        require_optuna()
        self._storage, self._study = _open(folder.parent / JOURNAL)
        self._pruner = _pruner(Settings(**self._study.user_attrs[SETTINGS]))
        study_id = self._storage.get_study_id_from_name(NAME)
        self._id = self._storage.get_trial_id_from_study_id_trial_number(study_id, int(folder.name))

    def prunes(self, step: int, val_loss: float) -> bool:
        """Note an evaluation in the study; whether the trial is not worth going on with."""
        self._storage.set_trial_intermediate_value(self._id, step, val_loss)
        return bool(self._pruner.prune(self._study, self._storage.get_trial(self._id)))


def judge_of(folder: Path) -> Judge | None:
    """The judge of a job, if its sweep is a search."""
    return Judge(folder) if (folder.parent / JOURNAL).is_file() else None


class Study:
    """The study of a sweep, for the one process that drives it.

    Args:
        sweep: its folder, which that process holds the lock of.
        axes: what is searched over.
        settings: how.

    Raises:
        UserError: Optuna is missing; there is nothing to search over.
    """

    def __init__(self, sweep: Path, axes: Sequence[Axis], settings: Settings) -> None:
        if not axes:
            raise UserError(
                "nothing to search over; give a key values, as in optim.learning_rate=1e-3,3e-3, or a range"
            )
        require_optuna()
        self.axes, self.settings = axes, settings
        journal = sweep / JOURNAL
        is_new = not journal.exists()
        if not is_new:
            _mend(journal)
        self._storage, self._study = _open(journal)
        self._study.set_user_attr(SETTINGS, asdict(settings))
        if is_new and settings.sampler == "grid":
            for point in grid(axes, settings.seed):
                self._study.enqueue_trial({axis.key: axis.value(text) for axis, text in zip(axes, point, strict=True)})

    @property
    def n_trials(self) -> int:
        """How many trials there are to be in all."""
        wanted = self.settings.n_trials
        if self.settings.sampler != "grid":
            assert wanted is not None
            return wanted
        points = len(self._study.get_trials(deepcopy=False))
        return points if wanted is None else min(wanted, points)

    @property
    def begun(self) -> int:
        """How many have been drawn."""
        return sum(trial.state.name != "WAITING" for trial in self._study.get_trials(deepcopy=False))

    @property
    def ended(self) -> list[int]:
        """The trials of which the study knows the end."""
        return [trial.number for trial in self.trials() if trial.state in ("complete", "pruned")]

    @property
    def running(self) -> list[int]:
        """The trials that were drawn, and whose runs have not come to an end, or failed at once."""
        return [trial.number for trial in self.trials() if trial.state == "running"]

    def ask(self) -> tuple[int, list[str]]:
        """Draw the next trial: its number, and its overrides."""
        number, space = self.begun, {axis.key: axis.distribution() for axis in self.axes}
        if number == len(self._study.get_trials(deepcopy=False)):  # no values wait, of a grid or drawn before a kill
            self._study.enqueue_trial(self._draw(number, space))
        trial = self._study.ask(space)
        assert trial.number == number
        return number, self.overrides(number)

    def _draw(self, number: int, space: dict[str, Any]) -> dict[str, Any]:
        """The values of a trial: by lot, or by TPE from how far behind the trials before it were.

        Optuna itself takes any run that came to its end for better than any that was pruned. But asha lets the first
        few go far whatever they are, so a trial counts by its distance to the lowest loss that any had by its last
        step.
        """
        import optuna

        seed = random.Random(f"{self.settings.seed}/{number}").getrandbits(32)
        study = optuna.create_study(sampler=_sampler(self.settings.sampler, seed))
        done = [trial for trial in self.trials() if trial.losses and trial.state != "running"]
        for trial in done:
            step = max(trial.losses)
            ahead = min(loss for other in done for at, loss in other.losses.items() if at <= step)
            behind = trial.losses[step] - ahead
            study.add_trial(optuna.trial.create_trial(params=trial.values, distributions=space, value=behind))
        return dict(study.ask(space).params)

    def overrides(self, number: int) -> list[str]:
        """What a trial that was drawn sets."""
        params = self._study.get_trials(deepcopy=False)[number].params
        return [f"{axis.key}={axis.text(params[axis.key])}" for axis in self.axes]

    def tell(self, number: int, status: str, best_val_loss: float | None) -> None:
        """Note what became of a trial; nothing changes if that has been noted.

        A run that failed after an evaluation has diverged, most likely: a bad setting, which the sampler shall know, so
        it counts as pruned. One that failed before may have met a full disk: it stays open, to be run again.

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
        """All trials that were drawn, by number."""
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
        """How much of the spread of the losses each key accounts for (PED-ANOVA, arXiv:2304.10255), the most first.

        Trials that were pruned count, too: all are compared by their loss at the first evaluation that all of them
        reached, or at their best where none was pruned.

        Returns:
            That step, or None for the best; and key → share, summing to 1: empty where trials are too few.
        """
        import optuna

        trials = [trial for trial in self.trials() if trial.best is not None]
        step = None
        if any(trial.state == "pruned" for trial in trials):
            trials = [trial for trial in trials if trial.losses]
            common = set.intersection(*(set(trial.losses) for trial in trials)) if trials else set()
            step = max(common, default=None)
            trials = trials if step is not None else []
        if len(trials) < LEAST_FOR_IMPORTANCE:
            return step, {}
        copy = optuna.create_study()
        space = {axis.key: axis.distribution() for axis in self.axes}
        for trial in trials:
            value = trial.best if step is None else trial.losses[step]
            copy.add_trial(optuna.trial.create_trial(params=trial.values, distributions=space, value=value))
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return step, dict(optuna.importance.get_param_importances(copy, evaluator=evaluator))


def grid(axes: Sequence[Axis], seed: int) -> list[tuple[str, ...]]:
    """All combinations of values, in an order drawn by lot, for a pruner compares a trial with those before it.

    Raises:
        UserError: an axis has no values to list, or there are too many combinations.
    """
    size = 1
    for axis in axes:
        if not axis.values:
            ends = f"{axis.low:g},{axis.high:g}"
            raise UserError(
                f"{axis.key}: sweep.sampler=grid needs values, and an interval has no end of them; give some, as in "
                f"{axis.key}={ends}, or sweep.sampler=tpe"
            )
        size *= len(axis.values)
    if size > MOST_GRID:
        raise UserError(f"a grid of {size:,} trials; at most {MOST_GRID:,}; or draw some of them: sweep.sampler=random")
    points = list(product(*(axis.values for axis in axes)))
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
    """The storage and its one study, made where there is none."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what is worth telling, we tell
    store = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
    return store, optuna.create_study(storage=store, study_name=NAME, load_if_exists=True)


def _mend(journal: Path) -> None:
    """Drop lines that a full disk or a lost machine tore: with one of them Optuna would not read the rest."""
    data = storage.read_bytes(journal, MOST_JOURNAL_BYTES)
    whole = [line for line in data.split(b"\n")[:-1] if _is_json(line)]
    mended = b"".join(line + b"\n" for line in whole)
    if mended != data:
        storage.replace(journal, mended)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _sampler(kind: str, seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    if kind == "tpe":
        return optuna.samplers.TPESampler(n_startup_trials=FIRST_AT_RANDOM, seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(settings: Settings) -> optuna.pruners.BasePruner:
    import optuna

    if settings.pruner == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=settings.min_steps, reduction_factor=settings.keep_one_in
        )
    if settings.pruner == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=FIRST_FOR_MEDIAN, n_warmup_steps=settings.min_steps, n_min_trials=FIRST_FOR_MEDIAN
        )
    return optuna.pruners.NopPruner()


def first_rung(max_steps: int, eval_interval: int, warmup_steps: int) -> int:
    """From which step on a run may be pruned, if nobody said: its first evaluation after the warm-up.

    Before, the rates that are too high for the rest of the run are ahead.
    """
    rung = eval_interval * max(1, math.ceil(warmup_steps / eval_interval))
    return rung if rung < max_steps else eval_interval
