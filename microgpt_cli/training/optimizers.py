"""AdamW (Loshchilov and Hutter, 2019) with torch's fused kernel, and Muon (Jordan et al., 2024), without `torch.optim`.

Creating a `torch.optim.Optimizer` imports `torch._dynamo`, which takes seconds; calling its kernel does not. The kernel
also divides gradients and skips an update, both controlled by tensors, so that clipping and skipping need no
synchronization with the host.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from microgpt_cli.compute import cpu_multiplies_bfloat16
from microgpt_cli.config import OptimConfig
from microgpt_cli.engines.cpu.muon import NativeMuon
from microgpt_cli.engines.cpu.ops import grad_of

# quintic iteration of Jordan et al. (2024), which brings singular values near 1 in few steps
NEWTON_SCHULZ, STEPS = (3.4445, -4.7750, 2.0315), 5


def make_optimizer(
    named: Iterable[tuple[str, nn.Parameter]], config: OptimConfig, native: bool = False
) -> "AdamW | Muon":
    """The optimizer of `optim.kind` for named parameters; with `native`, Muon's update is in C."""
    return Muon(named, config, native) if config.kind == "muon" else AdamW(named, config)


class FlatParams:
    """Parameters that one kernel call updates.

    On a CPU they and their gradients become views of two flat tensors, so that zeroing, norm and update take one call
    each; on other devices the kernels take lists.

    Args:
        params: at least one, all on one device.
    """

    def __init__(self, params: list[Any]) -> None:
        self.params = params
        self.is_flat = params[0].device.type == "cpu"
        self.weights: list[Tensor] = params
        if self.is_flat:
            self.weights, pieces = self.zeros()
            (self._flat,), self._pieces = self.zeros()
            for p, piece in zip(params, pieces, strict=True):
                p.data = piece.copy_(p.detach())

    def zeros(self) -> tuple[list[Tensor], list[Tensor]]:
        """Zeros in the shape of the parameters: as kernel arguments, and per parameter."""
        first = self.params[0]
        if not self.is_flat:
            # not zeros_like: on the meta device it imports torch's compiler, which takes seconds
            each = [torch.zeros(p.shape, dtype=p.dtype, device=p.device) for p in self.params]
            return each, each
        flat = torch.zeros(sum(p.numel() for p in self.params), dtype=first.dtype)
        pieces = flat.split([p.numel() for p in self.params])
        return [flat], [piece.view(p.shape) for piece, p in zip(pieces, self.params, strict=True)]

    def grads(self) -> list[Tensor]:
        """The gradients as kernel arguments; after a backward pass every parameter has one."""
        if not self.is_flat:
            return [p.grad for p in self.params if p.grad is not None]
        for p, piece in zip(self.params, self._pieces, strict=True):
            if p.grad is not piece:  # replaced from outside, as by model.zero_grad()
                piece.copy_(torch.zeros_like(piece) if p.grad is None else p.grad)
                p.grad = piece
        return [self._flat]

    def zero_grad(self) -> None:
        if self.is_flat:
            self._flat.zero_()
        for p, piece in zip(self.params, self._pieces if self.is_flat else [None] * len(self.params), strict=True):
            p.grad = piece


class Gradients:
    """The gradients of the parameters that an optimizer updates."""

    flat_params: list[FlatParams]

    def grads(self) -> list[Tensor]:
        """All gradients, in any order."""
        return [grad for flat in self.flat_params for grad in flat.grads()]

    def zero_grad(self) -> None:
        for flat in self.flat_params:
            flat.zero_grad()


class AdamWGroup:
    """Parameters with the same weight decay and their AdamW state, `exp_avg` and `exp_avg_sq`."""

    def __init__(self, members: dict[str, nn.Parameter], decay: float) -> None:
        self.names, self.decay, self.flat = list(members), decay, FlatParams(list(members.values()))
        self.exp_avg, self.means = self.flat.zeros()  # as kernel arguments, and per parameter
        self.exp_avg_sq, self.squares = self.flat.zeros()


