"""How far a sweep is: what the jobs' folders say, the best loss so far, and when the last job will have ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from microgpt_cli.config import TrainConfig
from microgpt_cli.errors import UserError
from microgpt_cli.runs import layout, storage
from microgpt_cli.sweeps import job

STEP_FLOPS = 5e8  # what a step costs however small the model is, in units of the arithmetic of larger ones
MOST_READ = 1 << 20  # bytes of a log in one look


@dataclass(frozen=True)
class Plan:
    """How much there is to do in a job."""

    steps: int
    step_work: float  # of a step, in FLOPs; only ratios between jobs matter


def plan(config: TrainConfig) -> Plan:
    """6 FLOPs a token for each weight of the blocks, and something for every step."""
    size = config.model
    tokens = config.batch_size * config.grad_accum_steps * size.block_size
    return Plan(config.max_steps, STEP_FLOPS + 6.0 * 12 * size.n_layer * size.n_embd**2 * tokens)


class Watched:
    """A job that is looked at now and then.

    Args:
        number: of the job, the name of its folder.
        folder: where it is.
        label: what sets it apart, for people: "optim.learning_rate=0.001 model=micro".
        plan: how much there is to do, if it is known.
    """

    def __init__(self, number: int, folder: Path, label: str, plan: Plan | None) -> None:
        self.number, self.folder, self.label, self.plan = number, folder, label, plan
        self.seen = job.look(folder)
        self._read_bytes = 0
        self._read_log()

    @property
    def has_ended(self) -> bool:
        return self.seen.status in job.ENDED

    def look(self) -> None:
        """Look again; a job that has ended is not looked at any more."""
        if self.has_ended:
            return
        now = job.look(self.folder)
        ended = now.status in job.ENDED
        self.seen = now if ended else dataclasses.replace(self.seen, status=now.status)
        if not ended:
            self._read_log()

    def _read_log(self) -> None:
        """Take in what has been added to `metrics.jsonl`; a log that was cut short is read from its start."""
        if self.has_ended:
            return
        try:
            with (self.folder / layout.METRICS).open("rb") as file:
                if file.seek(0, 2) < self._read_bytes:
                    self._read_bytes = 0
                    self.seen = job.Look(self.seen.status)
                file.seek(self._read_bytes)
                data = file.read(MOST_READ)
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.splitlines():
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            fields = storage.parse_json(line, layout.METRICS)
            step, val_loss = int(fields["step"]), fields.get("val_loss")
        except (UserError, AttributeError, KeyError, TypeError, ValueError):
            return
        seen = dataclasses.replace(self.seen, step=step)
        if isinstance(val_loss, float):
            seen = dataclasses.replace(seen, val_loss=val_loss)
            if seen.best_val_loss is None or val_loss < seen.best_val_loss:
                seen = dataclasses.replace(seen, best_val_loss=val_loss, best_step=step)
        self.seen = seen


def best(jobs: Iterable[Watched]) -> Watched | None:
    """The job with the lowest held-out loss so far."""
    measured = [watched for watched in jobs if watched.seen.best_val_loss is not None]
    return min(measured, key=lambda watched: watched.seen.best_val_loss or 0.0, default=None)


def work(jobs: Sequence[Watched]) -> tuple[float, float]:
    """What has been done, and what there is to do in all, in FLOPs; a job of unknown size counts as the mean one.

    A job that has ended, early or in failure, has no more to do.
    """
    sizes = [w.plan.steps * w.plan.step_work for w in jobs if w.plan is not None]
    mean = sum(sizes) / len(sizes) if sizes else 1.0
    done = total = 0.0
    for watched in jobs:
        size = watched.plan.steps * watched.plan.step_work if watched.plan is not None else mean
        share = min(1.0, watched.seen.step / watched.plan.steps) if watched.plan is not None else 0.0
        total += size
        done += size if watched.has_ended else size * share
    return done, total


def seconds_left(elapsed: float, done_before: float, done: float, total: float) -> float | None:
    """When the rest will be done if it goes on as since the sweep was begun, or gone on with.

    Args:
        elapsed: seconds since then.
        done_before: work that had been done then.
        done, total: work, as of now.
    """
    fresh = done - done_before
    return elapsed * (total - done) / fresh if fresh > 0 and total > 0 else None
