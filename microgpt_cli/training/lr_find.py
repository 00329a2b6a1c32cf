"""The learning-rate range test: train a throw-away model while the learning rate rises exponentially.

Smith, "Cyclical Learning Rates for Training Neural Networks", 2015 (arXiv:1506.01186), with the exponential rise and
the smoothed loss of fastai's `lr_find`. Of several rules for the suggested rate this one came closest to the best of a
sweep: `benchmarks/lr_find.py`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from microgpt_cli.compute import Compute
from microgpt_cli.config import TrainConfig
from microgpt_cli.data.dataset import Splits, sample_starts
from microgpt_cli.model.gpt import GPT
from microgpt_cli.training.update import Update

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 200
SMOOTHING = 0.9  # weight of the past in the smoothed loss
DIVERGED = 1.5  # times the lowest smoothed loss, where the test ends
START_STEPS = 10  # with negligible rates: the loss before training
MIN_DECREASE = 0.02  # share of the initial loss; with less there is no suggestion
LOSS_SCALE = 2.0**16  # initial, float16 only


@dataclass(frozen=True)
class Rule:
    """The suggestion: `times` the first rate at which `share` of the total decrease is reached."""

    share: float
    times: float = 1.0


RULES = {"adamw": Rule(0.9), "muon": Rule(0.95, times=2.0)}  # measured: benchmarks/lr_find.py


@dataclass(frozen=True)
class Tried:
    """One step of the test."""

    learning_rate: float
    loss: float  # of the batch, before the update
    smoothed: float


def rate_at(step: int) -> float:
    """The learning rate of a step, rising exponentially."""
    return float(LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1)))


def range_test(model: GPT, splits: Splits, config: TrainConfig, compute: Compute) -> Iterator[Tried]:
    """Train `model` with a rising learning rate until the loss diverges or is not finite.

    Args:
        model: newly initialised; modified in place.
        splits: token ids; the batches are those of the first steps of a run.
        config: batch size, optimizer; its schedule and its learning rates, except their ratio, are ignored.
        compute: device, precision.
    """
    update = Update.fresh(model, splits.train, config, compute)
    sequences, average, lowest = config.batch_size * config.grad_accum_steps, 0.0, math.inf
    loss_scale = LOSS_SCALE if compute.dtype == torch.float16 else 1.0
    for step in range(STEPS):
        starts = sample_starts(len(splits.train), sequences, config.model.block_size, config.seed, step)
        done = update(starts, rate_at(step), loss_scale, lambda: False)
        assert done is not None
        loss, norm = done.tolist()
        if compute.dtype == torch.float16 and not math.isfinite(norm):
            loss_scale /= 2  # the update was skipped
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed = average / (1 - SMOOTHING ** (step + 1))
        if not math.isfinite(smoothed) or smoothed > DIVERGED * lowest:
            return
        lowest = min(lowest, smoothed)
        yield Tried(rate_at(step), loss, smoothed)


@dataclass(frozen=True)
class Fall:
    """The start and the minimum of the smoothed loss."""

    start: float
    lowest: Tried


def fall(tried: Sequence[Tried]) -> Fall | None:
    """The decrease of the loss, or None if it did not decrease."""
    if not tried:
        return None
    start = tried[min(START_STEPS, len(tried)) - 1].smoothed
    lowest = min(tried, key=lambda step: step.smoothed)
    return Fall(start, lowest) if lowest.smoothed < (1 - MIN_DECREASE) * start else None


def suggestion(tried: Sequence[Tried], rule: Rule = RULES["adamw"]) -> float | None:
    """The suggested learning rate, rounded to two digits, or None if the loss did not decrease.

    Based on the first rate at which the smoothed loss has made a given share of its decrease. The rate of the minimum
    is less reliable: the minimum is often flat over a decade of rates.
    """
    found = fall(tried)
    if found is None:
        return None
    threshold = found.start - rule.share * (found.start - found.lowest.smoothed)
    reached = next(step for step in tried if step.smoothed <= threshold)
    return float(f"{rule.times * reached.learning_rate:.1e}")
