"""Device, precision, threads, compilation: choose, and say why."""

import contextlib
import ctypes
import functools
from dataclasses import dataclass

import torch

from microgpt_cli import threads as cpu_threads
from microgpt_cli.config import ModelConfig
from microgpt_cli.engines.autograd import autocast
from microgpt_cli.engines.cpu import muon
from microgpt_cli.engines.cpu.build import Unavailable
from microgpt_cli.engines.cpu.kernels import Kernels
from microgpt_cli.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Widths from which bfloat16 makes training faster on a CPU that multiplies it: with the native engine, and with torch,
# whose attention is slow in it.
BFLOAT16_N_EMBD = {"native": 64, "torch": 256}
COMPILE_FLOPS = 5e15  # below, compiling (20 s and more on an H100) costs more than it saves
ONE_THREAD_NUMBERS = 8192  # activations of a layer up to which no kernel of a step gains by a second thread
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class Compute:
    """Where and how to compute, each choice with its reason."""

    device: torch.device
    dtype: torch.dtype  # of the matrix products; weights stay float32
    engine: str  # native: C kernels that follow the model's code (engines/cpu), and Muon in C; torch: autograd
    compile: bool  # the model, by torch.compile
    compile_may_fail: bool  # go on without, if it does
    threads: int
    reasons: dict[str, str]  # "device" → "cpu: no GPU found"
    threads_are_chosen: bool = False  # here, and not by the user

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
    noted_threads: int | None = None,
) -> Compute:
    """Turn `auto` into what this machine does best, and set torch's number of threads.

    Training in float32 on a CUDA GPU multiplies in TF32 (10 bits of 23), as GPUs do at many times the speed.

    Args:
        device, dtype, engine, compile, threads: the keys of these names.
        work_flops: how much there is to compute, about; what a compiler must pay back.
        trained: the model that is to be trained, if one is.
        batch_size: sequences in a micro-batch, where one is trained.
        noted_threads: with which a run began that goes on: its bits depend on them.

    Raises:
        UserError: what was asked for is not here.
    """
    place, why_device = _device(device)
    who, why_engine = _engine(engine, compile, place)
    kind, why_dtype = _dtype(dtype, place, who, trained)
    compiled, why_compile = _compile(compile, place, who, work_flops)
    count = choose_threads(threads, trained if place.type == "cpu" else None, batch_size, noted_threads)
    torch.set_num_threads(count.count)
    if place.type == "cpu":
        _keep_freed_memory()
    if place.type == "cuda":
        tf32 = kind == torch.float32 and trained is not None  # where nothing is trained, to the last bit
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        why_dtype += ", products in TF32" if tf32 else ""
    reasons = {
        "device": f"{place}: {why_device}",
        "dtype": f"{str(kind).removeprefix('torch.')}: {why_dtype}",
        "engine": f"{who}: {why_engine}" + (f"; {why_compile}" if why_compile else ""),
        "threads": f"{count.count} ({count.reason})",
    }
    return Compute(
        place, kind, who, compiled, compile == "auto", count.count, reasons, threads_are_chosen=not count.is_asked
    )


def choose_threads(
    asked: int | None, trained: ModelConfig | None, batch_size: int | None, noted: int | None
) -> cpu_threads.Limit:
    """How many CPU threads to use, and why.

    It depends on the machine, on the config and on nothing that changes by the hour: the number decides in which order
    sums are made, and equal commands shall give equal bits.

    Args:
        asked: the key `threads`.
        trained: the model that is to be trained on the CPU, if one is.
        batch_size: sequences in its micro-batches.
        noted: with how many threads the run began, if it is one that goes on.
    """
    if asked is not None:
        return cpu_threads.Limit(asked, "as asked", is_asked=True)
    limit = cpu_threads.limit()
    if torch.get_num_threads() < limit.count:
        limit = cpu_threads.Limit(torch.get_num_threads(), "torch's own number")
    if noted is not None and noted <= limit.count:
        return cpu_threads.Limit(noted, "as the run began")
    if limit.count > 1 and not limit.is_asked and trained is not None and batch_size is not None:
        numbers = batch_size * trained.block_size * trained.n_embd
        if numbers <= ONE_THREAD_NUMBERS:
            return cpu_threads.Limit(1, f"this model is small: of {limit.count} the others would wait")
    return limit


