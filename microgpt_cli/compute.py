"""Choose device, dtype, engine, threads and compilation, each with its reason."""

import contextlib
import ctypes
import functools
from dataclasses import dataclass

import torch

from microgpt_cli import threads as cpu_threads
from microgpt_cli.config import ModelConfig, TrainConfig
from microgpt_cli.engines.autograd import autocast
from microgpt_cli.engines.cpu import muon
from microgpt_cli.engines.cpu.build import Unavailable
from microgpt_cli.engines.cpu.kernels import Kernels
from microgpt_cli.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Smallest n_embd for which bfloat16 trains faster on a CPU with hardware support; torch's attention is slow in it.
BFLOAT16_N_EMBD = {"native": 64, "torch": 256}
COMPILE_FLOPS = 5e15  # below, compiling (20 s or more on an H100) takes longer than it saves
ONE_THREAD_ACTIVATIONS = 8192  # per layer; up to this size no kernel of a step is faster with a second thread
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class Compute:
    """Where and how to compute, with the reason for each choice."""

    device: torch.device
    dtype: torch.dtype  # of the matrix products; weights stay float32
    engine: str  # native: fused C kernels (engines/cpu) and Muon in C; torch: autograd
    compile: bool  # by torch.compile
    compile_may_fail: bool  # then continue without it
    threads: int
    reasons: dict[str, str]  # "device" → "cpu: no GPU found"
    threads_are_chosen: bool = False  # automatically, not by the user

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """A context in which matrix products run in `dtype`."""
        return autocast(self.device.type, self.dtype)


def choose(
    device: str,
    dtype: str,
    engine: str = "torch",
    compile: str = "false",
    threads: int | None = None,
    work_flops: float = 0.0,
    trained: ModelConfig | None = None,
    batch_size: int | None = None,
    recorded_threads: int | None = None,
) -> Compute:
    """Resolve `auto` for this machine and set torch's number of threads.

    Training in float32 on a CUDA GPU uses TF32 (10 of 23 mantissa bits) in matrix products, which is many times faster.

    Args:
        device, dtype, engine, compile, threads: the keys of these names.
        work_flops: estimated FLOPs of the run, which decide about torch.compile.
        trained: the model, when training.
        batch_size: sequences per micro-batch, when training.
        recorded_threads: those of the run that is resumed; its bits depend on them.

    Raises:
        UserError: a choice is not available on this machine.
    """
    where, why_device = _device(device)
    who, why_engine = _engine(engine, compile, where)
    kind, why_dtype = _dtype(dtype, where, who, trained)
    compiled, why_compile = _compile(compile, where, who, work_flops)
    count = choose_threads(threads, trained if where.type == "cpu" else None, batch_size, recorded_threads)
    torch.set_num_threads(count.count)
    if where.type == "cpu":
        _keep_freed_memory()
    if where.type == "cuda":
        tf32 = kind == torch.float32 and trained is not None  # inference stays exact
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        why_dtype += ", matrix products in TF32" if tf32 else ""
    reasons = {
        "device": f"{where}: {why_device}",
        "dtype": f"{str(kind).removeprefix('torch.')}: {why_dtype}",
        "engine": f"{who}: {why_engine}" + (f"; {why_compile}" if why_compile else ""),
        "threads": f"{count.count} ({count.reason})",
    }
    return Compute(
        where, kind, who, compiled, compile == "auto", count.count, reasons, threads_are_chosen=not count.is_asked
    )


def choose_for_run(config: TrainConfig, device: str, recorded_threads: int | None = None) -> Compute:
    """`choose` for a training run of this config on this device.

    Args:
        recorded_threads: those of the run, if it is resumed.
    """
    given = device, config.dtype, config.engine, config.compile, config.threads
    return choose(*given, work_flops(config), config.model, config.batch_size, recorded_threads)


def work_flops(config: TrainConfig) -> float:
    """Estimated FLOPs of a run: 6 per token and weight of the blocks."""
    size = config.model
    tokens = config.max_steps * config.batch_size * config.grad_accum_steps * size.block_size
    return 6.0 * 12 * size.n_layer * size.n_embd**2 * tokens


