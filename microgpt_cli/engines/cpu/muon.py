"""Muon's update of all matrices on a CPU, in one call of C (`muon.c`).

In torch it takes thirty small matrix products per step and shape. Here a matrix stays in one core's cache throughout,
and only half of each symmetric product is computed.
"""

import ctypes
from collections.abc import Callable, Iterable

from torch import Tensor
from torch._C._profiler import _RecordFunctionFast

from microgpt_cli.engines.cpu import build


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "momentum", "grad")),
        *((name, ctypes.c_long) for name in ("rows", "columns", "row_stride", "column_stride")),
        ("scale", ctypes.c_float),
    )


class _Settings(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_float) for name in ("rate", "divide_by", "momentum", "weight_decay", "a", "b", "c")),
        ("steps", ctypes.c_long),
    )


class NativeMuon:
    """Updates matrices in place; the tensors must keep their memory.

    Args:
        matrices: weight and gradient (n, rows, columns), with the same strides and rows >= columns; the momentum
            (n, rows, columns), contiguous; and the scale of the update.
        in_bfloat16: whether the iteration's matrix products are in bfloat16.
        polynomial, steps: of the iteration.

    Raises:
        build.Unavailable: the function can't be compiled or loaded.
    """

    def __init__(
        self,
        matrices: Iterable[tuple[Tensor, Tensor, Tensor, float]],
        in_bfloat16: bool,
        polynomial: tuple[float, float, float],
        steps: int,
    ) -> None:
        self._muon, self._mark = load(in_bfloat16), _RecordFunctionFast("native::muon")  # shown by the profiler
        entries = [
            _Matrix(w.data_ptr(), m.data_ptr(), g.data_ptr(), *w.shape, *w.stride(), scale)
            for weight, grad, momentum, scale in matrices
            for w, g, m in zip(weight, grad, momentum, strict=True)
        ]
        self._entries = (_Matrix * len(entries))(*entries)
        self._polynomial, self._steps = polynomial, steps

    def __call__(self, rate: float, divide_by: float, momentum: float, weight_decay: float) -> None:
        """Update weights and momenta as `Muon.step` does.

        Raises:
            MemoryError: nothing was updated.
        """
        settings = _Settings(rate, divide_by, momentum, weight_decay, *self._polynomial, self._steps)
        with self._mark:
            build.check_status(self._muon(self._entries, len(self._entries), settings))


def load(in_bfloat16: bool) -> Callable[..., int]:
    """The function `muon`.

    Raises:
        build.Unavailable: the function can't be compiled or loaded.
    """
    muon: Callable[..., int] = build.load("muon", *(["BFLOAT16"] if in_bfloat16 else [])).functions.muon
    muon.argtypes = [ctypes.POINTER(_Matrix), ctypes.c_long, ctypes.POINTER(_Settings)]  # type: ignore[attr-defined]
    muon.restype = ctypes.c_int  # type: ignore[attr-defined]
    return muon
