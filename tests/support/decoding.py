"""A model to decode with, and the tokens that decoding must give."""

import torch
from conftest import preset

from microgpt_cli.generation.sampling import Sampler, UniformStream
from microgpt_cli.model.gpt import GPT

V = 30


def lively(size: str, arch: str, **changes: object) -> GPT:
    """A model whose logits differ clearly: no weight is 0 or 1, so none can be forgotten unnoticed."""
    torch.manual_seed(0)
    model = GPT(preset(size, arch, **changes), V).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(std=0.3 if name.startswith(("token", "position")) or p.dim() == 1 else 2 * p.size(-1) ** -0.5)
            if name.endswith(("ln1.weight", "ln2.weight", "ln_f.weight")):
                p += 1
    return model


def plainly(model: GPT, prompt: list[int], count: int, sampler: Sampler, seed: int, samples: int) -> list[list[int]]:
    """What `generate` should give: the same window policy, and the whole forward pass for every token."""
    block_size, draws = model.config.block_size, UniformStream(seed, samples)
    idx = torch.tensor([prompt[-block_size:]] * samples)
    made = []
    for _ in range(count):
        if idx.size(1) > block_size:
            idx = idx[:, -max(1, block_size // 2) :]
        with torch.no_grad():
            logits, _ = model(idx)
        tokens = sampler.sample_token(logits[:, -1], torch.tensor(draws.next(), dtype=torch.float64)[:, None])
        made.append(tokens.tolist())
        idx = torch.cat((idx, tokens[:, None]), dim=1)
    return made
