"""Choose dtype, kernels and threads for sampling with a cache.

`compute.py` chooses the device of every verb and the autocast dtype of passes over whole batches. Decoding multiplies
single rows by weights that are prepared once, where memory bandwidth and call overhead decide.
"""

import torch

from microgpt_cli.compute import DTYPES, cpu_multiplies_bfloat16
from microgpt_cli.engines.cpu import decode
from microgpt_cli.engines.cpu.build import Unavailable
from microgpt_cli.engines.linear import can_pack, has_float16_linear
from microgpt_cli.errors import UserError
from microgpt_cli.model.gpt import GPT

# Measured on two cores (see the table in engines/linear.py): up to n_embd=160 call overhead dominates and float32 is
# faster, from 192 on float16 weights are. At 10.7M parameters, 8 samples are 1.1 times as fast in float16 as in
# bfloat16, and 64 samples 1.2 times as fast in bfloat16 as in float32.
HALF_FROM_N_EMBD = 192
FLOAT16_TO_SAMPLES = 8  # with more samples, arithmetic and not memory bandwidth limits the speed
THREADS_FROM = 150_000  # weights of a block times samples; below, synchronizing threads takes longer than the work


def choose_dtype(wanted: str, model: GPT, num_samples: int) -> tuple[torch.dtype, str]:
    """The dtype for `engines.decoding`, and why. `wanted` is the key `dtype`.

    Raises:
        UserError: it is not available on this machine.
    """
    device = model.lm_head.weight.device
    if wanted == "float16" and device.type == "cpu" and not has_float16_linear():
        raise UserError("dtype=float16: not supported on this CPU; try dtype=bfloat16 or float32")
    if wanted != "auto":
        return DTYPES[wanted], "as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "half the bytes of float32 to read"
        return torch.float16, "half the bytes of float32 to read"
    if device.type != "cpu":
        return torch.float32, "the default on this device"
    if model.config.n_embd < HALF_FROM_N_EMBD:
        return torch.float32, "faster than half precision for a small model"
    if num_samples <= FLOAT16_TO_SAMPLES and has_float16_linear():
        return torch.float16, "weights only, half the bytes to read; arithmetic in float32"
    if num_samples > 1 and cpu_multiplies_bfloat16() and can_pack(torch.bfloat16):
        return torch.bfloat16, "matrix products only, faster on this CPU; the rest in float32"
    return torch.float32, "the default on this device"


def choose_native(
    wanted: str, model: GPT, dtype: torch.dtype = torch.float32, num_samples: int = 1, cache: bool = True
) -> bool:
    """Whether to decode in C. `wanted` is the key `engine` of `microgpt sample`.

    Raises:
        UserError: it was requested and is not possible.
    """
    if wanted == "torch":
        return False
    device = model.lm_head.weight.device.type
    why_not = f"needs a CPU, not {device}; try device=cpu" if device != "cpu" else ""
    if not cache:
        why_not = "needs the key/value cache; try cache=true"
    if num_samples > 1:
        why_not = "decodes one sample at a time; try num_samples=1"
    if not why_not:
        try:
            decode.load(dtype)
        except Unavailable as error:
            why_not = f"{error}; try engine=torch"
    if why_not and wanted == "native":
        raise UserError(f"engine=native: {why_not}")
    return not why_not


def choose_threads(model: GPT, num_samples: int) -> int:
    """How many CPU threads make sampling fastest."""
    block = sum(p.numel() for p in model.blocks[0].parameters())
    return 1 if block * num_samples < THREADS_FROM else torch.get_num_threads()
