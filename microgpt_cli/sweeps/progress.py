"""Progress of a sweep, read from its jobs' folders: completed work, the best loss so far and the remaining time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from microgpt_cli.config import TrainConfig
from microgpt_cli.errors import UserError
from microgpt_cli.runs import layout, storage
from microgpt_cli.sweeps import job

STEP_OVERHEAD_FLOPS = 5e8  # fixed cost of a step, expressed as FLOPs
MAX_READ_BYTES = 1 << 20  # of a log at once


@dataclass(frozen=True)
class Plan:
    """The amount of work in a job."""

    steps: int
    step_work: float  # FLOPs of a step; only ratios between jobs matter


def plan(config: TrainConfig) -> Plan:
    """6 FLOPs per token and weight of the blocks, plus a fixed overhead for every step."""
    size = config.model
    tokens = config.batch_size * config.grad_accum_steps * size.block_size
    return Plan(config.max_steps, STEP_OVERHEAD_FLOPS + 6.0 * 12 * size.n_layer * size.n_embd**2 * tokens)


class WatchedJob:
    """A job whose progress is polled.

    Args:
        number: of the job, the name of its folder.
        folder: of the job.
        label: the swept overrides, such as "optim.learning_rate=0.001 model=micro".
        plan: its amount of work, if known.
    """

    def __init__(self, number: int, folder: Path, label: str, plan: Plan | None) -> None:
        self.number, self.folder, self.label, self.plan = number, folder, label, plan
        self.state = job.read_status(folder)
        self._read_bytes = 0
        self._read_log()

    @property
    def has_ended(self) -> bool:
        return self.state.status in job.ENDED

    def poll(self) -> None:
        """Update the state, unless the job has ended."""
        if self.has_ended:
            return
        now = job.read_status(self.folder)
        ended = now.status in job.ENDED
        self.state = now if ended else dataclasses.replace(self.state, status=now.status)
        if not ended:
            self._read_log()

    def _read_log(self) -> None:
        """Read the lines added to `metrics.jsonl`; a log that was truncated is read from its start."""
        if self.has_ended:
            return
        try:
            with (self.folder / layout.METRICS).open("rb") as file:
                if file.seek(0, 2) < self._read_bytes:
                    self._read_bytes = 0
                    self.state = job.JobStatus(self.state.status)
                file.seek(self._read_bytes)
                data = file.read(MAX_READ_BYTES)
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.splitlines():
            self._read_line(line)

    def _read_line(self, line: bytes) -> None:
        try:
            fields = storage.parse_json(line, layout.METRICS)
            step, val_loss = int(fields["step"]), fields.get("val_loss")
        except (UserError, AttributeError, KeyError, TypeError, ValueError):
            return
        state = dataclasses.replace(self.state, step=step)
        if isinstance(val_loss, float):
            state = dataclasses.replace(state, val_loss=val_loss)
            if state.best_val_loss is None or val_loss < state.best_val_loss:
                state = dataclasses.replace(state, best_val_loss=val_loss, best_step=step)
        self.state = state


def best(jobs: Iterable[WatchedJob]) -> WatchedJob | None:
    """The job with the lowest validation loss so far."""
    evaluated = [watched for watched in jobs if watched.state.best_val_loss is not None]
    return min(evaluated, key=lambda watched: watched.state.best_val_loss or 0.0, default=None)


def work(jobs: Sequence[WatchedJob]) -> tuple[float, float]:
    """Completed and total work in FLOPs; a job of unknown size counts as an average one.

    A job that has ended, early or by a failure, counts as completed.
    """
    sizes = [w.plan.steps * w.plan.step_work for w in jobs if w.plan is not None]
    mean = sum(sizes) / len(sizes) if sizes else 1.0
    done = total = 0.0
    for watched in jobs:
        size = watched.plan.steps * watched.plan.step_work if watched.plan is not None else mean
        share = min(1.0, watched.state.step / watched.plan.steps) if watched.plan is not None else 0.0
        total += size
        done += size if watched.has_ended else size * share
    return done, total


def seconds_left(elapsed: float, done_before: float, done: float, total: float) -> float | None:
    """Estimated remaining time at the average speed since the sweep was started or resumed; None if unknown.

    Args:
        elapsed: seconds since the start.
        done_before: work completed before the start.
        done, total: current and total work.
    """
    progress = done - done_before
    return elapsed * (total - done) / progress if progress > 0 and total > 0 else None
