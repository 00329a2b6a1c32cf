"""The learning-rate range test: train a throw-away model while the rate rises from tiny to huge, and watch the loss.

Smith, "Cyclical Learning Rates for Training Neural Networks", 2015 (arXiv:1506.01186), with the exponential rise and
the smoothed loss of fastai's `lr_find`. The rule that picks a rate is the one of several that came nearest to the best
of a sweep: `benchmarks/lr_find.py`.
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
SMOOTHING = 0.9  # share of the past in the smoothed loss
DIVERGED = 1.5  # times the lowest smoothed loss: there the test ends
START_STEPS = 10  # whose rates are too small to change anything: what the loss is before training
LEAST_FALL = 0.02  # of the loss at the start: a curve that falls less shows no rate
LOSS_SCALE = 2.0**16  # float16 only, at first


@dataclass(frozen=True)
class Rule:
    """What is suggested: `times` the first rate at which `share` of the whole fall is behind."""

    share: float
    times: float = 1.0


RULES = {"adamw": Rule(0.9), "muon": Rule(0.95, times=2.0)}  # Muon's best lies further right: benchmarks/lr_find.py


@dataclass(frozen=True)
class Tried:
    """One step of the test."""

    learning_rate: float
    loss: float  # of the batch, before the update
    smoothed: float


def rate_at(step: int) -> float:
    """The learning rate of a step: equal factors from one to the next."""
    return float(LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1)))


def range_test(model: GPT, splits: Splits, config: TrainConfig, compute: Compute) -> Iterator[Tried]:
    """Train `model` with a rising learning rate until the loss has gone far up, or is no number any more.

    Args:
        model: with fresh weights; it is spoilt.
        splits: token ids; the batches are those of a run's first steps.
        config: batch size, optimizer; its schedule is left aside, and of its learning rates all but their ratio.
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
            loss_scale /= 2  # the update was left out
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed = average / (1 - SMOOTHING ** (step + 1))
        if not math.isfinite(smoothed) or smoothed > DIVERGED * lowest:
            return
        lowest = min(lowest, smoothed)
        yield Tried(rate_at(step), loss, smoothed)


@dataclass(frozen=True)
class Fall:
    """From where to where the smoothed loss of a test fell."""

    start: float
    lowest: Tried


def fall(tried: Sequence[Tried]) -> Fall | None:
    """How the loss fell, or None where it did not, and the test says nothing."""
    if not tried:
        return None
    start = tried[min(START_STEPS, len(tried)) - 1].smoothed
    lowest = min(tried, key=lambda step: step.smoothed)
    return Fall(start, lowest) if lowest.smoothed < (1 - LEAST_FALL) * start else None


def suggestion(tried: Sequence[Tried], rule: Rule = RULES["adamw"]) -> float | None:
    """The learning rate to use, of two digits, or None where the loss never fell.

    It follows from the first at which the smoothed loss has come some share of its way down. The rate of the lowest
    loss itself says less: the bottom is often flat over a decade of rates, and where on it the lowest point lies is
    chance.
    """
    found = fall(tried)
    if found is None:
        return None
    threshold = found.start - rule.share * (found.start - found.lowest.smoothed)
    reached = next(step for step in tried if step.smoothed <= threshold)
    return float(f"{rule.times * reached.learning_rate:.1e}")
