"""Compile a C file of this folder for this processor on first use, cache the library, and load it.

Compiling takes a second or two. The library stays in `~/.cache/microgpt`, under a name that holds a hash of all that
went into it: sources, compiler, flags, processor features, OpenMP runtime. Every function has an equivalent in torch,
which is used where there is no compiler.

A process must have one OpenMP runtime only, for the threads of two would compete for the cores. So a library is linked
to the very file that torch has loaded: libgomp or, built with clang or MKL, libomp or libiomp5. GCC's code runs with
each of them, clang's not with libgomp.

Environment:
    CC: the compiler to try first, with flags if need be; then cc, gcc, clang.
    MICROGPT_CFLAGS: more flags, for debugging (`make sanitize`).
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-w")
TIMEOUT_SEC = 300  # of one run of the compiler
CACHE_FOLDER = Path(".cache") / "microgpt"  # in the home folder


class Unavailable(Exception):
    """The library can't be built or loaded; the message says why."""


@dataclass(frozen=True)
class Library:
    """A loaded library.

    Args:
        functions: the C functions.
        path: the cached file; None if it was compiled for this process only.
        build_hash: of sources, compiler, flags, processor features and OpenMP runtime.
        note: why it is not cached, a sentence for the user; empty if it is.
    """

    functions: ctypes.CDLL
    path: Path | None
    build_hash: str
    note: str = ""


def load(name: str, *defines: str) -> Library:
    """The library of `name`.c compiled with these macros defined. A process tries once.

    Raises:
        Unavailable: there is no compiler, it fails, or its code can't run beside torch.
    """
    found = _load_once(name, *defines)
    if isinstance(found, str):
        raise Unavailable(found)
    return found


def will_compile(name: str, *defines: str) -> bool:
    """Whether `load` will run the compiler, which takes a second or two."""
    try:
        build = next(_builds())
        cached = _find_cached(_cache_folder(), build.stem(name, defines))
    except (StopIteration, Unavailable):
        return False
    except (OSError, RuntimeError):
        return True
    return cached is None


def build_hash() -> str:
    """The `Library.build_hash` of what `load` gives here; 16 hexadecimal digits.

    Raises:
        Unavailable: there is no compiler that could be used.
    """
    return next(_builds()).hash


def processor() -> str:
    """The processor's model name, or its architecture where Linux doesn't name the model."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.machine()


def check_status(status: int | None) -> None:
    """Raise MemoryError if a C function returned OUT_OF_MEMORY."""
    if status:
        raise MemoryError("can't allocate memory in the CPU kernels")


@functools.cache
def _load_once(name: str, *defines: str) -> Library | str:
    """The library, or why it is unavailable: the reason of the compiler that came first."""
    reasons: list[str] = []
    try:
        for build in _builds(reasons):
            try:
                return _load_build(build, name, defines)
            except Unavailable as error:
                reasons.append(str(error))
            except OSError as error:  # there is no OpenMP runtime, or no folder to load a library from
                reasons.append(f"the library that {build.compiler[0]} compiled can't be loaded: {error}")
    except Unavailable as error:
        reasons.append(str(error))
    return reasons[0]


@dataclass(frozen=True)
class _Build:
    """How a library is compiled.

    Args:
        compiler: its path and flags.
        openmp: the runtime to link to; None for the compiler's own.
        hash: of all that goes into any library.
    """

    compiler: tuple[str, ...]
    openmp: Path | None
    hash: str

    def stem(self, name: str, defines: tuple[str, ...]) -> str:
        """The file name of a library but for its checksum."""
        return "-".join((name, *defines, self.hash))


def _builds(reasons: list[str] | None = None) -> Iterator[_Build]:
    """The builds to try, best first; why a compiler is passed over is appended to `reasons`.

    Raises:
        Unavailable: none of the compilers can be used.
    """
    if sys.platform != "linux":
        raise Unavailable("CPU kernels are compiled on Linux only")
    reasons, openmp, usable = [] if reasons is None else reasons, _openmp_of_torch(), False
    for compiler in _compilers():
        try:
            build = _Build(compiler, openmp, _hash_of_build(compiler, openmp))
        except Unavailable as error:
            reasons.append(str(error))
        else:
            usable = True
            yield build
    if not usable:
        cc = f"CC={os.environ['CC']}, " if os.environ.get("CC") else ""
        raise Unavailable(reasons[0] if reasons else f"no C compiler found ({cc}{', '.join(COMPILERS)})")


def _compilers() -> Iterator[tuple[str, ...]]:
    """The compilers that are there, with our flags: $CC first."""
    try:
        chosen = shlex.split(os.environ.get("CC", ""))
        extra = shlex.split(os.environ.get("MICROGPT_CFLAGS", ""))
    except ValueError as error:
        raise Unavailable(f"CC or MICROGPT_CFLAGS can't be parsed: {error}") from error
    commands: dict[tuple[str, ...], None] = {}
    for program, *flags in filter(None, (chosen, *([name] for name in COMPILERS))):
        path = shutil.which(program)
        if path:
            commands[path, *flags, *FLAGS, *extra] = None
    yield from commands


@functools.cache
def _hash_of_build(compiler: tuple[str, ...], openmp: Path | None) -> str:
    macros = _predefined_macros(compiler)
    if "__clang__" in macros and openmp is not None and openmp.name.startswith("libgomp"):
        raise Unavailable(
            f"{compiler[0]}: clang's OpenMP (libomp) would run beside the {openmp.name} that PyTorch has loaded"
        )
    sources = (file.read_text(encoding="utf-8") for file in sorted(Path(__file__).parent.glob("*.[ch]")))
    return _sha256(chr(0).join((*compiler, openmp.name if openmp else "", macros, *sources)).encode())


@functools.cache
def _predefined_macros(compiler: tuple[str, ...]) -> str:
    """What identifies the compiler, its version, and the processor features it compiles for."""
    return _run([*compiler, "-dM", "-E", "-x", "c", os.devnull])


class _DlInfo(ctypes.Structure):
    """As in dlfcn.h."""

    _fields_ = (
        ("dli_fname", ctypes.c_char_p),
        ("dli_fbase", ctypes.c_void_p),
        ("dli_sname", ctypes.c_char_p),
        ("dli_saddr", ctypes.c_void_p),
    )


def _openmp_of_torch() -> Path | None:
    """The OpenMP runtime that torch has loaded; None if torch has none, or isn't imported."""
    extension = sys.modules.get("torch._C")
    return _openmp_of(ctypes.CDLL(extension.__file__)) if extension is not None else None


