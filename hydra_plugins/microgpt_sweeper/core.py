"""The base class of sweepers: jobs are started by any Hydra launcher, and their results are read from their folders.

It implements resuming, failures, signals, progress and the table of runs. A sweeper defines

- `KIND`: its name in `sweep.json`;
- `plan(arguments)`: the record of the sweep, checked before anything is written. On resume it is compared with the one
  in the folder (`Record.differences`), and a different search space, setting or text is an error;
- `search()`: which jobs to run, and when. `self.add(jobs)` records new jobs durably and returns their numbers,
  `self.launch(numbers)` runs them and returns a `JobStatus` for each. `self.record.jobs` lists the jobs that were
  recorded before an interruption. Completed jobs are not run again, so resuming means launching these first.

It may use `self.compose(overrides)`, the checked config of a job, `self.sweep_folder`, and `self.options`, the `sweep.`
keys: a dataclass of microgpt_cli/config.
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
from hydra.core.utils import JobReturn, run_job
from hydra.core.utils import JobStatus as HydraStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

if TYPE_CHECKING:
    from microgpt_cli.cli.multirun import Task
    from microgpt_cli.config import SweepConfig
    from microgpt_cli.sweeps.job import JobStatus
    from microgpt_cli.sweeps.progress import Plan
    from microgpt_cli.sweeps.record import Job, Record

SUBDIR = "${hydra.job.num}"


class JobSweeper(Sweeper):
    """A sweeper whose jobs each have a run folder; for verbs without run folders it only runs the jobs."""

    KIND = ""
    hydra_context: HydraContext  # set by `setup`
    config: DictConfig
    options: SweepConfig

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._launcher: Launcher | None = None
        self._plans: dict[tuple[str, ...], Plan] = {}
        self._composed: dict[tuple[str, ...], DictConfig] = {}  # of jobs that run in this process
        self._stopped_by: int | None = None  # signal number
        self._problem: Exception | None = None  # raised by the launcher

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
        """The checked record of the sweep. Raises `UserError` or Hydra's own errors."""

    @abstractmethod
    def search(self) -> None:
        """Add and launch jobs until the sweep is done."""

    def sweep(self, arguments: list[str]) -> None:
        """Start or resume a sweep, and run it to its end.

        Raises:
            UserError: the sweep is invalid; nothing was written.
            RunStopped: jobs failed.
            Interrupted: a signal stopped the sweep.
        """
        from microgpt_cli.commands import sweep as output
        from microgpt_cli.runs import layout, storage
        from microgpt_cli.sweeps import job

        if not self.task.makes_run_folder:
            self.record = self.plan(arguments)
            self._run_without_folders()
            return
        self._start(arguments)
        with read_write(self.config.hydra), open_dict(self.config.hydra):
            self.config.hydra.sweep.dir = str(self.sweep_folder)  # launchers create it and write their own files there
        with layout.locked(self.sweep_folder):
            for number in range(len(self.record.jobs)):
                job.refuse_if_running(self._folder(number))
            storage.discard(self.sweep_folder / job.STOP)
            self.record.write(self.sweep_folder)
            output.print_header(self.sweep_folder, self.record, self.count)
            with output.SweepDisplay(self.sweep_folder, self.count) as self._display, self._stop_signals():
                try:
                    self.search()
                except KeyboardInterrupt:
                    if self._stopped_by is None:
                        raise
            output.print_summary(self._display, self._resume_command(), self._stopped_by, self._problem)

    def _start(self, arguments: list[str]) -> None:
        """Find or create the sweep's folder, and set its record."""
        from microgpt_cli.errors import UserError
        from microgpt_cli.runs import storage
        from microgpt_cli.sweeps import record

        subdir = OmegaConf.to_container(self.config.hydra.sweep, resolve=False)["subdir"]  # type: ignore[index, call-overload]
        if subdir != SUBDIR:
            raise UserError(f"hydra.sweep.subdir={subdir}: not supported, because the jobs' folders are numbered")
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
                f"hydra.sweep.dir={self.sweep_folder}: contains a sweep; resume it: sweep.resume={self.sweep_folder}"
            )
        try:
            storage.make_folders(self.sweep_folder)
        except OSError as error:
            raise UserError(f"{storage.explain(error)}, or choose another folder with hydra.sweep.dir=") from error

    def _folder(self, number: int) -> Path:
        from microgpt_cli.sweeps.record import job_folder

        return job_folder(self.sweep_folder, number)

    def add(self, jobs: Sequence[Job]) -> list[int]:
        """Record new jobs in the sweep's folder, and return their numbers."""
        self.record.jobs += jobs
        self.record.write(self.sweep_folder)
        return list(range(len(self.record.jobs) - len(jobs), len(self.record.jobs)))

    def launch(self, numbers: Sequence[int]) -> list[JobStatus]:
        """Run the jobs that are not completed, and return the status of each."""
        from microgpt_cli.sweeps import job
        from microgpt_cli.sweeps.progress import WatchedJob

        todo = [n for n in numbers if job.read_status(self._folder(n)).status not in job.DONE]
        for number in todo:
            job.clear_result(self._folder(number))
        self._display.add(
            [
                WatchedJob(n, self._folder(n), self._label(n), self._plans.get(tuple(self.record.jobs[n].overrides)))
                for n in numbers
            ]
        )
        if todo and self._stopped_by is None and self._problem is None:
            self._launch(todo)
        return [job.read_status(self._folder(number)) for number in numbers]

    @property
    def count(self) -> int:
        """The total number of jobs."""
        return len(self.record.jobs)

    @property
    def may_start_jobs(self) -> bool:
        """Whether more jobs may start: no signal, no failure of the launcher, no failed job with `sweep.fail_fast`."""
        from microgpt_cli.sweeps import job

        return self._stopped_by is None and self._problem is None and not (self.sweep_folder / job.STOP).exists()

    def _label(self, number: int) -> str:
        """The overrides of a job that are swept over."""
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
        except Exception as error:  # a killed worker, a failing queue: the state of each job is in its folder
            self._problem = error if self._stopped_by is None else None
            return
        for number, done in zip(numbers, returned, strict=True):
            if done.status == HydraStatus.FAILED:  # before `job.run` was called
                self._display.report_end(number, job.record_failure(self._folder(number), done._return_value))
            elif done.return_value.status == "failed":  # may be missing from the folder after a disk error
                self._display.report_end(number, done.return_value)

    def _runs_here(self) -> bool:
        """Whether the launcher is Hydra's basic one, which runs the jobs one after the other in this process."""
        return str(self.config.hydra.launcher._target_).endswith(".BasicLauncher")

    def _run_here(self, number: int) -> JobReturn:
        """Run a job as Hydra's basic launcher does, but reuse its composed config, because composing is slow."""
        words = self.record.jobs[number].overrides
        composed = self._composed.pop(tuple(words), None)
        if composed is None:
            composed = self.hydra_context.config_loader.load_sweep_config(self.config, words)
        with read_write(composed.hydra), open_dict(composed.hydra):
            composed.hydra.sweep.dir, composed.hydra.sweep.subdir = str(self.sweep_folder), str(number)
            composed.hydra.job.id, composed.hydra.job.num = str(number), number
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
        """The texts that these configs train on, name → sha256. Raises `UserError` if one does not exist."""
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

    def _run_without_folders(self) -> None:
        """Run the jobs of a verb without run folders."""
        from microgpt_cli.errors import UserError

        returned = self._ready_launcher().launch([job.overrides for job in self.record.jobs], initial_job_idx=0)
        errors = [done._return_value for done in returned if done.status == HydraStatus.FAILED]
        for error in errors:
            if not isinstance(error, UserError):
                raise error
        if len(errors) > 1:
            raise UserError(f"{len(errors)} of {len(returned)} jobs: {'; '.join(map(str, errors))}")
        if errors:
            raise errors[0]

    @contextlib.contextmanager
    def _stop_signals(self) -> Iterator[None]:
        """On a signal, start no further job and let running jobs save and stop."""
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

        with signals.handle_signals(stop):
            try:
                yield
            except Interrupted as stopped:  # a run in this process received the signal and has saved
                self._stopped_by = stopped.exit_status - 128

    def _resume_command(self) -> str:
        """The command that resumes the sweep."""
        launcher = [
            word for word in self.config.hydra.overrides.hydra if word.startswith(("hydra/launcher", "hydra.launcher"))
        ]
        words = [f"sweep.resume={self.sweep_folder}", *launcher]
        return f"microgpt {self.task.verb} -m {shlex.join(words)}"
