"""AdamW (Loshchilov and Hutter, 2019) on torch's fused kernel, without `torch.optim`.

Making any `torch.optim.Optimizer` imports `torch._dynamo`, which takes seconds; the kernel behind it costs nothing to
call. It also divides gradients by a number and can leave everything as it is, both told by tensors, so that clipping
and refusing a bad gradient need no word from the device to the host.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from microgpt_cli.config import OptimConfig


class AdamW:
    """AdamW with decay on matrices only.

    Args:
        named: the parameters by name.
        config: hyperparameters; the learning rate is given at each step.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> None:
        self.config = config
        self.names, self.params = map(list, zip(*named, strict=True))
        # not zeros_like: of a parameter on the meta device, that imports torch's compiler, which takes seconds
        self.exp_avg = [torch.zeros(p.shape, dtype=p.dtype, device=p.device) for p in self.params]
        self.exp_avg_sq = [torch.zeros(p.shape, dtype=p.dtype, device=p.device) for p in self.params]
        device = self.params[0].device
        self.updates = torch.zeros((), device=device)  # how many there were, as the kernel wants it
        matrices = [i for i, p in enumerate(self.params) if p.ndim >= 2]
        others = [i for i, p in enumerate(self.params) if p.ndim < 2]
        self._groups = [(matrices, config.weight_decay), (others, 0.0)]

    def grads(self) -> list[Tensor]:
        """The gradients, in the order of the parameters; every parameter has one after a backward pass."""
        return [p.grad for p in self.params if p.grad is not None]

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float | Tensor, divide_by: Tensor, skip: Tensor) -> None:
        """One update.

        Args:
            learning_rate: of this update; a float32 () tensor where a CUDA graph shall read it.
            divide_by: what the gradients are divided by first, float32 ().
            skip: 1.0 to leave everything as it is, else 0.0, float32 ().
        """
        self.updates += 1 - skip
        for members, decay in self._groups:
            if not members:
                continue
            torch._fused_adamw_(
                [self.params[i] for i in members],
                [self.params[i].grad for i in members],
                [self.exp_avg[i] for i in members],
                [self.exp_avg_sq[i] for i in members],
                [],
                [self.updates] * len(members),
                lr=learning_rate,
                beta1=self.config.beta1,
                beta2=self.config.beta2,
                weight_decay=decay,
                eps=self.config.eps,
                amsgrad=False,
                maximize=False,
                grad_scale=divide_by,
                found_inf=skip,
            )

    def state(self) -> dict[str, Tensor]:
        """Everything that the next update depends on, by `adamw/PARAMETER/STATE`."""
        tensors = {"adamw/updates": self.updates}
        for name, mean, square in zip(self.names, self.exp_avg, self.exp_avg_sq, strict=True):
            tensors[f"adamw/{name}/exp_avg"] = mean
            tensors[f"adamw/{name}/exp_avg_sq"] = square
        return tensors


def total_norm(grads: list[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients taken as one vector, float32 ()."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(grads))))
    return norm