def choose_threads(
    asked: int | None, trained: ModelConfig | None, batch_size: int | None, recorded: int | None
) -> cpu_threads.Limit:
    """How many CPU threads to use, and why.

    The number depends only on the machine and the config, because it determines the order of summation, and equal
    commands must give equal bits.

    Args:
        asked: the key `threads`.
        trained: the model, when training on the CPU.
        batch_size: sequences per micro-batch.
        recorded: the number of the run that is resumed.
    """
    if asked is not None:
        return cpu_threads.Limit(asked, "as asked", is_asked=True)
    limit = cpu_threads.limit()
    if torch.get_num_threads() < limit.count:
        limit = cpu_threads.Limit(torch.get_num_threads(), "torch's default")
    if recorded is not None and recorded <= limit.count:
        return cpu_threads.Limit(recorded, "as recorded in the checkpoint")
    if limit.count > 1 and not limit.is_asked and trained is not None and batch_size is not None:
        activations = batch_size * trained.block_size * trained.n_embd
        if activations <= ONE_THREAD_ACTIVATIONS:
            return cpu_threads.Limit(1, f"this model is too small to use {limit.count}")
    return limit


@functools.cache
def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors.

    By default it returns blocks of 128 kB and more to the system, which causes hundreds of page faults in every
    training step.
    """
    with contextlib.suppress(OSError, AttributeError):  # no glibc: macOS, Windows, musl
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the maximum of glibc
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _device(wanted: str) -> tuple[torch.device, str]:
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wanted == "auto":
        if cuda:
            return torch.device("cuda"), torch.cuda.get_device_name()
        return (torch.device("mps"), "Apple's GPU") if mps else (torch.device("cpu"), "no GPU found")
    name, _, index = wanted.partition(":")
    if name == "cuda" and not cuda:
        raise UserError(f"device={wanted}: torch finds no CUDA GPU; try device=cpu")
    if name == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise UserError(f"device={wanted}: there are {torch.cuda.device_count()} GPUs, numbered from 0")
    if name == "mps" and not mps:
        raise UserError(f"device={wanted}: torch finds no Apple GPU; try device=cpu")
    return torch.device(wanted), "as asked"


def _engine(wanted: str, compile: str, device: torch.device) -> tuple[str, str]:
    """The engine of a training step, and why."""
    if wanted == "torch":
        return "torch", "as asked"
    why_not = f"the C kernels run on a CPU, not on {device.type}" if device.type != "cpu" else why_not_native()
    if not why_not and compile == "true":
        why_not = "compile=true applies to engine=torch"
    if why_not and wanted == "native":
        raise UserError(f"engine=native: {why_not}; try engine=auto")
    if why_not:
        return "torch", "autograd" if device.type != "cpu" else f"autograd; {why_not}"
    note = Kernels(torch.float32).note
    return "native", "fused C kernels, following the model's forward pass" + (f"; {note}" if note else "")


def why_not_native() -> str:
    """Why the C kernels are unavailable; empty if they are available."""
    try:
        Kernels(torch.float32)
        muon.load(cpu_multiplies_bfloat16())
    except Unavailable as error:
        return str(error)
    return ""


def _dtype(wanted: str, device: torch.device, engine: str, trained: ModelConfig | None) -> tuple[torch.dtype, str]:
    if wanted == "float16" and device.type == "cpu":
        raise UserError("dtype=float16: training needs a GPU; try dtype=bfloat16 or float32 on a CPU")
    if wanted != "auto":
        return DTYPES[wanted], "as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "supported by this GPU, and needs no loss scaling"
        return torch.float16, "this GPU lacks bfloat16; with loss scaling"
    wide = trained is not None and trained.n_embd >= BFLOAT16_N_EMBD[engine]
    if device.type == "cpu" and wide and cpu_multiplies_bfloat16():
        return torch.bfloat16, "hardware bfloat16; training steps are 1.1 to 2 times as fast"
    return torch.float32, "the default on this device"


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has bfloat16 instructions (AVX512-BF16, AMX); without them it is slower than float32."""
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in checks)


def _compile(wanted: str, device: torch.device, engine: str, work_flops: float) -> tuple[bool, str]:
    """Whether torch.compile compiles the model, and the reason."""
    if wanted != "auto":
        return wanted == "true", "compiled by torch.compile, as asked" if wanted == "true" else ""
    if device.type != "cuda":
        return False, ""
    work = f"{work_flops / 1e15:.2g} PFLOP"
    if work_flops < COMPILE_FLOPS:
        return False, f"not compiled: too little work ({work}) to pay for it"
    return True, f"compiled by torch.compile, which pays for {work} of work"
