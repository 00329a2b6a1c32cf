"""The output of a sweep: its progress, a line for each job that ends, and the table of runs at the end.

Everything is read from the jobs' folders, so it does not depend on which launcher runs the jobs, and where.
"""

import shlex
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from microgpt_cli.commands.console import duration, say
from microgpt_cli.errors import Interrupted, RunStopped
from microgpt_cli.runs import reading, table
from microgpt_cli.sweeps import job, progress
from microgpt_cli.sweeps.progress import WatchedJob
from microgpt_cli.sweeps.record import Record, job_folder

POLL_SEC = 0.5
LINE_SEC = 60.0  # interval of progress lines without a terminal
MAX_NAMED = 4  # running jobs in a line
BAR_STEPS = 1000


class SweepDisplay:
    """Shows the progress of a sweep while its context is open. More jobs may be added meanwhile."""

    def __init__(self, sweep: Path, count: int) -> None:
        self.sweep, self.count = sweep, count
        self.jobs: list[WatchedJob] = []
        # Jobs that run in this process redirect standard output and error, so the originals are kept.
        self._out, self._err = sys.stdout, sys.stderr
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._started = self._last_line = time.monotonic()
        self._done_before, self._ended_before = 0.0, 0

    def __enter__(self) -> "SweepDisplay":
        self._bar = tqdm(
            total=BAR_STEPS,
            file=self._err,
            disable=None,
            leave=False,
            dynamic_ncols=True,
            bar_format="{desc} {bar:10}{postfix}",
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        self.poll()
        self._bar.close()

    def add(self, jobs: Sequence[WatchedJob]) -> None:
        """Add jobs to watch."""
        with self._lock:
            self.jobs += jobs
            self._done_before += sum(progress.work([watched])[0] for watched in jobs)
            self._ended_before += sum(watched.has_ended for watched in jobs)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.clear()
        say(text, self._out)
        self._bar.refresh()

    def poll(self) -> None:
        """Update all jobs, and print a line for each that has ended since the last call."""
        with self._lock:
            running = [watched for watched in self.jobs if not watched.has_ended]
            for watched in running:
                watched.poll()
                self._report_end(watched)
            self._bar.n = round(BAR_STEPS * self._fraction_done())
            self._bar.set_description_str(self._running_jobs(), refresh=False)
            self._bar.set_postfix_str(self._summary())

    def report_end(self, number: int, end: job.JobStatus) -> None:
        """Report the end of a job whose folder may not record it."""
        with self._lock:
            for watched in self.jobs:
                if watched.number == number and not watched.has_ended:
                    watched.state = end
                    self._report_end(watched)

    def _report_end(self, watched: WatchedJob) -> None:
        if watched.has_ended:
            self.say(f"job {watched.number:<5} {watched.label}  {_outcome(watched)}; {self._summary()}")

    def _watch(self) -> None:
        pause = POLL_SEC
        while not self._end.wait(pause):
            started = time.monotonic()
            self.poll()
            pause = max(POLL_SEC, 20 * (time.monotonic() - started))  # at most 5% of the time for many jobs
            if self._bar.disable and time.monotonic() - self._last_line >= LINE_SEC:
                self._last_line = time.monotonic()
                self.say(f"{self._running_jobs()}; {self._summary()}")

    def _fraction_done(self) -> float:
        done, total = progress.work(self.jobs)
        return done / total if total else 0.0

    def _running_jobs(self) -> str:
        """The running jobs and their steps."""
        running = [w for w in self.jobs if w.state.status not in (*job.ENDED, "waiting", "interrupted")]
        shown = [f"job {w.number} {w.state.step:,}/{w.plan.steps if w.plan else 0:,}" for w in running[:MAX_NAMED]]
        more = [f"{len(running) - MAX_NAMED} more"] if len(running) > MAX_NAMED else []
        return ", ".join([*shown, *more]) or "starting"

    def _summary(self) -> str:
        """The best loss so far, the number of jobs that have ended, and the estimated remaining time."""
        ended = sum(watched.has_ended for watched in self.jobs)
        parts = [f"{ended} of {self.count} done"]
        best = progress.best(self.jobs)
        if best is not None:
            parts.insert(0, f"best so far {best.state.best_val_loss:.4f}, job {best.number}")
        elapsed = time.monotonic() - self._started
        if self.count > len(self.jobs):  # the size of trials that are not sampled yet is unknown
            left = progress.seconds_left(elapsed, self._ended_before, ended, self.count)
        else:
            left = progress.seconds_left(elapsed, self._done_before, *progress.work(self.jobs))
        if left is not None and ended < self.count:
            parts.append(f"ETA {duration(left)}")
        return ", ".join(parts)


def print_header(sweep: Path, record: Record, count: int) -> None:
    """Print the sweep's folder, its search space and, if it is resumed, the number of completed jobs."""
    states = [job.read_status(job_folder(sweep, number)) for number in range(len(record.jobs))]
    over = " × ".join(
        f"{len(values)} {key}" if isinstance(values, list) else key for key, values in record.space.items()
    )
    say(f"sweep     {sweep}: {count} jobs{f', {over}' if over else ''}")
    done = sum(state.status in job.DONE for state in states)
    started = sum(state.status not in (*job.DONE, "waiting") for state in states)
    if done + started:
        say(f"resumed   {done} done, {started} started, {count - done - started} waiting")
    say(f"output    of job N: {sweep / 'N' / job.LOG}")


def print_summary(
    display: SweepDisplay, resume_command: str, stopped_by: int | None, problem: Exception | None
) -> None:
    """Print the table of runs and the next command.

    Raises:
        Interrupted: a signal stopped the sweep.
        RunStopped: jobs failed or did not run.
    """
    jobs = display.jobs
    done = sum(watched.state.status in job.DONE for watched in jobs)
    if any(watched.state.status != "waiting" for watched in jobs):
        say(f"\n{table.render(table.sort_runs(reading.read_runs([display.sweep])))}\n")
    if stopped_by is not None:
        raise Interrupted(
            f"stopped with {done} of {display.count} jobs done; resume with: {resume_command}", stopped_by
        )
    failed = [watched for watched in jobs if watched.state.status == "failed"]
    left = [watched for watched in jobs if not watched.has_ended]
    if problem is not None:
        raise RunStopped(
            f"the launcher failed: {type(problem).__name__}: {problem}; resume with: {resume_command}"
        ) from problem
    if failed or left:
        parts = (
            [f"{len(failed)} of {display.count} jobs failed ({', '.join(str(w.number) for w in failed)})"]
            if failed
            else []
        )
        parts += [f"{len(left)} did not finish"] if left else []
        raise RunStopped(f"{', '.join(parts)}; run those again with: {resume_command}")
    best = progress.best(jobs)
    if best is not None:
        say(f"next      microgpt sample ckpt={shlex.quote(str(best.folder))}")


def _outcome(watched: WatchedJob) -> str:
    state = watched.state
    if state.status == "failed":
        where = watched.folder / job.TRACEBACK
        return f"FAILED: {table.printable(state.error)} (traceback: {where})"
    how = "" if state.status == "finished" else f"{state.status.replace('_', ' ')}, "
    loss = f"val_loss {state.val_loss:.4f}" if state.val_loss is not None else "no val_loss"
    if state.best_val_loss is not None and state.best_val_loss != state.val_loss:
        loss += f" (best {state.best_val_loss:.4f} at step {state.best_step:,})"
    return f"{how}{loss} after {state.step:,} steps in {duration(state.seconds)}"
