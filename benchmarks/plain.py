"""The plain way, to be compared with: the loop of the article and of nanoGPT, for a model of ours.

On a CPU float32, eager, attention in torch's kernel, `torch.optim.AdamW`; on a GPU bfloat16 autocast, `torch.compile`,
fused AdamW, batches gathered on the host, pinned and copied, gradients clipped by `clip_grad_norm_`, the loss looked at
every ten steps.
"""

import contextlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microgpt_cli.model.gpt import GPT


def plain_step(model: GPT, ids: Tensor, batch_size: int, compile: bool) -> Callable[[int], None]:
    """A function that makes one training step, given its number."""
    cuda = model.token_embedding_table.weight.is_cuda
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.99), fused=cuda)
    autocast = torch.autocast("cuda", torch.bfloat16) if cuda else contextlib.nullcontext()

    def whole_loss(idx: Tensor, targets: Tensor) -> Tensor:
        logits, _ = model(idx)  # of all tokens at once, where our own loss takes chunks of a large vocabulary
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    forward = torch.compile(whole_loss) if compile else whole_loss

    def loss_of(idx: Tensor, targets: Tensor) -> Tensor:
        with autocast:
            return forward(idx, targets)

    return training_step(loss_of, model, optimizer, ids, batch_size, model.config.block_size)


def training_step(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ids: Tensor,
    batch_size: int,
    block_size: int,
) -> Callable[[int], None]:
    """A function that makes one training step of any model, given its number, as nanoGPT's train.py makes it."""
    device = next(model.parameters()).device

    def get_batch() -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(ids) - block_size, (batch_size,)).tolist()
        x = torch.stack([ids[i : i + block_size].long() for i in starts])
        y = torch.stack([ids[i + 1 : i + 1 + block_size].long() for i in starts])
        if device.type == "cuda":
            return x.pin_memory().to(device, non_blocking=True), y.pin_memory().to(device, non_blocking=True)
        return x, y

    def step(number: int) -> None:
        loss = loss_of(*get_batch())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if number % 10 == 0:
            loss.item()

    return step
