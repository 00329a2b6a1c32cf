"""The torch engine: the model's forward pass under autocast, optionally compiled, and autograd."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class CompilerFailed(Exception):
    """torch.compile failed; from now on the model runs without it."""


def autocast(device_type: str, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """A context in which matrix products run in `dtype`."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device_type, dtype)


class Autograd:
    """A model's loss and gradients.

    Args:
        model: called as `model(idx, targets)`.
        dtype: of the matrix products.
        compile: use torch.compile.
        compile_may_fail: if it fails, raise `CompilerFailed` and continue without it.
    """

    name = "torch"

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, compile: bool = False, compile_may_fail: bool = False
    ) -> None:
        self.model, self.dtype, self.compile_may_fail = model, dtype, compile_may_fail
        self._forward: Any = torch.compile(model, dynamic=False) if compile else model
        self._has_run = not compile

    def forward_pass(self, idx: Tensor, targets: Tensor, share: float = 1.0) -> Tensor:
        """`share` of the loss of a micro-batch (B, T), float32 ().

        Raises:
            CompilerFailed: nothing was done; the next call runs without the compiler.
        """
        with torch.enable_grad(), autocast(idx.device.type, self.dtype):
            _, loss = self._guarded(lambda: self._forward(idx, targets))
            self._loss: Tensor = loss * share
        detached: Tensor = self._loss.detach()
        return detached

    def backward_pass(self, loss_scale: float = 1.0) -> None:
        """Add the gradients of the last `forward_pass`, times `loss_scale`, to `.grad` of every parameter."""
        self._guarded(lambda: (self._loss * loss_scale).backward())
        self._has_run = True

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """Turn a failure of the compiler, which occurs in the first call, into `CompilerFailed`."""
        try:
            return call()
        except Exception as error:
            if self._has_run or not self.compile_may_fail:
                raise
            self._forward, self._has_run = self.model, True
            raise CompilerFailed(str(error).strip().splitlines()[0]) from error
