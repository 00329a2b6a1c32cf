"""Save checkpoints in a background thread.

On a GPU, training waits only for a copy of the state; a thread copies it to the host, hashes, writes and syncs it. On a
CPU the thread would compete with training for cores, so saving is synchronous.
"""

import contextlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor


def saves_in_background(device: torch.device) -> bool:
    """Whether training on this device continues while a checkpoint is written."""
    return device.type != "cpu"


class Saver:
    """Runs one save at a time, synchronously or in a background thread.

    Args:
        background: use a thread.
    """

    def __init__(self, background: bool) -> None:
        self.background = background
        self._thread: threading.Thread | None = None
        self._done: tuple[int, Path] | None = None
        self._error: BaseException | None = None

    def start(self, step: int, save: Callable[[], Path]) -> None:
        """Start the save of a step; the previous one must be finished. Errors of a thread are raised by `finish`."""
        assert self._thread is None
        if not self.background:
            self._done = step, save()
            return

        def run() -> None:
            try:
                self._done = step, save()
            except BaseException as error:  # raised by `finish`
                self._error = error

        self._thread = threading.Thread(target=run, name="saver")
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether `finish` will not block."""
        return self._thread is None or not self._thread.is_alive()

    def finish(self) -> tuple[int, Path] | None:
        """Wait for the current save and return its step and path, or None if there is none.

        Raises:
            OSError: the save failed.
        """
        if self._thread is not None:
            self._thread.join()
        self._thread, done, error = None, self._done, self._error
        self._done = self._error = None
        if error is not None:
            raise error
        return done


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors so that training can change the originals; shared tensors are copied once.

    The copies stay on the GPU if twice their size is free, where copying is fast and asynchronous; otherwise they are
    moved to the host.
    """
    own = {id(tensor): tensor.detach() for tensor in tensors.values()}
    size = sum(tensor.nbytes for tensor in own.values())
    device = next(iter(own.values())).device
    stay = device.type == "cuda" and torch.cuda.mem_get_info(device)[0] >= 2 * size
    copies = {key: tensor.clone() if stay else tensor.to("cpu", copy=True) for key, tensor in own.items()}
    return {name: copies[id(tensor)] for name, tensor in tensors.items()}


def copy_stream(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A CUDA stream, for another thread, whose copies wait only for the work queued so far."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)
