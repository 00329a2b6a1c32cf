"""The CPU engine: loss and gradients by fused kernels in C, derived from the model's code.

The model's forward pass is recorded once (`record.py`), turned into operations (`plan.py`), and these run in each step
(`ops.py`): without autograd, with each weight rounded once per step, and one pass over memory between matrix products.
Anything that no operation supports runs in torch under autograd. `difference` compares the engine with autograd.
"""

import torch
from torch import Tensor, nn

from microgpt_cli.engines.autograd import Autograd
from microgpt_cli.engines.cpu.kernels import Kernels
from microgpt_cli.engines.cpu.ops import CrossEntropy, Gradients, Values
from microgpt_cli.engines.cpu.plan import Planner
from microgpt_cli.engines.cpu.record import IDX, TARGETS, record

# maximum error of a gradient, relative to its norm plus LEAST_SHARE times the norm of all gradients
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15}
LEAST_SHARE = 0.02


class CpuEngine:
    """Loss and gradients of a model, whose weights may change between calls, but not its code.

    Args:
        model: on the CPU, called as `model(idx, targets)`.
        dtype: of the matrix products, float32 or bfloat16.

    Raises:
        build.Unavailable: the kernels can't be compiled or loaded.
    """

    name = "native"

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.model, self.kernels = model, Kernels(dtype)
        self._plans: dict[tuple[int, ...], Planner] = {}
        self._rounded: dict[int, tuple[Tensor, Tensor]] = {}  # id of a weight → (weight, copy in dtype)

    def plan(self, shape: tuple[int, ...]) -> Planner:
        """The plan for batches of this shape (B, T).

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
        """Compute the loss and keep what `backward_pass` needs.

        Args:
            idx: token ids (B, T).
            targets: the next tokens (B, T).
            share: of the micro-batch in its step.

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
        """Add the gradients of the last `forward_pass` to `.grad` of every parameter."""
        assert loss_scale == 1.0  # only float16 is scaled, which the CPU engine lacks
        gradients = Gradients()
        if not self._is_seeded:
            gradients[self._planner.recording.loss] = torch.tensor(self._share)
        for op in reversed(self._planner.plan):
            op.backward(gradients)

    def difference(self, idx: Tensor, targets: Tensor) -> str | None:
        """Compare the loss of a batch and all its gradients with autograd's.

        Args:
            idx, targets: token ids (B, T); a few sequences suffice.

        Returns:
            A description of a difference beyond rounding, or None. `.grad` is unchanged.
        """
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        kept = [p.grad for _, p in named]

        def measured(way: CpuEngine | Autograd) -> tuple[float, list[Tensor]]:
            for _, p in named:
                p.grad = None
            with torch.random.fork_rng(devices=[]):  # the same dropout for both
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
            return f"the loss of engine=native, {loss:.6g}, differs from the model's, {true_loss:.6g}"
        least = LEAST_SHARE * torch.stack([grad.norm() for grad in theirs]).norm()
        for (name, _), our, their in reversed(list(zip(named, ours, theirs, strict=True))):
            if not (our - their).norm() <= tolerance * (their.norm() + least):
                return f"the gradient of {name} by engine=native differs from autograd's"
        return None
