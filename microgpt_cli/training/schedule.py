"""The learning rate as a pure function of the step."""

import math

from microgpt_cli.config import OptimConfig


def lr_at(step: int, max_steps: int, config: OptimConfig) -> float:
    """The learning rate of the update after `step` completed ones.

    Linear warm-up over `warmup_steps`, then constant, with a decay over the last `decay_fraction` of all steps unless
    the schedule is constant.
    """
    peak, low = config.learning_rate, config.last_learning_rate
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return peak
    decay_start = max(config.warmup_steps, round(max_steps * (1 - config.decay_fraction)))
    done = min(1.0, max(0.0, (step - decay_start) / max(1, max_steps - 1 - decay_start)))
    left = 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return low + (peak - low) * left
