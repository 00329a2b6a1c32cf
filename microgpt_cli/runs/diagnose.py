"""What the numbers of a run say, in a sentence or two: rules with margins, no guesses, silence where they say nothing.

Losses are noisy: a training line is a mean over few windows, a held-out loss over few tokens. So a rule compares means
of several lines, and asks for more than their spread and more than a person would care about. The margins were set on
real runs, whose logs tests/test_judge.py keeps: good ones, learning rates from a hundredth of the right one to three
hundred times it, a text too small, a run that has settled, one that was over before it began.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microgpt_cli.config import TrainConfig

Lines = Sequence[Mapping[str, Any]]
Points = list[tuple[int, float]]  # (step, nats)

NATS_SPREAD = 2.0  # standard deviation of the loss of one token of text, about
CARED_NATS = 0.02  # a smaller difference is worth no sentence
LEAST_LINES, LEAST_EVALUATIONS = 6, 4  # for a trend in the training loss, in the held-out loss
SPIKE_NATS, SPIKE_NOISE = 0.5, 10.0  # a spike rises so far above the lines before it, and by so many times their spread
STUCK_LINES = 20  # of a run that can be told to be stuck
STUCK_SHARE = 0.75  # of all that its loss ever fell, it fell in the first fifth
STUCK_NORM = 0.25  # of the gradient norm of its beginning, no more is left at its end
SLOW_RATE, SAFE_RATE = 3e-4, 3e-3  # learning rates: one below can be ten times higher; the default, safe when small


@dataclass(frozen=True)
class Setting:
    """What a run's numbers are held against; runs/about.py reads it."""

    uniform: float  # nats a token, as data/baselines.py counts them
    unigram: float
    bigram: float
    unit: str  # characters, bytes
    train_tokens: int  # of the split to learn from
    val_tokens: int  # that an evaluation predicts
    parameters: int


@dataclass(frozen=True)
class Finding:
    """One thing that the numbers say."""

    kind: str  # bigram, spikes, stuck, slow, overfitting, improving or settled
    text: str  # a sentence without its full stop
    overrides: str = ""  # what to type to mend it

    def __str__(self) -> str:
        return f"{self.text}; try {self.overrides}" if self.overrides else self.text


def judge(metrics: Lines, config: TrainConfig, setting: Setting) -> list[Finding]:
    """What can be said of a run: where it stands, and where it was going.

    Args:
        metrics: the lines of `metrics.jsonl`.
        config: the run's.
        setting: what to compare with.
    """
    held_out, training = _points(metrics, "val_loss"), _points(metrics, "loss")
    if not held_out:
        return []
    standing = _standing(held_out, setting)
    course = (
        _spikes(training, config)
        or _stuck(training, _points(metrics, "grad_norm"), held_out, config, setting)
        or _overfitting(held_out, training, config, setting)
        or _slow(held_out, config, setting)
        or _improving(held_out, training, config)
        or _settled(held_out, training, config)
    )
    return [standing, course] if course else [standing]


def _points(lines: Lines, key: str) -> Points:
    return [(line["step"], float(line[key])) for line in lines if key in line]


def _values(points: Points) -> list[float]:
    return [value for _, value in points]


def _noise(values: list[float]) -> float:
    """The spread of single values about a smooth course: what a straight line between neighbours misses."""
    bends = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return statistics.median(bends) / math.sqrt(6) / 0.6745 if bends else 0.0


def _standing(held_out: Points, setting: Setting) -> Finding:
    """How the best loss compares with what counting reaches."""
    best = min(_values(held_out))
    margin = max(CARED_NATS, NATS_SPREAD / math.sqrt(setting.val_tokens))
    pairs, gap = f"counting pairs of {setting.unit} ({setting.bigram:.3f})", best - setting.bigram
    if gap < -margin:
        words = f"{-gap:.3f} below {pairs}: it uses more context than one {setting.unit.removesuffix('s')}"
    elif gap <= margin:
        words = f"level with {pairs}"
    elif best < setting.unigram - margin:
        words = f"{gap:.3f} above {pairs}: it has not yet learnt even those"
    elif best < setting.uniform - margin:
        words = f"no better than counting single {setting.unit} ({setting.unigram:.3f})"
    else:
        words = f"no better than guessing ({setting.uniform:.3f})"
    return Finding("bigram", words)


def _spikes(training: Points, config: TrainConfig) -> Finding | None:
    """Training losses that jump up and out of their noise."""
    losses = _values(training)
    least = max(SPIKE_NATS, SPIKE_NOISE * _noise(losses))
    jumps = [training[i] for i in range(3, len(losses)) if losses[i] - max(losses[i - 3 : i]) > least]
    if not jumps:
        return None
    step, height = max(jumps, key=lambda jump: jump[1])
    often = f", the highest of {len(jumps)} such jumps" if len(jumps) > 1 else ""
    words = f"the training loss jumped to {height:.2f} by step {step:,}{often}: the learning rate is too high"
    return Finding("spikes", words, _lower_rate(config))


