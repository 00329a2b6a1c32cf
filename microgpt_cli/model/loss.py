"""Chunked cross-entropy for large vocabularies: the logits of all tokens are never in memory at once.

With V in the tens of thousands, the logits (B·T, V) are the largest tensor of a training step, and with their gradient
in float32 several times as large as the rest. But the loss of a row needs only that row. So chunks of rows go through
the head one after the other, and the gradients of the rows and of the head are computed in the same pass: logits are
neither kept nor computed twice. After Liger Kernel (Hsu et al., 2024). torch.compile fuses the operations between the
two matrix products of a chunk, but does not create the chunks.

N rows (B · T), C n_embd, V vocabulary.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from microgpt_cli.model.layers import Head, padding

LARGE_VOCABULARY = 1 << 12  # below, the logits are computed at once
CHUNK_LOGITS = 1 << 25  # 128 MiB in float32; 640 rows of GPT-2's vocabulary
ROWS_MULTIPLE = 64  # matrix units are fastest with multiples of it


def chunk_rows(vocab_size: int) -> int:
    """The number of rows in a chunk."""
    rows = CHUNK_LOGITS // vocab_size
    return rows - rows % ROWS_MULTIPLE or ROWS_MULTIPLE


def needs_chunks(rows: int, vocab_size: int) -> bool:
    """Whether the logits of this many rows are too large to compute at once."""
    return vocab_size >= LARGE_VOCABULARY and rows > chunk_rows(vocab_size)


def chunked_cross_entropy(x: Tensor, head: Head, targets: Tensor) -> Tensor:
    """`F.cross_entropy(head(x), targets)` in chunks.

    Args:
        x: inputs of the head (N, C).
        head: to the vocabulary.
        targets: the next tokens (N,).

    Returns:
        The mean in nats per token, float32 ().
    """
    if has_torch_function_unary(x):  # modes see one call, as for a torch function
        found: Tensor = handle_torch_function(chunked_cross_entropy, (x,), x, head, targets)
        return found
    device = x.device.type
    x = x.to(torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype)
    if torch.is_grad_enabled():
        total: Tensor = _SummedLoss.apply(x, head.weight, head.bias, targets)
        return total / len(targets)
    matrix, bias = _padded(head.weight, head.bias, x)
    picked = [_log_probabilities(matrix, bias, *chunk)[1] for chunk in _chunks(x, targets, head.out_features)]
    return -torch.cat(picked).mean()


class _SummedLoss(torch.autograd.Function):
    """The sum of the losses of all rows; the forward pass also computes the gradients.

    The gradients are those of the sum, scaled in the backward pass, so that float16 can represent them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        V = len(weight)
        matrix, matrix_bias = _padded(weight, bias, x)
        total = torch.zeros((), device=x.device)
        dx, dweight, dbias = [], torch.zeros(matrix.shape, device=x.device), torch.zeros(len(matrix), device=x.device)
        for rows, chosen in _chunks(x, targets, V):
            log_p, picked = _log_probabilities(matrix, matrix_bias, rows, chosen)
            total -= picked.sum()
            d = log_p.exp_().scatter_(1, chosen, picked.expm1())  # d loss / d logits (n, V): p, minus 1 at the target
            if bias is not None:
                dbias += d.sum(0)
            d = d.to(x.dtype)
            dx.append(d @ matrix)
            dweight += d.mT @ rows
        ctx.save_for_backward(torch.cat(dx), dweight[:V], None if bias is None else dbias[:V])
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        [scale] = upstream
        return *(None if d is None else d * scale for d in ctx.saved_tensors), None


def _chunks(x: Tensor, targets: Tensor, vocab_size: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Chunks of rows (n, C) and their targets (n, 1)."""
    n = chunk_rows(vocab_size)
    return zip(x.split(n), targets[:, None].split(n), strict=True)


def _log_probabilities(matrix: Tensor, bias: Tensor | None, rows: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all tokens (n, V) and of the targets (n, 1), float32."""
    log_p = F.log_softmax(F.linear(rows, matrix, bias), -1, dtype=torch.float32)
    return log_p, log_p.gather(1, chosen)


def _padded(weight: Tensor, bias: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The head's weight (V, C) and bias (V,) in the dtype of x, padded as `Head` does.

    The added outputs have probability 0.
    """
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    extra = padding(x, len(weight))
    if extra == 0:
        return weight, bias
    bias = x.new_zeros(len(weight)) if bias is None else bias
    return F.pad(weight, (0, 0, 0, extra)), F.pad(bias, (0, extra), value=-torch.inf)
