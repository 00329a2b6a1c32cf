"""The CPU engine: a model's loss and gradients by fused kernels in C, following what the model's code does.

The model's forward pass is recorded once (`record.py`), turned into operations (`plan.py`), and these run in each step
(`ops.py`): without autograd between them, each weight rounded once a step, and one visit to the memory for what is not
a matrix product. What no operation knows runs in torch under autograd. `differs` compares with autograd.
"""

import torch
from torch import Tensor, nn

from microgpt_cli.engines.autograd import Autograd
from microgpt_cli.engines.cpu.kernels import Kernels
from microgpt_cli.engines.cpu.ops import CrossEntropy, Gradients, Values
from microgpt_cli.engines.cpu.plan import Planner
from microgpt_cli.engines.cpu.record import IDX, TARGETS, record

# How far a gradient may be from autograd's, as a share of its norm and of LEAST_SHARE of the norm of all gradients.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15}
LEAST_SHARE = 0.02


class CpuEngine:
    """A model's loss and gradients; its weights may change between two calls, its code may not.

    Args:
        model: on the CPU, called as `model(idx, targets)`.
        dtype: of the matrix products, float32 or bfloat16.

    Raises:
        build.Unavailable: there is no C compiler, or it fails.
    """

    name = "native"

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.model, self.kernels = model, Kernels(dtype)
        self._plans: dict[tuple[int, ...], Planner] = {}
        self._rounded: dict[int, tuple[Tensor, Tensor]] = {}  # id of a weight → itself, and in dtype

    def plan(self, shape: tuple[int, ...]) -> Planner:
        """The operations for batches (B, T).

        Raises:
            Unsupported: the forward pass can't be recorded.
        """
        if shape not in self._plans:
            self._plans[shape] = Planner(record(self.model, *shape), self.kernels, self._round)
        return self._plans[shape]

    def _round(self, weight: Tensor) -> Tensor:
        if self.kernels.dtype == torch.float32:
            return weight
        if id(weight) not in self._rounded:
            self._rounded[id(weight)] = weight, torch.empty(weight.shape, dtype=self.kernels.dtype)
        return self._rounded[id(weight)][1]

    @torch.no_grad()
    def forward_pass(self, idx: Tensor, targets: Tensor, share: float = 1.0) -> Tensor:
        """The loss, with what `backward_pass` needs kept.

        Args:
            idx: token ids (B, T).
            targets: the tokens that came next (B, T).
            share: of a micro-batch in its step.

        Returns:
            `share` of the loss, float32 ().

        Raises:
            Unsupported: the forward pass can't be recorded.
        """
        self._planner, self._share = self.plan(tuple(idx.shape)), share
        if self._rounded:
            exact, rounded = zip(*self._rounded.values(), strict=True)
            torch._foreach_copy_(rounded, exact)
        values: Values = {IDX: idx, TARGETS: targets}
        for op in self._planner.plan:
            if isinstance(op, CrossEntropy):
                op.share = share
            op.forward(values)
        loss = values[self._planner.recording.loss]
        self._is_seeded = isinstance(self._planner.plan[-1], CrossEntropy)
        return loss if self._is_seeded else loss * share

    @torch.no_grad()
    def backward_pass(self, loss_scale: float = 1.0) -> None:
        """Add the gradients of what `forward_pass` returned to `.grad` of every parameter."""
        assert loss_scale == 1.0  # float16 alone is scaled, and no CPU trains in it
        gradients = Gradients()
        if not self._is_seeded:
            gradients[self._planner.recording.loss] = torch.tensor(self._share)
        for op in reversed(self._planner.plan):
            op.backward(gradients)

    def difference(self, idx: Tensor, targets: Tensor) -> str | None:
        """Compare the loss of a batch and all its gradients with autograd's.

        Args:
            idx, targets: token ids (B, T); a few sequences will do.

        Returns:
            What differs beyond rounding, for a person; None if nothing does. Gradients are as they were before.
        """
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        kept = [p.grad for _, p in named]

        def measured(way: CpuEngine | Autograd) -> tuple[float, list[Tensor]]:
            for _, p in named:
                p.grad = None
            with torch.random.fork_rng(devices=[]):  # so that both draw the same dropout
                torch.manual_seed(0)
                loss = way.forward_pass(idx, targets).item()
                way.backward_pass()
            return loss, [torch.zeros_like(p) if p.grad is None else p.grad for _, p in named]

        loss, ours = measured(self)
        if len(self._plans) > 1:
            del self._plans[tuple(idx.shape)]  # and what its operations keep
        true_loss, theirs = measured(Autograd(self.model, self.kernels.dtype))
        for (_, p), grad in zip(named, kept, strict=True):
            p.grad = grad
        tolerance = TOLERANCE[self.kernels.dtype]
        if not abs(loss - true_loss) <= tolerance * abs(true_loss):
            return f"the loss of engine=native, {loss:.6g}, is not that of the model's code, {true_loss:.6g}"
        least = LEAST_SHARE * torch.stack([grad.norm() for grad in theirs]).norm()
        for (name, _), our, their in reversed(list(zip(named, ours, theirs, strict=True))):
            if not (our - their).norm() <= tolerance * (their.norm() + least):
                return f"the gradient of {name} by engine=native is not that of the model's code"
        return None
