"""Diagnose a run from its logged losses: one or two sentences from rules with margins, nothing where no rule applies.

Losses are noisy: a logged training loss is a mean over few windows, a validation loss a mean over few tokens. So each
rule compares means of several log lines and requires a difference above both their noise and a practical minimum. The
margins were tuned on real runs, whose logs are in tests/fixtures: well-tuned ones, learning rates from 1/100 to 300
times the best one, a text that is too small, a run on a plateau, and a run of very few steps.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microgpt_cli.config import TrainConfig

Lines = Sequence[Mapping[str, Any]]
Points = list[tuple[int, float]]  # (step, nats)

TOKEN_LOSS_SD = 2.0  # approximate standard deviation of the loss of single tokens, nats
MIN_DIFFERENCE = 0.02  # nats; smaller differences are not reported
MIN_LINES, MIN_EVALUATIONS = 6, 4  # log lines with a training loss, evaluations: fewer show no trend
SPIKE_NATS, SPIKE_NOISE = 0.5, 10.0  # a spike exceeds the preceding losses by at least this, and by this many sd
STUCK_LINES = 20  # log lines needed to diagnose a stuck run
STUCK_FRACTION = 0.75  # a stuck run has this fraction of its total decrease within its first fifth
STUCK_NORM = 0.25  # and its final gradient norm is at most this fraction of the initial one
SLOW_RATE, SAFE_RATE = 3e-4, 3e-3  # a learning rate below the first can be raised tenfold; the second is the default


@dataclass(frozen=True)
class RunContext:
    """What a run's losses are compared with; runs/run_summary.py reads it."""

    uniform: float  # baseline losses in nats per token, see data/baselines.py
    unigram: float
    bigram: float
    unit: str  # characters, bytes
    train_tokens: int  # in the training split
    val_tokens: int  # predicted in an evaluation
    parameters: int


@dataclass(frozen=True)
class Finding:
    """One statement of a diagnosis."""

    kind: str  # bigram, spikes, stuck, slow, overfitting, improving or plateau
    text: str  # a sentence without its full stop
    overrides: str = ""  # command-line overrides to try next

    def __str__(self) -> str:
        return f"{self.text}; try {self.overrides}" if self.overrides else self.text


def diagnose(metrics: Lines, config: TrainConfig, context: RunContext) -> list[Finding]:
    """Compare the best validation loss with the baselines, and name the first problem or trend that a rule finds.

    Args:
        metrics: the lines of `metrics.jsonl`.
        config: of the run.
        context: baselines and sizes to compare with.
    """
    validation, training = _points(metrics, "val_loss"), _points(metrics, "loss")
    if not validation:
        return []
    level = _compare_with_baselines(validation, context)
    trend = (
        _spikes(training, config)
        or _stuck(training, _points(metrics, "grad_norm"), validation, config, context)
        or _overfitting(validation, training, config, context)
        or _slow(validation, config, context)
        or _improving(validation, training, config)
        or _plateau(validation, training, config)
    )
    return [level, trend] if trend else [level]


def _points(lines: Lines, key: str) -> Points:
    return [(line["step"], float(line[key])) for line in lines if key in line]


def _values(points: Points) -> list[float]:
    return [value for _, value in points]


def _noise(values: list[float]) -> float:
    """Standard deviation of single values about a smooth curve, estimated robustly from second differences."""
    bends = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return statistics.median(bends) / math.sqrt(6) / 0.6745 if bends else 0.0


def _compare_with_baselines(validation: Points, context: RunContext) -> Finding:
    """Place the best validation loss among the bigram, unigram and uniform baselines."""
    best = min(_values(validation))
    margin = max(MIN_DIFFERENCE, TOKEN_LOSS_SD / math.sqrt(context.val_tokens))
    gap, bigram = best - context.bigram, f"the bigram baseline ({context.bigram:.3f})"
    if gap < -margin:
        text = f"{-gap:.3f} nats below {bigram}: the model uses more context than one {context.unit.removesuffix('s')}"
    elif gap <= margin:
        text = f"equal to {bigram} within noise"
    elif best < context.unigram - margin:
        text = f"{gap:.3f} nats above {bigram}: the model has not yet learned bigram statistics"
    elif best < context.uniform - margin:
        text = f"no better than the unigram baseline ({context.unigram:.3f})"
    else:
        text = f"no better than the uniform baseline ({context.uniform:.3f})"
    return Finding("bigram", text)


def _spikes(training: Points, config: TrainConfig) -> Finding | None:
    """Training losses that rise far above their noise within a few log lines."""
    losses = _values(training)
    threshold = max(SPIKE_NATS, SPIKE_NOISE * _noise(losses))
    spikes = [training[i] for i in range(3, len(losses)) if losses[i] - max(losses[i - 3 : i]) > threshold]
    if not spikes:
        return None
    step, height = max(spikes, key=lambda spike: spike[1])
    count = f", the highest of {len(spikes)} spikes" if len(spikes) > 1 else ""
    text = f"the training loss spiked to {height:.2f} by step {step:,}{count}: the learning rate is too high"
    return Finding("spikes", text, _lower_rate(config))


