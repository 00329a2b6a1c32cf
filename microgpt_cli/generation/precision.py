"""Which precision to sample in: choose, and say why."""

import torch

from microgpt_cli.errors import UserError
from microgpt_cli.generation.decoding import has_half_products
from microgpt_cli.model.gpt import GPT
from microgpt_cli.training.device import DTYPES

# Measured on two cores (AVX-512), one sequence: at 0.2M and 0.8M parameters the calls cost, and float16 weights lose;
# at 10.7M they are 1.5 to 2 times as fast as float32 and at 124M 2 to 3 times, as they are half of the bytes.
HALF_FROM_PARAMETERS = 5_000_000
HALF_TO_SAMPLES = 16  # with more at once arithmetic costs, and not reading the weights


def choose_dtype(wanted: str, model: GPT, num_samples: int) -> tuple[torch.dtype, str]:
    """The precision for `generation.decoding`, and why. `wanted` is the key `dtype`.

    Raises:
        UserError: what was asked for is not here.
    """
    device = model.lm_head.weight.device
    if wanted == "float16" and device.type == "cpu" and not has_half_products():
        raise UserError("dtype=float16: this CPU can't multiply by it; try dtype=bfloat16 or float32")
    if wanted != "auto":
        return DTYPES[wanted], "as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "half of the bytes to read"
        return torch.float16, "half of the bytes to read"
    if device.type == "cpu" and has_half_products() and num_samples <= HALF_TO_SAMPLES:
        if sum(p.numel() for p in model.parameters()) >= HALF_FROM_PARAMETERS:
            return torch.float16, "of the weights: half of the bytes to read; arithmetic in float32"
        return torch.float32, "this model is small: float16 weights save nothing"
    return torch.float32, "the safe choice here"
