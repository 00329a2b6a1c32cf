"""The update of Muon's matrices on a CPU, in C: all of them in one call (`native/muon.c`).

Torch makes thirty small products a step for each shape; here a thread has a matrix in its cache from the first to the
last, and of the symmetric products makes one half.
"""

import ctypes
from collections.abc import Callable, Iterable

from torch import Tensor
from torch._C._profiler import _RecordFunctionFast

from microgpt_cli.engines.cpu import build


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "mean", "grad")),
        *((name, ctypes.c_long) for name in ("rows", "columns", "row_stride", "column_stride")),
        ("scale", ctypes.c_float),
    )


class _Settings(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_float) for name in ("rate", "divide_by", "momentum", "decay", "a", "b", "c")),
        ("steps", ctypes.c_long),
    )


class NativeMuon:
    """Updates of matrices that stay where they are.

    Args:
        matrices: weight and gradient (n, rows, columns), of the same strides and with rows at least columns; the mean
            of gradients (n, rows, columns), contiguous; and the scale of the update.
        in_bfloat16: the products of the iteration.
        polynomial, steps: of the iteration.

    Raises:
        library.Unavailable: there is no compiler, or it fails.
    """

    def __init__(
        self,
        matrices: Iterable[tuple[Tensor, Tensor, Tensor, float]],
        in_bfloat16: bool,
        polynomial: tuple[float, float, float],
        steps: int,
    ) -> None:
        self._muon, self._mark = load(in_bfloat16), _RecordFunctionFast("native::muon")  # so that a profiler sees it
        entries = [
            _Matrix(w.data_ptr(), m.data_ptr(), g.data_ptr(), *w.shape, *w.stride(), scale)
            for weight, grad, mean, scale in matrices
            for w, g, m in zip(weight, grad, mean, strict=True)
        ]
        self._entries = (_Matrix * len(entries))(*entries)
        self._polynomial, self._steps = polynomial, steps

    def __call__(self, rate: float, divide_by: float, momentum: float, decay: float) -> None:
        """Change weights and means, as `Muon.step` says."""
        settings = _Settings(rate, divide_by, momentum, decay, *self._polynomial, self._steps)
        with self._mark:
            self._muon(self._entries, len(self._entries), settings)


def load(in_bfloat16: bool) -> Callable[..., None]:
    """The function `muon`.

    Raises:
        library.Unavailable: there is no compiler, or it fails.
    """
    muon: Callable[..., None] = build.load("muon", *(["BFLOAT16"] if in_bfloat16 else [])).muon
    muon.argtypes = [ctypes.POINTER(_Matrix), ctypes.c_long, ctypes.POINTER(_Settings)]  # type: ignore[attr-defined]
    muon.restype = None  # type: ignore[attr-defined]
    return muon
