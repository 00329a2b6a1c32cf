"""Checkpoints published while a run goes on.

On a GPU a save costs the run a copy of its state; a thread brings that to the host, hashes it, writes it and sees it to
the disk. On a CPU the thread would take a core from training, and a save is made where it is asked for.
"""

import contextlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor


def saves_in_background(device: torch.device) -> bool:
    """Whether a run on this device goes on while a checkpoint is written."""
    return device.type != "cpu"


class Saver:
    """Makes one save at a time, here or in a thread beside the caller.

    Args:
        background: whether in a thread.
    """

    def __init__(self, background: bool) -> None:
        self.background = background
        self._thread: threading.Thread | None = None
        self._done: tuple[int, Path] | None = None
        self._error: BaseException | None = None

    def start(self, step: int, save: Callable[[], Path]) -> None:
        """Begin the save of a step; the one before must be finished. From a thread, an error is raised later."""
        assert self._thread is None
        if not self.background:
            self._done = step, save()
            return

        def run() -> None:
            try:
                self._done = step, save()
            except BaseException as error:  # for whoever waits
                self._error = error

        self._thread = threading.Thread(target=run, name="saver")
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether `finish` has nothing to wait for."""
        return self._thread is None or not self._thread.is_alive()

    def finish(self) -> tuple[int, Path] | None:
        """Wait for the save that was begun; its step and what it has published, told once.

        Raises:
            OSError: it failed; told once too.
        """
        if self._thread is not None:
            self._thread.join()
        self._thread, done, error = None, self._done, self._error
        self._done = self._error = None
        if error is not None:
            raise error
        return done


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that training doesn't change; names that share a tensor share the copy.

    They stay on a GPU that has room for them twice, where a copy takes no longer than reading the state once and nobody
    waits for it, and are else brought to the host at once.
    """
    own = {id(tensor): tensor.detach() for tensor in tensors.values()}
    size = sum(tensor.nbytes for tensor in own.values())
    device = next(iter(own.values())).device
    stay = device.type == "cuda" and torch.cuda.mem_get_info(device)[0] >= 2 * size
    copies = {key: tensor.clone() if stay else tensor.to("cpu", copy=True) for key, tensor in own.items()}
    return {name: copies[id(tensor)] for name, tensor in tensors.items()}


def copy_stream(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context, for another thread, in which copies from a GPU wait for what it has to do by now, and not for more."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)