def _openmp_of(library: ctypes.CDLL) -> Path | None:
    """The file in which a library finds OpenMP's functions."""
    dladdr, info = ctypes.CDLL(None).dladdr, _DlInfo()
    dladdr.argtypes = [ctypes.c_void_p, ctypes.POINTER(_DlInfo)]
    try:
        found = dladdr(ctypes.cast(library.omp_get_max_threads, ctypes.c_void_p), info)
    except AttributeError:  # not linked to OpenMP
        return None
    return Path(os.fsdecode(info.dli_fname)) if found else None


def _load_build(build: _Build, name: str, defines: tuple[str, ...]) -> Library:
    stem, note = build.stem(name, defines), ""
    try:
        folder = _cache_folder()
        path = _find_cached(folder, stem)
        if path is None:
            functions, path = _compile_and_publish(build, name, defines, folder)
        else:
            functions = ctypes.CDLL(str(path))
    except (OSError, RuntimeError) as error:  # there is no home, or it is full, read-only, or mounted noexec
        path, note = None, f"CPU kernels can't be cached and are compiled by every process: {error}"
        with tempfile.TemporaryDirectory() as scratch:
            functions, _ = _compile_and_publish(build, name, defines, Path(scratch))
    openmp = _openmp_of(functions)
    if build.openmp is not None and openmp != build.openmp:
        raise Unavailable(f"{build.compiler[0]} linked {openmp} instead of PyTorch's {build.openmp}")
    return Library(functions, path, build.hash, note)


def _cache_folder() -> Path:
    """The folder for libraries, which only its owner may write to: a library is code."""
    folder = Path.home() / CACHE_FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"others may write to {folder}")
    return folder


def _find_cached(folder: Path, stem: str) -> Path | None:
    """The library, if it is there and matches the checksum in its name: loading a damaged one kills the process."""
    for path in folder.glob(f"{stem}-*.so"):
        if path.stem == f"{stem}-{_sha256(path.read_bytes())}":
            return path
        path.unlink()
    return None


def _compile_and_publish(build: _Build, name: str, defines: tuple[str, ...], folder: Path) -> tuple[ctypes.CDLL, Path]:
    """Compile and load a library, then move it into the folder in one step, for other processes may do the same."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        compiled, linked = Path(scratch) / "library.o", Path(scratch) / "library.so"
        source = Path(__file__).with_name(f"{name}.c")
        macros = (f"-D{macro}" for macro in defines)
        _run([*build.compiler, *macros, "-c", str(source), "-o", str(compiled)])
        linker = list(build.compiler)
        if build.openmp is not None:  # in place of the runtime that -fopenmp would add
            linker = [flag for flag in linker if flag != "-fopenmp"]
        runtime = [str(build.openmp)] if build.openmp else []
        _run([*linker, "-shared", str(compiled), *runtime, "-o", str(linked), "-lm"])
        functions = ctypes.CDLL(str(linked))
        path = folder / f"{build.stem(name, defines)}-{_sha256(linked.read_bytes())}.so"
        linked.replace(path)
        return functions, path


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SEC, check=True)
    except subprocess.CalledProcessError as error:
        output = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        line = next((line for line in output if "error" in line), output[0])
        raise Unavailable(f"{command[0]} failed: {line}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]} failed: {error}") from error
    return done.stdout
