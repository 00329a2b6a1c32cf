"""Where the time of a training step goes: a few steps of a throw-away model under torch's profiler.

The steps are a run's own (`Update`, its windows, its learning rate). They are made three times over: to warm up, which
compiles or records a CUDA graph; as they are, for the pace; and profiled, which slows them.
"""

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

from microgpt_cli.compute import Compute
from microgpt_cli.config import TrainConfig
from microgpt_cli.data.dataset import Splits, sample_starts
from microgpt_cli.engines.autograd import CompilerFailed
from microgpt_cli.model.gpt import GPT
from microgpt_cli.training.schedule import lr_at
from microgpt_cli.training.trainer import FIRST_LOSS_SCALE
from microgpt_cli.training.update import Update

WARMUP_STEPS, TIMED_STEPS, PROFILED_STEPS = 5, 10, 10
LONGEST_SECONDS = 20.0  # for each of the three; then as many steps as were made must do
STEP = "step"  # what the profiled steps are marked by; their phases are marked as `Update` calls them


@dataclass(frozen=True)
class Operation:
    """One operation, or one kernel of a GPU, over all profiled steps."""

    name: str  # torch's
    seconds: float  # its own, without what it called
    calls: int
    flops: int  # 0 where torch can't tell


@dataclass(frozen=True)
class Profile:
    """What a profile found."""

    steps: int
    on_gpu: bool  # it is the GPU's time that is told, not the CPU's
    step_seconds: float  # of a step while nobody looked
    profiled_step_seconds: float
    operations: list[Operation]  # the costliest first
    phases: dict[str, float]  # seconds in each, over all steps; empty where a step is replayed as a whole
    trace: bytes  # JSON, for ui.perfetto.dev and chrome://tracing

    @property
    def seconds(self) -> float:
        """Of all operations."""
        return sum(operation.seconds for operation in self.operations)


def profile(
    model: GPT, splits: Splits, config: TrainConfig, compute: Compute, progress: Callable[[str], None]
) -> Profile:
    """Train `model` for some steps, and tell what they were made of.

    Args:
        model: with fresh weights; it is spoilt.
        splits: token ids; the batches are those of a run's first steps.
        config: batch size, optimizer.
        compute: device, precision, compilation.
        progress: called with what is being done, before each step.
    """
    update = Update.fresh(model, splits.train, config, compute)
    B, T = config.batch_size * config.grad_accum_steps, config.model.block_size
    scale = FIRST_LOSS_SCALE if compute.dtype == torch.float16 else 1.0
    made = 0

    def step() -> None:
        nonlocal made
        starts = sample_starts(len(splits.train), B, T, config.seed, made)
        numbers = update(starts, lr_at(made, config.max_steps, config.optim), scale, lambda: False)
        assert numbers is not None
        if compute.device.type == "cpu":
            numbers.tolist()  # a run on a CPU looks at each loss
        made += 1

    def warm_up_step() -> None:
        try:
            step()
        except CompilerFailed:
            step()  # without the compiler, as a run goes on

    def marked_step() -> None:
        with record_function(STEP):
            step()

    _several(warm_up_step, WARMUP_STEPS, compute, lambda: progress("warming up"))
    timed, seconds = _several(step, TIMED_STEPS, compute, lambda: progress("timing"))
    on_gpu = compute.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    update.phase = record_function
    with torch_profile(activities=activities, record_shapes=True, with_flops=True) as profiler:
        steps, profiled_seconds = _several(marked_step, PROFILED_STEPS, compute, lambda: progress("profiling"))
    averages = profiler.key_averages()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace = path.read_bytes()
    operations = on_device(averages) if on_gpu else on_cpu(averages)
    phases = phases_of(averages, on_gpu, sum(operation.seconds for operation in operations))
    return Profile(steps, on_gpu, seconds / timed, profiled_seconds / steps, operations, phases, trace)


def _several(step: Callable[[], None], most: int, compute: Compute, before: Callable[[], None]) -> tuple[int, float]:
    """Make steps until there are `most` or they took too long: (how many, seconds)."""
    began = time.perf_counter()
    for number in range(1, most + 1):
        before()
        step()
        if number == most or time.perf_counter() - began > LONGEST_SECONDS:
            break
    if compute.device.type != "cpu":
        torch.accelerator.synchronize()
    return number, time.perf_counter() - began


def on_cpu(averages: Iterable[Any]) -> list[Operation]:
    """The operations by their own time on the CPU, from what torch calls `key_averages`.

    The time of a phase that is in no operation is Python's, between them.
    """
    rows = [Operation(row.key, row.self_cpu_time_total / 1e6, row.count, row.flops) for row in averages]
    return sorted((row for row in rows if row.seconds > 0), key=lambda row: -row.seconds)


def on_device(averages: Iterable[Any]) -> list[Operation]:
    """The kernels of a GPU by their time there; the ranges that mark steps and phases are none."""
    rows = [
        Operation(row.key, row.self_device_time_total / 1e6, row.count, row.flops)
        for row in averages
        if row.device_type.name != "CPU" and not row.is_user_annotation
    ]
    return sorted((row for row in rows if row.seconds > 0), key=lambda row: -row.seconds)


def phases_of(averages: Iterable[Any], on_gpu: bool, seconds: float) -> dict[str, float]:
    """Seconds in each phase of the steps, and in the rest of them; nothing where no phase was entered.

    Args:
        averages: torch's `key_averages`.
        on_gpu: count time on the GPU. Its backward pass is launched by a thread of autograd's own, where no phase is
            marked, so it is what the others leave of `seconds`.
        seconds: of all operations.
    """
    found = {
        row.key: (row.device_time_total if on_gpu else row.cpu_time_total) / 1e6
        for row in averages
        if row.is_user_annotation and row.device_type.name == "CPU"
    }
    entered = [name for name in found if name != STEP]
    if not entered:
        return {}
    if on_gpu and "backward" in entered:
        found["backward"] = seconds - sum(found[name] for name in entered if name != "backward")
    phases = {name: found[name] for name in entered}
    return phases if on_gpu else phases | {"the rest": found[STEP] - sum(phases.values())}