@functools.cache
def _keep_freed_memory() -> None:
    """Tell glibc to keep the memory of freed tensors for the next ones.

    By default it hands blocks of 128 kB and more back at once, and the system clears each page when it is touched
    again: hundreds of page faults in every training step.
    """
    with contextlib.suppress(OSError, AttributeError):  # no glibc: macOS, Windows, musl
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc takes
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _device(wanted: str) -> tuple[torch.device, str]:
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wanted == "auto":
        if cuda:
            return torch.device("cuda"), torch.cuda.get_device_name()
        return (torch.device("mps"), "Apple's GPU") if mps else (torch.device("cpu"), "no GPU found")
    name, _, index = wanted.partition(":")
    if name == "cuda" and not cuda:
        raise UserError(f"device={wanted}: torch finds no CUDA GPU here; try device=cpu")
    if name == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise UserError(f"device={wanted}: there are {torch.cuda.device_count()} GPUs, numbered from 0")
    if name == "mps" and not mps:
        raise UserError(f"device={wanted}: torch finds no Apple GPU here; try device=cpu")
    return torch.device(wanted), "as asked"


def _engine(wanted: str, compile: str, device: torch.device) -> tuple[str, str]:
    """Who computes a training step, and why."""
    if wanted == "torch":
        return "torch", "as asked"
    why_not = f"the C kernels are for the CPU, not for {device.type}" if device.type != "cpu" else why_not_native()
    if not why_not and compile == "true":
        why_not = "compile=true: torch.compile works on torch's operations"
    if why_not and wanted == "native":
        raise UserError(f"engine=native: {why_not}; try engine=auto")
    if why_not:
        return "torch", "autograd" if device.type != "cpu" else f"autograd; {why_not}"
    note = Kernels(torch.float32).note
    return "native", "fused C kernels, following the model's forward pass" + (f"; {note}" if note else "")


def why_not_native() -> str:
    """Why there are no C kernels here; nothing, if there are."""
    try:
        Kernels(torch.float32)
        muon.load(cpu_multiplies_bfloat16())
    except Unavailable as error:
        return str(error)
    return ""


def _dtype(wanted: str, device: torch.device, engine: str, trained: ModelConfig | None) -> tuple[torch.dtype, str]:
    if wanted == "float16" and device.type == "cpu":
        raise UserError("dtype=float16: needs a GPU; try dtype=bfloat16 or float32 on a CPU")
    if wanted != "auto":
        return DTYPES[wanted], "as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU has it in hardware, and it needs no loss scaling"
        return torch.float16, "this GPU has no bfloat16; the loss is scaled"
    wide = trained is not None and trained.n_embd >= BFLOAT16_N_EMBD[engine]
    if device.type == "cpu" and wide and cpu_multiplies_bfloat16():
        return torch.bfloat16, "hardware bfloat16; training steps are 1.1 to 2 times as fast"
    return torch.float32, "the safe choice here"


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether there are instructions for it (AVX512-BF16, AMX); without, it is slower than float32."""
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask is not None and ask() for ask in asked)


def _compile(wanted: str, device: torch.device, engine: str, work_flops: float) -> tuple[bool, str]:
    """Whether torch.compile works on the model, and what to say of it."""
    if wanted != "auto":
        return wanted == "true", "compiled by torch.compile, as asked" if wanted == "true" else ""
    if device.type != "cuda":
        return False, ""
    work = f"{work_flops / 1e15:.2g} PFLOP"
    if work_flops < COMPILE_FLOPS:
        return False, f"not compiled: a run of {work} ends before that pays"
    return True, f"compiled by torch.compile, which pays in a run of {work}"
