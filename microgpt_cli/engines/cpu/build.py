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
import sys
import tempfile
from pathlib import Path

COMPILERS = ("cc", "gcc")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-w")
SECONDS = 300  # at most; what takes longer doesn't come back
PLACE = Path(".cache") / "microgpt"  # in the home folder


class Unavailable(Exception):
    """The library can't be had, and why."""


def load(name: str, *defines: str) -> ctypes.CDLL:
    """The library made of `name`.c, with these names defined.

    Raises:
        Unavailable: no compiler, or one that fails.
    """
    found = _loaded(name, *defines)
    if isinstance(found, str):
        raise Unavailable(found)
    return found


@functools.cache
def _loaded(name: str, *defines: str) -> ctypes.CDLL | str:
    """The library, or why it can't be had; a process tries once."""
    if sys.platform != "linux":
        return "C is compiled on Linux only"
    why = "no C compiler here (cc)"
    for compiler in dict.fromkeys(filter(None, map(shutil.which, COMPILERS))):
        try:
            return _compiled((compiler, *FLAGS), defines, name)
        except Unavailable as error:
            why = str(error)
        except OSError as error:  # its OpenMP is not there, or nowhere may a library be
            why = f"what {compiler} makes can't be loaded: {error}"
    return why


@functools.cache
def _assumed(compiler: tuple[str, ...]) -> str:
    """All that a compiler with its flags takes for granted: itself, its version, what this processor can do."""
    return _run([*compiler, "-dM", "-E", "-x", "c", os.devnull])


def _compiled(compiler: tuple[str, ...], defines: tuple[str, ...], name: str) -> ctypes.CDLL:
    source, assumed = Path(__file__).with_name(f"{name}.c"), _assumed(compiler)
    if "__clang__" in assumed:
        raise Unavailable(f"{compiler[0]} is clang, whose OpenMP is not torch's")
    command = [*compiler, *(f"-D{word}" for word in defines)]
    sources = (file.read_text(encoding="utf-8") for file in sorted(source.parent.glob("*.[ch]")))
    stem = f"{name}-{_sha256(chr(0).join((*command, name, assumed, *sources)).encode())}"
    command = [*command, str(source)]
    try:
        folder = _folder()
        kept = _kept(folder, stem)
        return ctypes.CDLL(str(kept)) if kept else _made(folder, stem, command)
    except (OSError, RuntimeError):  # nowhere to keep it, nor a home
        with tempfile.TemporaryDirectory() as aside:
            return _made(Path(aside), stem, command)


def _folder() -> Path:
    """Where libraries are kept: a folder of ours, into which nobody else may put one."""
    folder = Path.home() / PLACE
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"others may write to {folder}")
    return folder


def _kept(folder: Path, stem: str) -> Path | None:
    """The library, if it is there and whole: its name ends in its checksum, for half a library ends the process."""
    for path in folder.glob(f"{stem}-*.so"):
        if path.stem == f"{stem}-{_sha256(path.read_bytes())}":
            return path
        path.unlink()
    return None


def _made(folder: Path, stem: str, command: list[str]) -> ctypes.CDLL:
    """Compile it, and put it into the folder, whole and if it can be loaded: others may be at it too."""
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        half = Path(aside) / "library.so"
        _run([*command, "-o", str(half), "-lm"])
        made = ctypes.CDLL(str(half))
        half.replace(folder / f"{stem}-{_sha256(half.read_bytes())}.so")
        return made


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        line = next((line for line in said if "error" in line), said[0])
        raise Unavailable(f"{command[0]} fails: {line}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]} fails: {error}") from error
    return done.stdout
