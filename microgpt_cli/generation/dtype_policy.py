"""Which precision, whose kernels and how many threads to sample with: choose, and say why.

`training/device.py` chooses the device for every verb, and the precision of forward and backward passes over whole
batches, by autocast. Here it is of single rows by weights that are prepared once, where other things cost.
"""

import torch

from microgpt_cli.compute import DTYPES, cpu_multiplies_bfloat16
from microgpt_cli.engines.cpu import decode
from microgpt_cli.engines.cpu.build import Unavailable
from microgpt_cli.engines.linear import can_pack, has_float16_linear
from microgpt_cli.errors import UserError
from microgpt_cli.model.gpt import GPT

# Measured on two cores (see the table in products.py): up to 160 wide the calls cost and float32 is faster, from 192
# on float16 weights are. At 10.7M parameters 8 samples go on 1.1 times as fast in float16 as in bfloat16, 64 in
# bfloat16 1.2 times as fast as in float32.
HALF_FROM_N_EMBD = 192
FLOAT16_TO_SAMPLES = 8  # with more at once arithmetic costs, and not reading the weights
THREADS_FROM = 150_000  # weights of a block times samples; below, threads wait for each other longer than they work


def choose_dtype(wanted: str, model: GPT, num_samples: int) -> tuple[torch.dtype, str]:
    """The precision for `generation.decoding`, and why. `wanted` is the key `dtype`.

    Raises:
        UserError: what was asked for is not here.
    """
    device = model.lm_head.weight.device
    if wanted == "float16" and device.type == "cpu" and not has_float16_linear():
        raise UserError("dtype=float16: this CPU can't multiply by it; try dtype=bfloat16 or float32")
    if wanted != "auto":
        return DTYPES[wanted], "as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "half of the bytes to read"
        return torch.float16, "half of the bytes to read"
    if device.type != "cpu":
        return torch.float32, "the safe choice here"
    if model.config.n_embd < HALF_FROM_N_EMBD:
        return torch.float32, "this model is small: half precision saves nothing"
    if num_samples <= FLOAT16_TO_SAMPLES and has_float16_linear():
        return torch.float16, "of the weights: half of the bytes to read; the arithmetic in float32"
    if num_samples > 1 and cpu_multiplies_bfloat16() and can_pack(torch.bfloat16):
        return torch.bfloat16, "of the matrix products, which this CPU makes faster; the rest in float32"
    return torch.float32, "the safe choice here"


def choose_native(
    wanted: str, model: GPT, dtype: torch.dtype = torch.float32, num_samples: int = 1, cache: bool = True
) -> bool:
    """Whether a sample is decoded in C. `wanted` is the key `engine` of `microgpt sample`.

    Raises:
        UserError: it was asked for and can't be.
    """
    if wanted == "torch":
        return False
    device = model.lm_head.weight.device.type
    why_not = f"not for {device}; try device=cpu" if device != "cpu" else ""
    if not cache:
        why_not = "it keeps keys and values; try cache=true"
    if num_samples > 1:
        why_not = "it is for one sample at a time; try num_samples=1"
    if not why_not:
        try:
            decode.load(dtype)
        except Unavailable as error:
            why_not = f"{error}; try engine=torch"
    if why_not and wanted == "native":
        raise UserError(f"engine=native: {why_not}")
    return not why_not


def choose_threads(model: GPT, num_samples: int) -> int:
    """How many of torch's threads are of use on a CPU."""
    block = sum(p.numel() for p in model.blocks[0].parameters())
    return 1 if block * num_samples < THREADS_FROM else torch.get_num_threads()
