"""Device, precision, threads, compilation: choose, and say why."""

import contextlib
import ctypes
import dataclasses
import functools
from dataclasses import dataclass

import torch

from microgpt_cli import threads as cpu_threads
from microgpt_cli.config import ModelConfig
from microgpt_cli.engines.cpu import muon
from microgpt_cli.engines.cpu.build import Unavailable
from microgpt_cli.engines.cpu.passes import NativePasses
from microgpt_cli.errors import UserError
from microgpt_cli.model.layers import LONGEST_SCORES
from microgpt_cli.model.loss import LARGE_VOCABULARY

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BFLOAT16_N_EMBD = 64  # width from which training on a CPU that multiplies bfloat16 gains by it
COMPILE_FLOPS = 5e15  # below, compiling (20 s and more on an H100) costs more than it saves
ONE_THREAD_NUMBERS = 8192  # activations of a layer up to which no kernel of a step gains by a second thread
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class Compute:
    """Where and how to compute, each choice with its reason."""

    device: torch.device
    dtype: torch.dtype  # of the matrix products; weights stay float32
    compile: bool  # the model, by torch.compile
    native: bool  # in C: what stands between the matrix products (model/passes.py), Muon's update of matrices
    compile_may_fail: bool  # go on without, if it does
    threads: int
    reasons: dict[str, str]  # "device" → "cpu: no GPU found"
    threads_are_chosen: bool = False  # here, and not by the user

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """A context in which matrix products run in `dtype`."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def choose(
    device: str,
    dtype: str,
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
        device, dtype, compile, threads: the keys of these names.
        work_flops: how much there is to compute, about; what a compiler must pay back.
        trained: the model that is to be trained, if one is.
        batch_size: sequences in a micro-batch, where one is trained.
        noted_threads: with which a run began that goes on: its bits depend on them.

    Raises:
        UserError: what was asked for is not here.
    """
    place, why_device = _device(device)
    kind, why_dtype = _dtype(dtype, place, trained)
    compiled, native, why_compile = _compile(compile, place, kind, work_flops, trained)
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
        "compile": f"{'yes' if compiled else 'in part' if native else 'no'}: {why_compile}",
        "threads": f"{count.count} ({count.reason})",
    }
    return Compute(
        place, kind, compiled, native, compile == "auto", count.count, reasons, threads_are_chosen=not count.is_asked
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


def _dtype(wanted: str, device: torch.device, trained: ModelConfig | None) -> tuple[torch.dtype, str]:
    if wanted == "float16" and device.type == "cpu":
        raise UserError("dtype=float16: needs a GPU; try dtype=bfloat16 or float32 on a CPU")
    if wanted != "auto":
        return DTYPES[wanted], "as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU multiplies it fast, and it needs no loss scaling"
        return torch.float16, "this GPU has no bfloat16; the loss is scaled"
    wide = trained is not None and trained.n_embd >= BFLOAT16_N_EMBD
    if device.type == "cpu" and wide and cpu_multiplies_bfloat16():
        return torch.bfloat16, "this CPU multiplies it twice as fast, and a step is 1.1 to 2 times as fast"
    return torch.float32, "the safe choice here"


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether there are instructions for it (AVX512-BF16, AMX); without, it is slower than float32."""
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask is not None and ask() for ask in asked)


def _compile(
    wanted: str, device: torch.device, dtype: torch.dtype, work_flops: float, trained: ModelConfig | None
) -> tuple[bool, bool, str]:
    """Whether torch.compile works on the model, whether the parts of a step are in C, and why."""
    if wanted == "native" or (wanted == "auto" and device.type == "cpu"):
        why_not = why_no_native(device, dtype, trained)
        if not why_not:
            return False, True, "what stands between the matrix products, in C"
        if wanted == "native":
            raise UserError(f"compile=native: {why_not}; try compile=auto")
        return False, False, f"{why_not}, and torch.compile costs more than it saves here"
    if wanted != "auto":
        return wanted == "true", False, "as asked"
    if device.type != "cuda":
        return False, False, "costs more than it saves here"
    if work_flops < COMPILE_FLOPS:
        return False, False, f"a run of {work_flops / 1e15:.2g} PFLOP is over before it pays"
    return True, False, f"pays in a run of {work_flops / 1e15:.2g} PFLOP"


def for_vocabulary(compute: Compute, wanted: str, vocab_size: int) -> Compute:
    """The choice, once the vocabulary is known: of a large one, autograd makes the loss in chunks.

    Raises:
        UserError: what was asked for can't be.
    """
    if not compute.native or vocab_size < LARGE_VOCABULARY:
        return compute
    why_not = f"nothing in C for {LARGE_VOCABULARY:,} tokens and more"
    if wanted == "native":
        raise UserError(f"compile=native: {why_not}; try compile=auto")
    return dataclasses.replace(compute, native=False, reasons=compute.reasons | {"compile": f"no: {why_not}"})


def why_no_native(device: torch.device, dtype: torch.dtype, trained: ModelConfig | None) -> str:
    """Why nothing can be in C; nothing, if it can."""
    if device.type != "cpu":
        return f"not for {device.type}"
    if trained is None:
        return "nothing is trained"
    if not NativePasses.serve(trained):
        return f"nothing in C for dropout or a context of over {LONGEST_SCORES}"
    try:
        NativePasses(dtype)
        muon.load(cpu_multiplies_bfloat16())
    except Unavailable as error:
        return str(error)
    return ""
