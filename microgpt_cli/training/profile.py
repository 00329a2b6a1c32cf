"""Profile training steps of a throw-away model with torch's profiler.

The steps are those of a run (`Update`, its windows, its learning rate). Three series are made: to warm up, which
compiles or captures a CUDA graph; to time steps without overhead; and with the profiler.
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
MAX_SECONDS = 20.0  # per series
STEP = "step"  # name of the profiled steps; phases have the names of `Update`


@dataclass(frozen=True)
class Operation:
    """Totals of one operation, or one GPU kernel, over all profiled steps."""

    name: str  # of torch
    seconds: float  # excluding operations that it calls
    calls: int
    flops: int  # 0 if torch has no formula


@dataclass(frozen=True)
class Profile:
    """The result of a profile."""

    steps: int
    on_gpu: bool  # times are of the GPU, not of the CPU
    step_seconds: float  # of a step without the profiler
    profiled_step_seconds: float
    operations: list[Operation]  # longest first
    phases: dict[str, float]  # seconds in each, over all steps; empty with CUDA graphs
    trace: bytes  # JSON, for ui.perfetto.dev and chrome://tracing

    @property
    def seconds(self) -> float:
        """The total of all operations."""
        return sum(operation.seconds for operation in self.operations)


def profile(
    model: GPT, splits: Splits, config: TrainConfig, compute: Compute, progress: Callable[[str], None]
) -> Profile:
    """Train `model` for some steps and profile them.

    Args:
        model: newly initialised; modified in place.
        splits: token ids; the batches are those of the first steps of a run.
        config: batch size, optimizer.
        compute: device, precision, compilation.
        progress: called with the name of the series before each step.
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
            numbers.tolist()  # as a run on a CPU, which fetches each loss
        made += 1

    def warm_up_step() -> None:
        try:
            step()
        except CompilerFailed:
            step()  # without the compiler, as a run would

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
    """Make up to `most` steps within MAX_SECONDS; returns their number and duration."""
    began = time.perf_counter()
    for number in range(1, most + 1):
        before()
        step()
        if number == most or time.perf_counter() - began > MAX_SECONDS:
            break
    if compute.device.type != "cpu":
        torch.accelerator.synchronize()
    return number, time.perf_counter() - began


def on_cpu(averages: Iterable[Any]) -> list[Operation]:
    """The operations by self time on the CPU, from torch's `key_averages`.

    The self time of a phase is Python code between operations.
    """
    rows = [Operation(row.key, row.self_cpu_time_total / 1e6, row.count, row.flops) for row in averages]
    return sorted((row for row in rows if row.seconds > 0), key=lambda row: -row.seconds)


def on_device(averages: Iterable[Any]) -> list[Operation]:
    """The GPU kernels by time, without the annotations of steps and phases."""
    rows = [
        Operation(row.key, row.self_device_time_total / 1e6, row.count, row.flops)
        for row in averages
        if row.device_type.name != "CPU" and not row.is_user_annotation
    ]
    return sorted((row for row in rows if row.seconds > 0), key=lambda row: -row.seconds)


def phases_of(averages: Iterable[Any], on_gpu: bool, seconds: float) -> dict[str, float]:
    """Seconds in each phase of the steps and in the rest; empty if no phase was recorded.

    Args:
        averages: torch's `key_averages`.
        on_gpu: use GPU time. Its backward pass is launched by autograd's thread, outside the annotation, so it is
            computed as `seconds` minus the other phases.
        seconds: of all operations.
    """
    found = {
        row.key: (row.device_time_total if on_gpu else row.cpu_time_total) / 1e6
        for row in averages
        if row.is_user_annotation and row.device_type.name == "CPU"
    }
    recorded = [name for name in found if name != STEP]
    if not recorded:
        return {}
    if on_gpu and "backward" in recorded:
        found["backward"] = seconds - sum(found[name] for name in recorded if name != "backward")
    phases = {name: found[name] for name in recorded}
    return phases if on_gpu else phases | {"the rest": found[STEP] - sum(phases.values())}
