"""Pause the garbage collector during imports and at exit.

Collections during the imports take a tenth of the time of importing torch, and the last one, at exit, half a second.
Used only when the process is the command: programs that call `main(words)` keep their collector unchanged.
"""

import atexit
import gc
import sys


def pause() -> None:
    """Disable collection until `resume`, and at exit."""
    gc.disable()
    atexit.register(_freeze)


def _freeze() -> None:
    """Skip the collection at exit, unless Triton is loaded: it warns about objects that are not collected."""
    if "triton" in sys.modules:
        gc.unfreeze()
    else:
        gc.freeze()


def resume() -> None:
    """Enable collection again after `pause`, and exempt all existing objects."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
