"""Compile a C file of this folder for this very CPU, once, and load it.

It takes a second the first time; the library stays in `~/.cache/microgpt`, under a name that says what it was made of:
source, compiler, flags, processor. Whoever has no compiler does without: each function here has one in torch beside it
that says the same.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
SECONDS = 60  # at most; what takes longer doesn't come back
PLACE = Path(".cache") / "microgpt"  # in the home folder


class Unavailable(Exception):
    """The library can't be had, and why."""


@functools.cache
def load(name: str, *defines: str) -> ctypes.CDLL:
    """The library made of `name`.c, with these names defined.

    Raises:
        Unavailable: no compiler, or one that fails.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise Unavailable("no C compiler here (cc)")
    source = Path(__file__).with_name(f"{name}.c")
    command = [compiler, *FLAGS, *(f"-D{word}" for word in defines)]
    # all that the compiler takes for granted: itself, its version, what this processor can do
    assumed = _run([*command, "-dM", "-E", "-x", "c", os.devnull])
    sources = (file.read_text(encoding="utf-8") for file in sorted(source.parent.glob("*.[ch]")))
    made_of = "\0".join((*command, name, assumed, *sources))
    stem = f"{name}-{_sha256(made_of.encode())}"
    command.append(str(source))
    try:
        folder = Path.home() / PLACE
        folder.mkdir(parents=True, exist_ok=True)
        return ctypes.CDLL(str(_kept(folder, stem) or _made(folder, stem, command)))
    except (OSError, RuntimeError):  # nowhere to keep it, nor a home
        with tempfile.TemporaryDirectory() as aside:
            return ctypes.CDLL(str(_made(Path(aside), stem, command)))


def _kept(folder: Path, stem: str) -> Path | None:
    """The library, if it is there and whole: its name ends in its checksum, for half a library ends the process."""
    for path in folder.glob(f"{stem}-*.so"):
        if path.stem == f"{stem}-{_sha256(path.read_bytes())}":
            return path
        path.unlink()
    return None


def _made(folder: Path, stem: str, command: list[str]) -> Path:
    """Compile it, and put it into the folder whole: others may be at it too."""
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        half = Path(aside) / "library.so"
        _run([*command, "-o", str(half), "-lm"])
        return half.replace(folder / f"{stem}-{_sha256(half.read_bytes())}.so")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        raise Unavailable(f"{command[0]} fails: {said[0]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]} fails: {error}") from error
    return done.stdout