class AdamW(Gradients):
    """AdamW with weight decay on matrices only.

    Args:
        named: the parameters by name.
        config: hyperparameters; `step` takes the learning rate.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> None:
        self.config = config
        everything = dict(named)
        device = next(iter(everything.values())).device
        self.updates = torch.zeros((), device=device)  # number of updates, as the kernel expects it
        matrices = {name: p for name, p in everything.items() if p.ndim >= 2}
        others = {name: p for name, p in everything.items() if p.ndim < 2}
        decays = ((matrices, config.weight_decay), (others, 0.0))
        self._groups = [AdamWGroup(members, decay) for members, decay in decays if members]
        self.flat_params = [group.flat for group in self._groups]

    @torch.no_grad()
    def step(self, learning_rate: float | Tensor, divide_by: Tensor, skip: Tensor) -> None:
        """One update.

        Args:
            learning_rate: of this update; a float32 () tensor in a CUDA graph.
            divide_by: divisor of the gradients, float32 ().
            skip: 1.0 to skip the update, else 0.0, float32 ().
        """
        self.updates += 1 - skip
        for group in self._groups:
            torch._fused_adamw_(
                group.flat.weights,
                group.flat.grads(),
                group.exp_avg,
                group.exp_avg_sq,
                [],
                [self.updates] * len(group.exp_avg),
                lr=learning_rate,
                beta1=self.config.beta1,
                beta2=self.config.beta2,
                weight_decay=group.decay,
                eps=self.config.eps,
                amsgrad=False,
                maximize=False,
                grad_scale=divide_by,
                found_inf=skip,
            )

    def state(self) -> dict[str, Tensor]:
        """Everything that the next update depends on, by `adamw/PARAMETER/STATE`."""
        tensors = {"adamw/updates": self.updates}
        for group in self._groups:
            for name, mean, square in zip(group.names, group.means, group.squares, strict=True):
                tensors[f"adamw/{name}/exp_avg"] = mean
                tensors[f"adamw/{name}/exp_avg_sq"] = square
        return tensors


class Muon(Gradients):
    """Orthogonalised momentum for the matrices of the blocks, AdamW for all other parameters.

    The update of a matrix is its Nesterov momentum with all singular values near 1, so that rare gradient directions
    are learned as fast as common ones. Queries, keys and values are three matrices.

    Args:
        named: the parameters by name.
        config: hyperparameters; `learning_rate` is for the matrices, `adamw_learning_rate` for the rest.
        native: update the matrices in C.

    Raises:
        build.Unavailable: the C code can't be compiled or loaded.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], config: OptimConfig, native: bool = False) -> None:
        everything = list(named)
        matrices = {name: p for name, p in everything if name.startswith("blocks.") and p.ndim == 2}
        assert config.adamw_learning_rate is not None  # checked by the config
        assert config.momentum is not None
        self.weight_decay, self.momentum = config.weight_decay, config.momentum
        self.adamw = AdamW([(name, p) for name, p in everything if name not in matrices], config)
        self._matrices = FlatParams(list(matrices.values()))
        self.flat_params = [self._matrices, *self.adamw.flat_params]
        self._adamw_share = config.adamw_learning_rate / config.learning_rate
        self._groups: dict[tuple[int, int], dict[str, nn.Parameter]] = {}  # matrices of one shape are updated together
        for name, p in matrices.items():
            self._groups.setdefault((_as_matrices(name, p).size(1), _as_matrices(name, p).size(2)), {})[name] = p
        self._means = {
            shape: torch.zeros(sum(len(_as_matrices(*item)) for item in members.items()), *shape, device=p.device)
            for shape, members in self._groups.items()
        }
        self._scales = {
            shape: torch.tensor(
                [[[_scale(name, p)]] for name, p in members.items() for _ in _as_matrices(name, p)], device=mean.device
            )
            for (shape, members), mean in zip(self._groups.items(), self._means.values(), strict=True)
        }
        self._native = self._build_native() if native else None

    @torch.no_grad()
    def step(self, learning_rate: float | Tensor, divide_by: Tensor, skip: Tensor) -> None:
        """One update, with the arguments of `AdamW.step`; the ratio of the two learning rates is constant."""
        self.adamw.step(learning_rate * self._adamw_share, divide_by, skip)
        self._matrices.grads()  # collects gradients that were replaced from outside
        if self._native is not None:
            if not skip:
                self._native(float(learning_rate), float(divide_by), self.momentum, self.weight_decay)
            return
        keep = 1 - skip
        rate = learning_rate * keep
        torch._foreach_mul_(self._matrices.weights, 1 - rate * self.weight_decay)
        for shape, members in self._groups.items():
            grads = torch.cat(
                [_as_matrices(name, p.grad) for name, p in members.items() if p.grad is not None]
            )  # (n, rows, columns)
            grads = torch.where(keep > 0, grads / divide_by, 0.0)
            mean = self._means[shape]
            mean.lerp_(grads, keep * (1 - self.momentum))
            updates = orthogonalize(grads.lerp(mean, self.momentum)).mul_(rate * self._scales[shape])
            weights = [_as_matrices(name, p) for name, p in members.items()]
            torch._foreach_sub_(weights, list(updates.split(self._counts(members))))

    def _build_native(self) -> NativeMuon:
        """The update in C, for the memory of the matrices and their gradients, which is fixed."""
        self._matrices.zero_grad()
        means = [mean for shape, each in self._means.items() for mean in each.split(self._counts(self._groups[shape]))]
        members = [item for group in self._groups.values() for item in group.items()]
        matrices = (
            (_as_matrices(name, p), _as_matrices(name, grad_of(p)), mean, _scale(name, p))
            for (name, p), mean in zip(members, means, strict=True)
        )
        return NativeMuon(matrices, cpu_multiplies_bfloat16(), NEWTON_SCHULZ, STEPS)

    def _counts(self, members: dict[str, nn.Parameter]) -> list[int]:
        return [len(_as_matrices(name, p)) for name, p in members.items()]

    def state(self) -> dict[str, Tensor]:
        """Everything that the next update depends on, by `muon/PARAMETER/momentum` and as AdamW's."""
        tensors = self.adamw.state()
        for shape, members in self._groups.items():
            for name, mean in zip(members, self._means[shape].split(self._counts(members)), strict=True):
                tensors[f"muon/{name}/momentum"] = mean
        return tensors


