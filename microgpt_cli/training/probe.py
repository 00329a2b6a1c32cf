"""Estimate the duration and the memory of a run from a few steps of a throw-away model.

The steps are those of the run (`Update`, its windows, its learning rate), but without torch.compile, which would write
to the disk.
"""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from microgpt_cli import randomness
from microgpt_cli.compute import Compute
from microgpt_cli.config import TrainConfig
from microgpt_cli.data.dataset import Splits, sample_starts
from microgpt_cli.generation.dtype_policy import choose_native
from microgpt_cli.generation.generate import generate
from microgpt_cli.generation.sampling import Sampler, UniformStream
from microgpt_cli.model.accounting import memory
from microgpt_cli.model.gpt import GPT
from microgpt_cli.training.schedule import lr_at
from microgpt_cli.training.trainer import EVAL_BATCH_TOKENS, FIRST_LOSS_SCALE, evaluate
from microgpt_cli.training.update import Update

WARMUP_STEPS, PROBE_STEPS = 3, 10
MAX_SECONDS = 60.0  # afterwards no more steps are timed
PROBE_TOKENS = 20  # sampled
CHECKPOINTS_KEPT = 4  # the last two, the best, and one being written
SAVE_SEC, SAVE_BYTES_PER_SEC = 0.05, 200e6  # to hash, write and sync a checkpoint, approximately


@dataclass(frozen=True)
class Throughput:
    """Seconds per step, evaluated token and sampled token."""

    step: float
    eval_token: float
    sample_token: float
    steps: int  # number of timed steps


@dataclass(frozen=True)
class Forecast:
    """Estimated seconds of a whole run."""

    training: float
    evaluating: float
    sampling: float
    saving: float

    @property
    def total(self) -> float:
        return self.training + self.evaluating + self.sampling + self.saving


def estimate(config: TrainConfig, splits: Splits, vocab_size: int, compute: Compute) -> Throughput:
    """Time a few steps, the evaluation of a few windows, and the sampling of a few tokens."""
    torch.manual_seed(randomness.derive(config.seed, randomness.WEIGHTS))
    model = GPT(config.model, vocab_size).to(compute.device)
    update = Update.fresh(model, splits.train, config, replace(compute, compile=False))
    scale = FIRST_LOSS_SCALE if compute.dtype == torch.float16 else 1.0
    B, T = config.batch_size * config.grad_accum_steps, config.model.block_size
    began = first = time.perf_counter()
    timed = 0
    for step in range(WARMUP_STEPS + PROBE_STEPS):
        starts = sample_starts(len(splits.train), B, T, config.seed, step)
        numbers = update(starts, lr_at(step, config.max_steps, config.optim), scale, lambda: False)
        assert numbers is not None
        if step + 1 == WARMUP_STEPS or compute.device.type == "cpu":
            numbers.tolist()  # on a GPU a run rarely synchronizes
        if step < WARMUP_STEPS and time.perf_counter() - first < MAX_SECONDS:
            began = time.perf_counter()
            continue
        timed = max(1, step + 1 - WARMUP_STEPS)
        if time.perf_counter() - first > MAX_SECONDS:
            break
    assert numbers is not None
    numbers.tolist()
    step_seconds = (time.perf_counter() - began) / timed
    val = splits.val[: min(EVAL_BATCH_TOKENS, len(splits.val) - 1) + 1]
    began = time.perf_counter()
    tokens = sum(count for loss, count in evaluate(model, val, compute) if loss.item())
    eval_token = (time.perf_counter() - began) / max(1, tokens)
    model.eval()
    prompt = splits.train[: min(T, 75)].tolist()  # the average context length of a sample
    sampler, draws = Sampler(temperature=0.8), UniformStream(config.seed, 1, 0)
    native = choose_native("auto" if compute.engine == "native" else "torch", model)
    list(generate(model, prompt, WARMUP_STEPS, sampler, draws, native=native))
    began = time.perf_counter()
    written = list(generate(model, prompt, PROBE_TOKENS, sampler, draws, native=native))
    return Throughput(step_seconds, eval_token, (time.perf_counter() - began) / len(written), timed)


def forecast(
    config: TrainConfig,
    throughput: Throughput,
    eval_tokens: int,
    sample_tokens: int,
    last_tokens: int,
    state_bytes: int,
) -> Forecast:
    """The seconds of a whole run without an early stop.

    Args:
        eval_tokens: per evaluation.
        sample_tokens, last_tokens: of a sample during the run and of the final one.
        state_bytes: of a checkpoint.
    """

    def times(interval: int) -> int:  # including the last step
        return -(-config.max_steps // interval) if interval else 1

    samples = (times(config.sample_interval) - 1) * sample_tokens + last_tokens
    saves = max(times(config.checkpoint_interval), times(config.eval_interval))  # each evaluation may be the best
    return Forecast(
        training=config.max_steps * throughput.step,
        evaluating=times(config.eval_interval) * eval_tokens * throughput.eval_token,
        sampling=samples * throughput.sample_token,
        saving=saves * (SAVE_SEC + state_bytes / SAVE_BYTES_PER_SEC),
    )


def needed_bytes(model: GPT, config: TrainConfig, engine: str, batch_size: int) -> int:
    """Memory of a training step, by the formulas of model/accounting.py."""
    return sum(cost.value for cost in memory(model, batch_size, config.optim, engine).values())


def fitting_batch(model: GPT, config: TrainConfig, engine: str, free: int) -> int | None:
    """The largest divisor of the batch size whose step fits into `free` bytes; None if one sequence does not."""
    B = config.batch_size
    divisors = [n for n in range(B, 0, -1) if B % n == 0]
    return next((n for n in divisors if needed_bytes(model, config, engine, n) <= free), None)


def free_bytes(device: torch.device) -> int | None:
    """Free memory of the device, if the system reports it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [_meminfo(), _cgroup()]
    return min((size for size in found if size is not None), default=None)


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):  # not Linux
        names = getattr(os, "sysconf_names", {})
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_PHYS_PAGES" in names else None


def _cgroup() -> int | None:
    """The unused part of the container's memory limit."""
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # none, or "max"
        return None
    return max(0, limit - used)
