"""What sweepers of run folders share: a list of jobs → launched through any launcher → results read from the folders.

Resuming, failures, signals, progress and the table of runs are dealt with here, once. A sweeper says three things:

- `KIND`: its name in `sweep.json`;
- `plan(arguments)`: what the sweep consists of, checked before anything is written. When a sweep is gone on with, it is
  compared with what the folder says (`Record.differences`), and another space, setting or text is refused;
- `search()`: which jobs, when. `self.add(jobs)` notes new jobs durably and gives their numbers, `self.launch(numbers)`
  runs them to their end and gives a `Look` for each. What `self.record.jobs` lists already was noted before the sweep
  was interrupted. A job that is done is not run again, so launching what is there first is all that resuming takes.

It may use `self.compose(overrides)`, the checked config of a job, `self.sweep_folder`, and `self.options`, the typed
`sweep.` keys: a dataclass of microgpt_cli/config.py.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shlex
import signal
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, run_job
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

if TYPE_CHECKING:
    from microgpt_cli.cli.multirun import Task
    from microgpt_cli.config import SweepConfig
    from microgpt_cli.sweeps.job import Look
    from microgpt_cli.sweeps.progress import Plan
    from microgpt_cli.sweeps.record import Job, Record

SUBDIR = "${hydra.job.num}"


class JobSweeper(Sweeper):
    """A sweeper whose jobs each have a run's folder; of a verb that leaves nothing behind it just runs the jobs."""

    KIND = ""
    hydra_context: HydraContext  # set up before anything else is called
    config: DictConfig
    options: SweepConfig

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._launcher: Launcher | None = None
        self._plans: dict[tuple[str, ...], Plan] = {}
        self._composed: dict[tuple[str, ...], DictConfig] = {}  # of jobs that are to run in this process
        self._stopped_by: int | None = None  # a signal
        self._problem: Exception | None = None  # of the launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.task: Task = task_function  # type: ignore[assignment]
        self.options = self.schema()(**self._options)

    def schema(self) -> type[SweepConfig]:
        """The dataclass of the sweeper's `sweep.` keys."""
        from microgpt_cli.config import SweepConfig

        return SweepConfig

    @abstractmethod
    def plan(self, arguments: list[str]) -> Record:
        """What the sweep consists of, checked. Raises `UserError` or Hydra's errors for what is wrong with it."""

    @abstractmethod
    def search(self) -> None:
        """Add and launch jobs until the sweep is done."""

    def sweep(self, arguments: list[str]) -> None:
        """Begin a sweep or go on with one, and drive it to its end.

        Raises:
            UserError: something is wrong with it, and nothing was written.
            RunStopped: jobs failed.
            Interrupted: a signal stopped it.
        """
        from microgpt_cli.commands import sweep as show
        from microgpt_cli.runs import layout, storage
        from microgpt_cli.sweeps import job

        if not self.task.makes_run_folder:
            self.record = self.plan(arguments)
            self._run_plain()
            return
        self._begin(arguments)
        with read_write(self.config), open_dict(self.config):
            self.config.hydra.sweep.dir = str(self.sweep_folder)  # launchers make it, and put files of theirs there
        with layout.locked(self.sweep_folder):
            for number in range(len(self.record.jobs)):
                job.refuse_if_running(self._folder(number))
            storage.discard(self.sweep_folder / job.STOP)
            self.record.write(self.sweep_folder)
            show.introduce(self.sweep_folder, self.record, self.count)
            with show.Show(self.sweep_folder, self.count) as self._show, self._stop_signals():
                try:
                    self.search()
                except KeyboardInterrupt:
                    if self._stopped_by is None:
                        raise
            show.conclude(self._show, self._go_on(), self._stopped_by, self._problem)

    def _begin(self, arguments: list[str]) -> None:
        """Find or make the sweep's folder, and the record of what it consists of."""
        from microgpt_cli.errors import UserError
        from microgpt_cli.runs import storage
        from microgpt_cli.sweeps import record

        subdir = OmegaConf.to_container(self.config.hydra.sweep, resolve=False)["subdir"]  # type: ignore[index, call-overload]
        if subdir != SUBDIR:
            raise UserError(f"hydra.sweep.subdir={subdir}: the jobs' folders are numbered; it can't be changed")
        if self.options.resume is not None:
            self.sweep_folder = record.find(self.options.resume)
            old = record.read(self.sweep_folder)
            record.refuse_if_other(self.sweep_folder, old, self.plan(arguments or old.words))
            self.record = old
            return
        self.record = self.plan(arguments)
        self.sweep_folder = Path(str(self.config.hydra.sweep.dir))
        if (self.sweep_folder / record.RECORD).exists():
            raise UserError(
                f"hydra.sweep.dir={self.sweep_folder}: holds a sweep; go on with it: sweep.resume={self.sweep_folder}"
            )
        try:
            storage.make_folders(self.sweep_folder)
        except OSError as error:
            raise UserError(f"{storage.explain(error)}, or choose another folder with hydra.sweep.dir=") from error

    def _folder(self, number: int) -> Path:
        from microgpt_cli.sweeps.record import job_folder

        return job_folder(self.sweep_folder, number)

    def add(self, jobs: Sequence[Job]) -> list[int]:
        """Note new jobs in the sweep's folder; their numbers."""
        self.record.jobs += jobs
        self.record.write(self.sweep_folder)
        return list(range(len(self.record.jobs) - len(jobs), len(self.record.jobs)))

    def launch(self, numbers: Sequence[int]) -> list[Look]:
        """Run jobs, those that are done left out; what became of each."""
        from microgpt_cli.sweeps import job
        from microgpt_cli.sweeps.progress import Watched

        todo = [n for n in numbers if job.look(self._folder(n)).status not in job.DONE]
        for number in todo:
            job.forget(self._folder(number))
        self._show.add(
            [
                Watched(n, self._folder(n), self._label(n), self._plans.get(tuple(self.record.jobs[n].overrides)))
                for n in numbers
            ]
        )
        if todo and self._stopped_by is None and self._problem is None:
            self._launch(todo)
        return [job.look(self._folder(number)) for number in numbers]

    @property
    def count(self) -> int:
        """How many jobs the sweep will have in all."""
        return len(self.record.jobs)

    @property
    def goes_on(self) -> bool:
        """Whether more jobs may begin: no signal came, the launcher works, and no failed job has stopped the sweep."""
        from microgpt_cli.sweeps import job

        return self._stopped_by is None and self._problem is None and not (self.sweep_folder / job.STOP).exists()

    def _label(self, number: int) -> str:
        """What sets a job apart: its overrides of what is swept over."""
        swept = self.record.space
        return " ".join(word for word in self.record.jobs[number].overrides if word.partition("=")[0] in swept)

    def _launch(self, numbers: list[int]) -> None:
        from microgpt_cli.cli.overrides import quote
        from microgpt_cli.sweeps import job

        where = f"hydra.sweep.dir={quote(str(self.sweep_folder))}"
        overrides = [[*self.record.jobs[n].overrides, where, f"hydra.sweep.subdir={quote(str(n))}"] for n in numbers]
        try:
            if self._runs_here():
                returned: Sequence[JobReturn] = [self._run_here(number) for number in numbers]
            else:
                returned = self._ready_launcher().launch(overrides, initial_job_idx=numbers[0])
        except Exception as error:  # a worker that was killed, a queue that takes no jobs: the folders say the rest
            self._problem = error if self._stopped_by is None else None
            return
        for number, done in zip(numbers, returned, strict=True):
            if done.status == JobStatus.FAILED:  # before the job's own code had it in hand
                self._show.tell(number, job.note_failure(self._folder(number), done._return_value))
            elif done.return_value.status == "failed":  # which a full disk may not have let it write down
                self._show.tell(number, done.return_value)

    def _runs_here(self) -> bool:
        """Whether the launcher is Hydra's basic one: the jobs one after the other in this process."""
        return str(self.config.hydra.launcher._target_).endswith(".BasicLauncher")

    def _run_here(self, number: int) -> JobReturn:
        """What Hydra's basic launcher does, but composing anew, which takes longer than anything else around a job."""
        words = self.record.jobs[number].overrides
        composed = self._composed.pop(tuple(words), None)
        if composed is None:
            composed = self.hydra_context.config_loader.load_sweep_config(self.config, words)
        with read_write(composed), open_dict(composed):
            composed.hydra.sweep.dir, composed.hydra.sweep.subdir = str(self.sweep_folder), str(number)
            composed.hydra.job.id = composed.hydra.job.num = number
        return run_job(
            hydra_context=self.hydra_context,
            task_function=self.task,
            config=composed,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )

    def _ready_launcher(self) -> Launcher:
        if self._launcher is None:
            self._launcher = Plugins.instance().instantiate_launcher(
                hydra_context=self.hydra_context, task_function=self.task, config=self.config
            )
        return self._launcher

    def compose(self, overrides: Sequence[str]) -> Any:
        """The checked config of a job. Raises `UserError`, or Hydra's own errors."""
        from microgpt_cli.sweeps import progress

        composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        config = self.task.check(composed)
        if self.task.makes_run_folder:
            self._plans[tuple(overrides)] = progress.plan(config)
            if self._runs_here():
                self._composed[tuple(overrides)] = composed
        return config

    def texts(self, configs: Iterable[Any]) -> dict[str, str]:
        """The texts that these configs learn from, name → sha256. Raises `UserError` if one is not there."""
        from microgpt_cli.commands.console import bytes_bar
        from microgpt_cli.data.corpus import open_corpus

        if not self.task.makes_run_folder:
            return {}
        found: dict[str, str] = {}
        for data in {repr(config.data): config.data for config in configs}.values():
            with bytes_bar("reading the text") as progress:
                corpus = open_corpus(data, progress)
                found[corpus.name] = corpus.sha256(progress)
        return found

    def _run_plain(self) -> None:
        """The jobs of a verb that leaves nothing behind."""
        from microgpt_cli.errors import UserError

        returned = self._ready_launcher().launch([job.overrides for job in self.record.jobs], initial_job_idx=0)
        errors = [done._return_value for done in returned if done.status == JobStatus.FAILED]
        for error in errors:
            if not isinstance(error, UserError):
                raise error
        if len(errors) > 1:
            raise UserError(f"{len(errors)} of {len(returned)} jobs: {'; '.join(map(str, errors))}")
        if errors:
            raise errors[0]

    @contextlib.contextmanager
    def _stop_signals(self) -> Iterator[None]:
        """Between jobs in this process, or while others run them: no further job begins, and those that run save."""
        from microgpt_cli import signals
        from microgpt_cli.errors import Interrupted
        from microgpt_cli.sweeps import job

        def stop(number: int, _frame: FrameType | None) -> None:
            if self._stopped_by is not None and number in signals.REPEATED:
                return
            is_first, self._stopped_by = self._stopped_by is None, number
            with contextlib.suppress(OSError):
                job.stop_sweep(self.sweep_folder, signal.Signals(number).name)
            workers = multiprocessing.active_children()
            for worker in workers if is_first else ():
                if worker.pid is not None:
                    os.kill(worker.pid, signal.SIGTERM)
            if not (workers and is_first):
                raise Interrupted("", number)

        with signals.heard_by(stop):
            try:
                yield
            except Interrupted as stopped:  # a run in this process heard the signal and has saved
                self._stopped_by = stopped.exit_status - 128

    def _go_on(self) -> str:
        """What to type to go on with the sweep."""
        launcher = [
            word for word in self.config.hydra.overrides.hydra if word.startswith(("hydra/launcher", "hydra.launcher"))
        ]
        words = [f"sweep.resume={self.sweep_folder}", *launcher]
        return f"microgpt {self.task.verb} -m {shlex.join(words)}"
