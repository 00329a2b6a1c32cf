"""Python's garbage collector, kept out of the way while a command starts and when it ends.

What is imported stays to the end, and looking through it for garbage, again and again while it grows, is a tenth of the
time that importing torch takes. The last look, when Python ends, takes half a second. Only for a process that is a
command: programs that call `cli.main(words)` have their collector as they left it.
"""

import atexit
import gc
import sys


def pause() -> None:
    """Look for no garbage until `work`, and for none when the process ends."""
    gc.disable()
    atexit.register(_end)


def _end() -> None:
    """Leave everything where it is, but for torch's compiler: it complains of what of it isn't cleared away."""
    if "triton" in sys.modules:
        gc.unfreeze()
    else:
        gc.freeze()


def resume() -> None:
    """Look for garbage again, if it was given up, but not among what is there by now."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