def _stuck(
    training: Points, norms: Points, validation: Points, config: TrainConfig, context: RunContext
) -> Finding | None:
    """A loss that decreased only at the start and stayed above the bigram baseline while the gradient vanished.

    With a learning rate that is too low the loss stays high too, but it decreases slowly and the gradient stays large.
    """
    if len(training) < STUCK_LINES or validation[-1][1] < context.bigram - MIN_DIFFERENCE:
        return None
    losses, sizes = _values(training), _values(norms)
    part = max(2, len(losses) // 10)
    early, late = statistics.mean(losses[part : 2 * part]), statistics.mean(losses[-2 * part :])
    decrease, early_decrease = context.uniform - late, context.uniform - early
    has_gradient = statistics.mean(sizes[-2 * part :]) > STUCK_NORM * max(sizes[:part])
    if has_gradient or (decrease > 0 and early_decrease < STUCK_FRACTION * decrease):
        return None
    text = (
        f"the training loss reached {early:.2f} early and then hardly changed, and the gradient vanished: "
        "the learning rate is too high"
    )
    return Finding("stuck", text, _lower_rate(config))


def _lower_rate(config: TrainConfig) -> str:
    rate = config.optim.learning_rate
    lower = SAFE_RATE if rate > 3 * SAFE_RATE else _round(rate / 3)
    floor = f" optim.min_learning_rate={_round(lower / 10):g}" if (config.optim.min_learning_rate or 0) > lower else ""
    return f"optim.learning_rate={lower:g}{floor}"


def _round(value: float) -> float:
    return float(f"{value:.1g}")


def _overfitting(validation: Points, training: Points, config: TrainConfig, context: RunContext) -> Finding | None:
    """A validation loss that has risen since its minimum while the training loss kept decreasing."""
    losses = _values(validation)
    best = losses.index(min(losses))
    step = validation[best][0]
    before = [loss for at, loss in training if at <= step]
    after = [loss for at, loss in training if at > step]
    few = max(2, min(len(before), len(after)) // 4)
    if len(losses) - 1 - best < 2 or len(before) < 2 or len(after) < 2:
        return None
    rise = losses[-1] - losses[best]
    fall = statistics.mean(before[-few:]) - statistics.mean(after[-few:])
    noise = max(_noise(losses), TOKEN_LOSS_SD / math.sqrt(context.val_tokens) / 2)
    noise_of_fall = _noise(_values(training)) * math.sqrt(2 / few)
    if rise < max(MIN_DIFFERENCE, 3 * noise) or fall < max(MIN_DIFFERENCE, 4 * noise_of_fall):
        return None
    text = (
        f"overfitting since step {step:,}: the validation loss rose from {losses[best]:.2f} to {losses[-1]:.2f} while "
        f"the training loss fell by {fall:.2f}"
    )
    if context.parameters > context.train_tokens:
        text += (
            f"; {context.train_tokens:,} {context.unit} are few for {context.parameters:,} parameters: more text would "
            "help most"
        )
    regularization = "early_stop_patience=3" if config.model.dropout else "model.dropout=0.2"
    return Finding("overfitting", text, regularization)


def _slow(validation: Points, config: TrainConfig, context: RunContext) -> Finding | None:
    """A run that is not stuck but not below the unigram baseline either: too few steps, or a learning rate too low."""
    margin = max(MIN_DIFFERENCE, TOKEN_LOSS_SD / math.sqrt(context.val_tokens))
    step, rate = validation[-1][0], config.optim.learning_rate
    if min(_values(validation)) < context.unigram - margin:
        return None
    if rate >= SLOW_RATE or step < 4 * config.optim.warmup_steps:
        return Finding("slow", f"{step:,} steps are too few to train this model", f"max_steps={10 * step}")
    text = f"the loss decreased little in {step:,} steps: a learning rate of {rate:g} is too low"
    return Finding("slow", text, f"optim.learning_rate={_round(10 * rate):g}")


def _improving(validation: Points, training: Points, config: TrainConfig) -> Finding | None:
    """A loss that still fell in the last quarter of the steps; the training loss if there were few evaluations."""
    step, which = validation[-1][0], "validation"
    if len(validation) >= MIN_EVALUATIONS:
        late = [loss for at, loss in validation if at >= 0.75 * step]
        fall = late[0] - late[-1] if len(late) > 1 else 0.0
        noise = _noise(_values(validation)[len(validation) // 4 :])
        if late[-1] > min(_values(validation)) + MIN_DIFFERENCE:
            return None
    else:
        losses, which = _values(training), "training"
        few = max(2, len(losses) // 4)
        if len(losses) < MIN_LINES or validation[-1][1] > 1.1 * statistics.mean(losses[-few:]):
            return None
        fall = statistics.mean(losses[-2 * few : -few]) - statistics.mean(losses[-few:])
        noise = _noise(losses) * math.sqrt(2 / few)
    if fall < max(MIN_DIFFERENCE, 4 * noise):
        return None
    text = f"still improving: the {which} loss fell by {fall:.2f} in the last quarter of the steps"
    if step < config.max_steps:
        return Finding("improving", f"{text}, with {config.max_steps - step:,} steps left")
    return Finding("improving", text, f"max_steps={2 * step}")


def _plateau(validation: Points, training: Points, config: TrainConfig) -> Finding | None:
    """A validation loss that did not change in the second half of the steps."""
    step = validation[-1][0]
    late = [loss for at, loss in validation if at >= 0.5 * step]
    if len(late) < MIN_EVALUATIONS or max(late) - min(late) > 2 * MIN_DIFFERENCE:
        return None
    text = (
        f"plateau: the validation loss changed by at most {max(late) - min(late):.3f} in the second half of the steps"
    )
    tail = _values(training)[-max(2, len(training) // 4) :]
    if statistics.mean(tail) < late[-1] - MIN_DIFFERENCE:
        return Finding("plateau", text)
    text += ", and the training loss is no lower: the model is too small for this text"
    return Finding("plateau", text, f"model.n_embd={2 * config.model.n_embd}")
