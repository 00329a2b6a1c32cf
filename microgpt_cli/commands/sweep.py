"""What a sweep says: how far its jobs are, a line for each that has ended, and the table of runs at its end.

It looks at the jobs' folders, so it is the same whichever launcher runs them, and where.
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
from microgpt_cli.sweeps.progress import Watched
from microgpt_cli.sweeps.record import Record, job_folder

LOOK_SEC = 0.5
LINE_SEC = 60.0  # between lines about running jobs where there is no terminal for a bar
MOST_NAMED = 4  # running jobs in a line
PARTS = 1000  # of the bar


class Show:
    """Shows a sweep for as long as its context is open. More jobs may be added meanwhile."""

    def __init__(self, sweep: Path, count: int) -> None:
        self.sweep, self.count = sweep, count
        self.jobs: list[Watched] = []
        # A job that runs in this process has standard output and error to itself, so these are kept.
        self._out, self._err = sys.stdout, sys.stderr
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._began = self._told = time.monotonic()
        self._done_before, self._ended_before = 0.0, 0

    def __enter__(self) -> "Show":
        self._bar = tqdm(
            total=PARTS,
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
        self.look()
        self._bar.close()

    def add(self, jobs: Sequence[Watched]) -> None:
        """Watch more jobs."""
        with self._lock:
            self.jobs += jobs
            self._done_before += sum(progress.work([watched])[0] for watched in jobs)
            self._ended_before += sum(watched.has_ended for watched in jobs)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._bar.clear()
        say(text, self._out)
        self._bar.refresh()

    def look(self) -> None:
        """Look at all jobs, and tell of those that have ended since."""
        with self._lock:
            running = [watched for watched in self.jobs if not watched.has_ended]
            for watched in running:
                watched.look()
                self._tell_end(watched)
            self._bar.n = round(PARTS * self._share())
            self._bar.set_description_str(self._now(), refresh=False)
            self._bar.set_postfix_str(self._standing())

    def tell(self, number: int, end: job.Look) -> None:
        """A job has ended; its folder may not say so."""
        with self._lock:
            for watched in self.jobs:
                if watched.number == number and not watched.has_ended:
                    watched.seen = end
                    self._tell_end(watched)

    def _tell_end(self, watched: Watched) -> None:
        if watched.has_ended:
            self.say(f"job {watched.number:<5} {watched.label}  {_outcome(watched)}; {self._standing()}")

    def _watch(self) -> None:
        pause = LOOK_SEC
        while not self._end.wait(pause):
            began = time.monotonic()
            self.look()
            pause = max(LOOK_SEC, 20 * (time.monotonic() - began))  # many jobs take long to look at
            if self._bar.disable and time.monotonic() - self._told >= LINE_SEC:
                self._told = time.monotonic()
                self.say(f"{self._now()}; {self._standing()}")

    def _share(self) -> float:
        done, total = progress.work(self.jobs)
        return done / total if total else 0.0

    def _now(self) -> str:
        """Which jobs are running, and how far."""
        running = [w for w in self.jobs if w.seen.status not in (*job.ENDED, "waiting", "interrupted")]
        shown = [f"job {w.number} {w.seen.step:,}/{w.plan.steps if w.plan else 0:,}" for w in running[:MOST_NAMED]]
        more = [f"{len(running) - MOST_NAMED} more"] if len(running) > MOST_NAMED else []
        return ", ".join([*shown, *more]) or "beginning"

    def _standing(self) -> str:
        """The best loss so far, how many jobs have ended, and when all will have."""
        ended = sum(watched.has_ended for watched in self.jobs)
        parts = [f"{ended} of {self.count} done"]
        leader = progress.best(self.jobs)
        if leader is not None:
            parts.insert(0, f"best so far {leader.seen.best_val_loss:.4f}, job {leader.number}")
        elapsed = time.monotonic() - self._began
        if self.count > len(self.jobs):  # nobody knows what is still to be drawn, nor how far it will run
            left = progress.seconds_left(elapsed, self._ended_before, ended, self.count)
        else:
            left = progress.seconds_left(elapsed, self._done_before, *progress.work(self.jobs))
        if left is not None and ended < self.count:
            parts.append(f"ETA {duration(left)}")
        return ", ".join(parts)


def introduce(sweep: Path, record: Record, count: int) -> None:
    """Where it is, of what it consists, and how much of that is done."""
    looks = [job.look(job_folder(sweep, number)) for number in range(len(record.jobs))]
    over = " × ".join(
        f"{len(values)} {key}" if isinstance(values, list) else key for key, values in record.space.items()
    )
    say(f"sweep     {sweep}: {count} jobs{f', {over}' if over else ''}")
    done = sum(look.status in job.DONE for look in looks)
    begun = sum(look.status not in (*job.DONE, "waiting") for look in looks)
    if done + begun:
        say(f"resumed   {done} done, {begun} begun, {count - done - begun} to begin")
    say(f"output    of job N: {sweep / 'N' / job.LOG}")


def conclude(show: Show, go_on: str, stopped_by: int | None, problem: Exception | None) -> None:
    """The table of the runs, and what to type next.

    Raises:
        Interrupted: a signal had stopped it.
        RunStopped: jobs failed or did not run.
    """
    jobs = show.jobs
    done = sum(watched.seen.status in job.DONE for watched in jobs)
    if any(watched.seen.status != "waiting" for watched in jobs):
        say(f"\n{table.render(table.sort_runs(reading.read_runs([show.sweep])))}\n")
    if stopped_by is not None:
        raise Interrupted(f"stopped with {done} of {show.count} jobs done; go on with: {go_on}", stopped_by)
    failed = [watched for watched in jobs if watched.seen.status == "failed"]
    left = [watched for watched in jobs if not watched.has_ended]
    if problem is not None:
        raise RunStopped(f"the launcher failed: {type(problem).__name__}: {problem}; go on with: {go_on}") from problem
    if failed or left:
        parts = (
            [f"{len(failed)} of {show.count} jobs failed ({', '.join(str(w.number) for w in failed)})"]
            if failed
            else []
        )
        parts += [f"{len(left)} did not run to an end"] if left else []
        raise RunStopped(f"{', '.join(parts)}; to run those again: {go_on}")
    leader = progress.best(jobs)
    if leader is not None:
        say(f"next      microgpt sample ckpt={shlex.quote(str(leader.folder))}")


def _outcome(watched: Watched) -> str:
    seen = watched.seen
    if seen.status == "failed":
        where = watched.folder / job.TRACEBACK
        return f"FAILED: {table.printable(seen.error)} (traceback: {where})"
    how = "" if seen.status == "finished" else f"{seen.status.replace('_', ' ')}, "
    loss = f"val_loss {seen.val_loss:.4f}" if seen.val_loss is not None else "no val_loss"
    if seen.best_val_loss is not None and seen.best_val_loss != seen.val_loss:
        loss += f" (best {seen.best_val_loss:.4f} at step {seen.best_step:,})"
    return f"{how}{loss} after {seen.step:,} steps in {duration(seen.seconds)}"
