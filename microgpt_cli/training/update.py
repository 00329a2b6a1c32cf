"""One optimizer step on the device: from the starts of windows to loss and gradient norm.

Nothing here synchronizes with the device: an update that is not finite is skipped there and reported later. On a GPU
small models are limited by kernel launches, so the whole step (windows, forward, backward, clipping, optimizer) is
captured once as a CUDA graph and replayed.
"""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from microgpt_cli.compute import Compute
from microgpt_cli.config import TrainConfig
from microgpt_cli.data.dataset import gather_windows
from microgpt_cli.engines.autograd import Autograd
from microgpt_cli.engines.training import make_engine
from microgpt_cli.model.accounting import flops_per_token
from microgpt_cli.model.gpt import GPT
from microgpt_cli.training.optimizers import AdamW, Muon, make_optimizer, total_norm

RESIDENT_BYTES = 2 << 30  # a training split up to this size is kept on the GPU
GRAPH_FLOPS = 4e12  # larger steps are not captured as a CUDA graph
GRAPH_WARMUP_STEPS = 3


class Update:
    """The optimizer steps of one run.

    Args:
        model: on the device of `compute`.
        optimizer: of this model.
        ids: the training split (N,).
        config: batch size, micro-batches, clipping.
        compute: device, precision, compilation.
    """

    def __init__(self, model: GPT, optimizer: AdamW | Muon, ids: Tensor, config: TrainConfig, compute: Compute) -> None:
        self.model, self.optimizer, self.config, self.compute = model, optimizer, config, compute
        device = compute.device
        # uint16 can't be indexed on a GPU
        wide = ids.dtype if ids.dtype != torch.uint16 else torch.int32
        resident = device.type != "cpu" and ids.numel() * wide.itemsize <= RESIDENT_BYTES
        self.ids = ids.to(wide).to(device) if resident else ids
        self._finite = torch.ones((), dtype=torch.bool, device=device)  # this step and all before it
        self.engine, self.warning = make_engine(model, compute, (config.batch_size, config.model.block_size))
        step_tokens = config.batch_size * config.grad_accum_steps * config.model.block_size
        small = flops_per_token(model).value * step_tokens <= GRAPH_FLOPS
        self._wants_graph = resident and device.type == "cuda" and compute.dtype != torch.float16 and small
        self._graph: torch.cuda.CUDAGraph | None = None
        # context manager around each phase of a step; a profiler replaces it
        self.phase: Callable[[str], contextlib.AbstractContextManager[object]] = contextlib.nullcontext

    @classmethod
    def fresh(cls, model: GPT, ids: Tensor, config: TrainConfig, compute: Compute) -> "Update":
        """With a new, throw-away optimizer."""
        optimizer = make_optimizer(model.named_parameters(), config.optim, compute.engine == "native")
        return cls(model, optimizer, ids, config, compute)

    def check_engine(self, idx: Tensor, targets: Tensor) -> str | None:
        """Compare the native engine with autograd on a few sequences, and fall back to autograd if they differ.

        Returns:
            A warning, or None.
        """
        if isinstance(self.engine, Autograd):
            return self.warning
        different = self.engine.difference(idx, targets)
        if different is not None:
            self.engine = Autograd(self.model, self.compute.dtype)
            self.warning = f"{different}; continuing with engine=torch"
        return self.warning

    def __call__(
        self, starts: Tensor, learning_rate: float, loss_scale: float, give_up: Callable[[], bool]
    ) -> Tensor | None:
        """Make one step.

        Args:
            starts: first positions of the windows of all micro-batches, int64 (B · grad_accum_steps, 1), on the CPU.
            learning_rate: of this step.
            loss_scale: for float16.
            give_up: called before each micro-batch; if true, the step is cancelled.

        Returns:
            (loss, gradient norm) on the device, float32 (2,), or None if cancelled. The update is skipped if one of
            them is not finite and, except in float16, in every later step too.

        Raises:
            CompilerFailed: nothing was done; the next call runs without the compiler.
        """
        if self._wants_graph:
            if give_up():
                return None
            return self._replay(starts, learning_rate)
        if self.compute.dtype == torch.float16:
            self._finite.fill_(True)
        return self._step(starts, learning_rate, loss_scale, give_up)

    def rehearse(self, starts: Tensor) -> list[Tensor]:
        """Make a step on a CPU without changing the weights or the optimizer.

        Args:
            starts: as for `__call__`.

        Returns:
            Loss and gradient norm (2,), and all gradients.
        """
        finite = self._finite.clone()
        self._finite.fill_(False)
        numbers = self._step(starts, 0.0, 1.0, lambda: False)
        self._finite.copy_(finite)
        assert numbers is not None
        return [numbers, *self.optimizer.grads()]

    def _step(
        self, starts: Tensor, learning_rate: float | Tensor, loss_scale: float, give_up: Callable[[], bool]
    ) -> Tensor | None:
        config, optimizer = self.config, self.optimizer
        with self.phase("windows"):
            starts = starts.to(self.ids.device, non_blocking=True)
            idx, targets = gather_windows(self.ids, starts, config.model.block_size, self.compute.device)
        optimizer.zero_grad()
        loss = torch.zeros((), device=self.compute.device)
        for micro_batch in zip(idx.split(config.batch_size), targets.split(config.batch_size), strict=True):
            if give_up():
                return None
            loss += self._backward(*micro_batch, loss_scale)
        with self.phase("optimizer"):
            norm = total_norm(optimizer.grads()) / loss_scale
            clip = config.optim.grad_clip
            divide_by = loss_scale * (torch.clamp(norm / clip, min=1.0) if clip else torch.ones_like(norm))
            self._finite &= torch.isfinite(loss) & torch.isfinite(norm)
            optimizer.step(learning_rate, divide_by, (~self._finite).float())
        return torch.stack((loss, norm))

    def _backward(self, idx: Tensor, targets: Tensor, loss_scale: float) -> Tensor:
        """Accumulate the gradients of a micro-batch; returns its share of the loss."""
        with self.phase("forward"):
            share = self.engine.forward_pass(idx, targets, 1 / self.config.grad_accum_steps)
        with self.phase("backward"):
            self.engine.backward_pass(loss_scale)
        return share

    def _replay(self, starts: Tensor, learning_rate: float) -> Tensor:
        """Replay the step as a CUDA graph, captured in the first call."""
        if self._graph is None:
            self._capture(starts)
        assert self._graph is not None
        self._starts.copy_(starts, non_blocking=True)
        self._learning_rate.fill_(learning_rate)
        self._graph.replay()
        return self._numbers.clone()

    def _capture(self, starts: Tensor) -> None:
        """Capture the step. The warm-up steps are marked as not finite, so that they change nothing."""
        self._starts = starts.to(self.compute.device)
        self._learning_rate = torch.zeros((), device=self.compute.device)
        self._finite.fill_(False)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(GRAPH_WARMUP_STEPS):
                self._step(self._starts, self._learning_rate, 1.0, lambda: False)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a save may be in progress
            numbers = self._step(self._starts, self._learning_rate, 1.0, lambda: False)
        assert numbers is not None
        self._numbers = numbers
        self._finite.fill_(True)
        self._graph = graph
