"""The loss over a large vocabulary, in chunks: the logits of all tokens are never there at once.

Where V is tens of thousands, the logits (B·T, V) are the largest tensor of a training step, and with their gradient and
in float32 several times all the rest. But the loss of a row needs that row alone. So the rows go through the head a
chunk at a time, and what the backward pass will ask for, the gradients of the rows and of the head, is made in the same
visit: no logit is kept, and none is computed twice. After Liger Kernel (Hsu et al., 2024). torch.compile fuses what
stands between the two products of a chunk, but makes no chunks of its own.

N rows (B · T), C n_embd, V vocabulary.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from microgpt_cli.model.layers import Head, padding

LARGE_VOCABULARY = 1 << 12  # smaller ones have their logits whole
CHUNK_LOGITS = 1 << 25  # 128 MiB in float32; 640 rows of GPT-2's vocabulary
ROWS_MULTIPLE = 64  # matrix units want sizes that are multiples of it


def chunk_rows(vocab_size: int) -> int:
    """How many rows go through the head at once."""
    rows = CHUNK_LOGITS // vocab_size
    return rows - rows % ROWS_MULTIPLE or ROWS_MULTIPLE


def needs_chunks(rows: int, vocab_size: int) -> bool:
    """Whether so many rows have more logits than shall be held at once."""
    return vocab_size >= LARGE_VOCABULARY and rows > chunk_rows(vocab_size)


def chunked_cross_entropy(x: Tensor, head: Head, targets: Tensor) -> Tensor:
    """What `F.cross_entropy(head(x), targets)` is.

    Args:
        x: what the head reads (N, C).
        head: to the vocabulary.
        targets: the tokens that did come next (N,).

    Returns:
        The mean in nats a token, float32 ().
    """
    if has_torch_function_unary(x):  # a mode sees one call, as of a function of torch's
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
    """The sum of the losses of all rows, whose gradients are there before anyone asks for them.

    They are made as those of a sum and scaled later: so float16 can hold them.
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
            d = log_p.exp_().scatter_(1, chosen, picked.expm1())  # by the logits (n, V): p, less 1 for the token
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
    """Rows (n, C) that go through the head together, and the tokens that came next (n, 1)."""
    n = chunk_rows(vocab_size)
    return zip(x.split(n), targets[:, None].split(n), strict=True)


def _log_probabilities(matrix: Tensor, bias: Tensor | None, rows: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The logs of the probabilities of all tokens (n, V) and of the ones that came (n, 1), float32."""
    log_p = F.log_softmax(F.linear(rows, matrix, bias), -1, dtype=torch.float32)
    return log_p, log_p.gather(1, chosen)


def _padded(weight: Tensor, bias: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The head's weight (V, C) and bias (V,) in the type of x, wider by as much as `Head` makes them for it.

    What is added has a probability of 0.
    """
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    extra = padding(x, len(weight))
    if extra == 0:
        return weight, bias
    bias = x.new_zeros(len(weight)) if bias is None else bias
    return F.pad(weight, (0, 0, 0, extra)), F.pad(bias, (0, extra), value=-torch.inf)