def _stuck(training: Points, norms: Points, held_out: Points, config: TrainConfig, setting: Setting) -> Finding | None:
    """A loss that plunged at once and hardly moved after, above the bigram, while the gradient died.

    With a learning rate that is too low a loss stays high too, but it gets there slowly and its gradient lives.
    """
    if len(training) < STUCK_LINES or held_out[-1][1] < setting.bigram - CARED_NATS:
        return None
    losses, sizes = _values(training), _values(norms)
    part = max(2, len(losses) // 10)
    early, late = statistics.mean(losses[part : 2 * part]), statistics.mean(losses[-2 * part :])
    fell, fell_early = setting.uniform - late, setting.uniform - early
    lives = statistics.mean(sizes[-2 * part :]) > STUCK_NORM * max(sizes[:part])
    if lives or (fell > 0 and fell_early < STUCK_SHARE * fell):
        return None
    words = (
        f"the training loss came to {early:.2f} at once and moved little after, and the gradient shrank: "
        "the learning rate is too high"
    )
    return Finding("stuck", words, _lower_rate(config))


def _lower_rate(config: TrainConfig) -> str:
    rate = config.optim.learning_rate
    lower = SAFE_RATE if rate > 3 * SAFE_RATE else _round(rate / 3)
    floor = f" optim.min_learning_rate={_round(lower / 10):g}" if (config.optim.min_learning_rate or 0) > lower else ""
    return f"optim.learning_rate={lower:g}{floor}"


def _round(value: float) -> float:
    return float(f"{value:.1g}")


def _overfitting(held_out: Points, training: Points, config: TrainConfig, setting: Setting) -> Finding | None:
    """A held-out loss that has risen for good since its best, while the training loss went on falling."""
    losses = _values(held_out)
    best = losses.index(min(losses))
    step = held_out[best][0]
    before = [loss for at, loss in training if at <= step]
    after = [loss for at, loss in training if at > step]
    few = max(2, min(len(before), len(after)) // 4)
    if len(losses) - 1 - best < 2 or len(before) < 2 or len(after) < 2:
        return None
    rise = losses[-1] - losses[best]
    fall = statistics.mean(before[-few:]) - statistics.mean(after[-few:])
    noise = max(_noise(losses), NATS_SPREAD / math.sqrt(setting.val_tokens) / 2)
    noise_of_fall = _noise(_values(training)) * math.sqrt(2 / few)
    if rise < max(CARED_NATS, 3 * noise) or fall < max(CARED_NATS, 4 * noise_of_fall):
        return None
    words = (
        f"overfitting since step {step:,}: the held-out loss rose from {losses[best]:.2f} to {losses[-1]:.2f} while "
        f"the training loss fell by {fall:.2f}"
    )
    if setting.parameters > setting.train_tokens:
        words += (
            f"; {setting.train_tokens:,} {setting.unit} are little for {setting.parameters:,} parameters, and more "
            "text would help most"
        )
    less = "early_stop_patience=3" if config.model.dropout else "model.dropout=0.2"
    return Finding("overfitting", words, less)


def _slow(held_out: Points, config: TrainConfig, setting: Setting) -> Finding | None:
    """A run that is not stuck and yet does no better than counting single tokens: it has hardly begun."""
    margin = max(CARED_NATS, NATS_SPREAD / math.sqrt(setting.val_tokens))
    step, rate = held_out[-1][0], config.optim.learning_rate
    if min(_values(held_out)) < setting.unigram - margin:
        return None
    if rate >= SLOW_RATE or step < 4 * config.optim.warmup_steps:
        return Finding("slow", f"{step:,} steps were too few to learn much", f"max_steps={10 * step}")
    words = f"it has learnt little in {step:,} steps: a learning rate of {rate:g} is too low"
    return Finding("slow", words, f"optim.learning_rate={_round(10 * rate):g}")


def _improving(held_out: Points, training: Points, config: TrainConfig) -> Finding | None:
    """A loss that still fell in the last quarter of the steps; the training loss, where evaluations were few."""
    step, which = held_out[-1][0], "held-out"
    if len(held_out) >= LEAST_EVALUATIONS:
        late = [loss for at, loss in held_out if at >= 0.75 * step]
        fall = late[0] - late[-1] if len(late) > 1 else 0.0
        noise = _noise(_values(held_out)[len(held_out) // 4 :])
        if late[-1] > min(_values(held_out)) + CARED_NATS:
            return None
    else:
        losses, which = _values(training), "training"
        few = max(2, len(losses) // 4)
        if len(losses) < LEAST_LINES or held_out[-1][1] > 1.1 * statistics.mean(losses[-few:]):
            return None
        fall = statistics.mean(losses[-2 * few : -few]) - statistics.mean(losses[-few:])
        noise = _noise(losses) * math.sqrt(2 / few)
    if fall < max(CARED_NATS, 4 * noise):
        return None
    words = f"still improving: the {which} loss fell by {fall:.2f} in the last quarter of the steps"
    if step < config.max_steps:
        return Finding("improving", f"{words}, and {config.max_steps - step:,} were left")
    return Finding("improving", words, f"max_steps={2 * step}")


def _settled(held_out: Points, training: Points, config: TrainConfig) -> Finding | None:
    """A held-out loss that the second half of the steps has not moved."""
    step = held_out[-1][0]
    late = [loss for at, loss in held_out if at >= 0.5 * step]
    if len(late) < LEAST_EVALUATIONS or max(late) - min(late) > 2 * CARED_NATS:
        return None
    words = f"settled: the second half of the steps moved the held-out loss by no more than {max(late) - min(late):.3f}"
    tail = _values(training)[-max(2, len(training) // 4) :]
    if statistics.mean(tail) < late[-1] - CARED_NATS:
        return Finding("settled", words)
    size = config.model
    words += ", and the training loss is no lower, so the text has more to give than the model can take"
    return Finding("settled", words, f"model.n_embd={2 * size.n_embd}")