def _as_matrices(name: str, p: Tensor) -> Tensor:
    """A weight (out, in), or its gradient, as a view (n, rows, columns) with rows >= columns."""
    matrices: Tensor = p.unflatten(0, (3 if name.endswith("qkv.weight") else 1, -1))
    return matrices if matrices.size(1) >= matrices.size(2) else matrices.mT


def _scale(name: str, p: Tensor) -> float:
    """The scale of an update, sqrt(out / in) for out > in, so that outputs change as much as with a square matrix."""
    out, fan_in = p.shape
    return float(max(1.0, (out / (3 if name.endswith("qkv.weight") else 1)) / fan_in) ** 0.5)


def orthogonalize(matrices: Tensor, steps: int = STEPS) -> Tensor:
    """Approximate the nearest semi-orthogonal matrices: singular values between about 0.7 and 1.2.

    Newton-Schulz iteration of Jordan et al. (2024), in bfloat16 where that is fast, since it need not be exact.

    Args:
        matrices: (n, rows, columns), rows >= columns.
        steps: iterations.
    """
    a, b, c = NEWTON_SCHULZ
    fast = cpu_multiplies_bfloat16() if matrices.device.type == "cpu" else matrices.is_cuda
    x: Tensor = matrices.bfloat16() if fast else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x.mT @ x  # (n, columns, columns)
        x = torch.baddbmm(x, x, torch.baddbmm(square, square, square, beta=b, alpha=c), beta=a)
    return x.to(matrices.dtype)


def total_norm(grads: list[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients together, float32 ()."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(grads))))
    return norm
