"""Text sources: built-in, a file, a folder, or a verified download. A corpus is streamed, never read whole.

Text is UTF-8 and preserved byte for byte: newlines are not translated and a byte-order mark is not removed.
"""

import codecs
import contextlib
import glob
import hashlib
import http.client
import itertools
import os
import shlex
import stat
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microgpt_cli.config import DataConfig
from microgpt_cli.errors import UserError

CHUNK_BYTES = 1 << 20
CONTINUATION_BYTES = bytes(range(0x80, 0xC0))  # of UTF-8: they begin no character
SUFFIXES = (".txt", ".md")
ABOUT_OTHERS = {"readme", "license", "licence", "copying", "requirements", "changelog", "contributing"}  # names
MAX_KINDS = 4  # that a note names
MAX_PIPE_BYTES = 1 << 30  # of a pipe, which is read into memory
DOWNLOAD_TIMEOUT_SEC = 30

Progress = Callable[[int, int], None]  # (bytes done, total bytes)
Stamp = tuple[tuple[int, int], ...]  # size and modification time, in nanoseconds, of each file


def no_progress(done: int, total: int) -> None:
    """Ignore the progress."""


@dataclass(frozen=True)
class Corpus:
    """A text in one or more sources, read in order, separated by newlines.

    Args:
        name: what to call it when talking to a person.
        sources: files, or bytes that are in memory.
        note: what of a folder is not in it, or may not be meant to be; empty if there is nothing to tell.
    """

    name: str
    sources: tuple[Path | bytes, ...]
    note: str = field(default="", compare=False)
    _checksums: dict[Stamp, str] = field(default_factory=dict, init=False, compare=False, repr=False)

    def stamp(self) -> Stamp:
        """Identifies the state of the files: it changes when one of them does."""
        stats = [source.stat() for source in self.sources if isinstance(source, Path)]
        return tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[Callable[[], None]]:
        """Several passes over the corpus that belong together.

        Yields:
            A function that raises `UserError` if a file has changed since; at the end it is called anyway.
        """
        before = self.stamp()

        def check() -> None:
            try:
                is_same = self.stamp() == before
            except OSError:  # it is gone
                is_same = False
            if not is_same:
                raise UserError(f"{self.name}: it changed while it was read; begin again when it is whole")

        try:
            yield check
        except UserError:  # which may come of the change: a character that was not there at first
            check()
            raise
        check()

    @property
    def size_bytes(self) -> int:
        return sum(len(s) if isinstance(s, bytes) else s.stat().st_size for s in self.sources)

    def chunks(self, progress: Progress = no_progress) -> Iterator[bytes]:
        """The bytes of the corpus, about `CHUNK_BYTES` at a time."""
        for _, chunk in self._chunks(progress):
            yield chunk

    def text_chunks(self, progress: Progress = no_progress) -> Iterator[str]:
        """The characters of the corpus. Raises `UserError` with the file and the byte offset if it is not UTF-8."""
        for source, chunks in itertools.groupby(self._chunks(progress), key=lambda pair: pair[0]):
            decoder = codecs.getincrementaldecoder("utf-8")()
            consumed = 0  # bytes of this source given to the decoder
            for chunk in itertools.chain((chunk for _, chunk in chunks), [b""]):
                pending = len(decoder.getstate()[0])  # bytes of an incomplete character
                try:
                    yield decoder.decode(chunk, final=not chunk)
                except UnicodeDecodeError as error:
                    name = self.sources[source] if isinstance(self.sources[source], Path) else self.name
                    raise UserError(
                        f"{name}: not UTF-8 text: {error.reason} at byte {consumed - pending + error.start:,}; "
                        "convert it, or use tokenizer=byte, which accepts any bytes"
                    ) from error
                consumed += len(chunk)

    def text(self) -> str:
        """The whole text; only for a small corpus."""
        return "".join(self.text_chunks())

    def sha256(self, progress: Progress = no_progress) -> str:
        """The checksum of all bytes, cached until a file changes."""
        stamp = self.stamp()
        if stamp not in self._checksums:
            digest = hashlib.sha256()
            for chunk in self.chunks(progress):
                digest.update(chunk)
            self._checksums[stamp] = digest.hexdigest()
        return self._checksums[stamp]

    def _chunks(self, progress: Progress) -> Iterator[tuple[int, bytes]]:
        """Yield (index of the source, non-empty bytes of it)."""
        done, total = 0, self.size_bytes
        for index, source in enumerate(self.sources):
            last = b"\n"
            for chunk in _read(source):
                last = chunk[-1:]
                done += len(chunk)
                progress(done, total)
                yield index, chunk
            if last != b"\n" and index + 1 < len(self.sources):
                yield index, b"\n"


def _read(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield from (source[i : i + CHUNK_BYTES] for i in range(0, len(source), CHUNK_BYTES))
        return
    try:
        with source.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise UserError(f"{source}: {error.strerror or error}") from error


def open_corpus(config: DataConfig, progress: Progress = no_progress, keep: bool = True) -> Corpus:
    """Open the corpus of a config; `data.path` overrides the choice of `data`.

    Args:
        config: the source.
        progress: called during a download.
        keep: store a download in the cache; otherwise only in memory.

    Raises:
        UserError: it does not exist, is empty, or can't be downloaded.
    """
    if config.path is not None:
        corpus = _from_path(config.path)
    elif config.source == "pydocs":
        corpus = python_manual()
    elif config.source == "download":
        corpus = Corpus(config.file_name or "download", (_downloaded(config, progress, keep),))
    else:
        raise UserError(f"data.source={config.source}: give data.path, or choose data=pydocs or data=shakespeare")
    if corpus.size_bytes == 0:
        is_pipe = config.path == "-" or (config.path is not None and config.path.startswith(("/dev/", "/proc/")))
        if is_pipe:
            raise UserError(f"{corpus.name}: empty, 0 bytes; a pipe can be read only once: save it to a file")
        raise UserError(f"{corpus.name}: the file is empty; give one with text")
    return corpus


def _from_path(path: str) -> Corpus:
    where, note = Path("/dev/stdin" if path == "-" else os.path.expanduser(path)), ""
    if os.path.isdir(where):  # where Path.is_dir fails on a name too long, this says no
        everything = _once(_files_in(where))
        files = [file for file in everything if file.suffix.lower() in SUFFIXES]
        note = _note(where, files, everything)
        if not files:
            more = f": {note}" if note else ""
            raise UserError(f"data.path={path}: no {' or '.join(SUFFIXES)} file in this folder{more}")
    elif os.path.exists(where):
        files = [where]
    else:
        files = _once(Path(name) for name in glob.glob(str(where), recursive=True) if Path(name).is_file())
        if not files:
            raise UserError(f"data.path={path}: no such file or folder")
    for file in files:
        if not os.access(file, os.R_OK):
            raise UserError(f"data.path={path}: {file} can't be read: permission denied")
    if stat.S_ISFIFO(files[0].stat().st_mode) and not str(files[0]).startswith(("/dev/", "/proc/")):
        raise UserError(f"data.path={path}: a named pipe, which may have no writer; give data.path=- and < {path}")
    if len(files) == 1 and not _has_size(files[0]):
        return Corpus(path, (_read_once(files[0]),))
    return Corpus(path, tuple(files), note)


def _files_in(folder: Path) -> Iterator[Path]:
    """The files that a person put there: not hidden, and not the logs of a run. Links are followed, each once."""
    seen: set[tuple[int, int]] = set()
    for name, folders, files in os.walk(folder, followlinks=True):
        stat_result = os.stat(name)
        identity = (stat_result.st_dev, stat_result.st_ino)
        if identity in seen or (Path(name) / "ckpt").is_dir():
            if identity in seen:
                folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(inner for inner in folders if not inner.startswith("."))
        yield from (path for file in files if not file.startswith(".") and (path := Path(name) / file).is_file())


def _once(paths: Iterable[Path]) -> list[Path]:
    """Each file once, however many links lead to it, under its shortest name; ordered by name."""
    named: dict[tuple[int, int], Path] = {}
    for path in sorted(paths, key=lambda path: (len(path.parts), path)):
        stat_result = path.stat()
        named.setdefault((stat_result.st_dev, stat_result.st_ino), path)
    return sorted(named.values())


def _note(folder: Path, files: list[Path], everything: list[Path]) -> str:
    """What of a folder is left out, and what is taken that may be about the texts rather than one of them."""
    parts = []
    kinds = Counter(path.suffix.lower() for path in everything if path.suffix.lower() not in SUFFIXES)
    if kinds:
        shown = ", ".join(f"{kind or 'without a suffix'} {count}" for kind, count in kinds.most_common(MAX_KINDS))
        most = kinds.most_common(1)[0][0]
        pattern = shlex.quote(f"{folder}/**/*{most}")
        count = f"{len(files):,} file{'' if len(files) == 1 else 's'}, {kinds.total():,} others left out"
        parts.append(f"{count} ({shown}{', …' if len(kinds) > MAX_KINDS else ''}): data.path={pattern} takes those")
    about = [path.name for path in files if path.stem.lower() in ABOUT_OTHERS]
    if about and len(files) > len(about):
        parts.append(f"{', '.join(about[:MAX_KINDS])} {'is' if len(about) == 1 else 'are'} among the texts")
    return "; ".join(parts)


def _has_size(path: Path) -> bool:
    """Whether the size of a file says how much can be read: not of pipes and devices, nor of files in /proc."""
    stat_result = path.stat()
    return stat.S_ISREG(stat_result.st_mode) and stat_result.st_size > 0


def _read_once(path: Path) -> bytes:
    """All that comes out of a pipe, a device, or a file without a size."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PIPE_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    if len(data) > MAX_PIPE_BYTES:
        raise UserError(f"{path}: more than {MAX_PIPE_BYTES:,} bytes come out of it; save it to a file")
    return data


def python_manual() -> Corpus:
    """The language manual that CPython includes (`pydoc_data.topics`), with each paragraph once.

    A fifth of the text is repeated between topics. Deduplicated, no paragraph of the validation split is trained on.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:  # some distributions omit it
        raise UserError("data=pydocs: this Python lacks pydoc_data; give data.path=FILE with another text") from error
    paragraphs = dict.fromkeys("\n\n".join(topics.values()).split("\n\n"))
    return Corpus("the Python manual", ("\n\n".join(paragraphs).encode(),))


def _downloaded(config: DataConfig, progress: Progress, keep: bool) -> Path | bytes:
    """The file from `data.folder`, the cache, or a download into the cache, with verified checksum."""
    if not (config.file_name and config.sha256 and config.url and config.size_bytes):
        raise UserError("data.source=download: needs data.url, data.file_name, data.sha256 and data.size_bytes")
    cached = Path(os.path.expanduser(config.cache_dir)) / config.file_name
    for path in (Path(os.path.expanduser(config.folder)) / config.file_name, cached):
        if os.path.isfile(path):
            if Corpus(str(path), (path,)).sha256() != config.sha256:
                raise UserError(
                    f"{path}: checksum differs from data.sha256; remove the file, or use it as data.path={path}"
                )
            return path
    if not keep:
        pieces: list[bytes] = []
        with _offline_hint(config, cached):
            _fetch(config, pieces.append, progress)
        return b"".join(pieces)
    with contextlib.ExitStack() as stack:
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(writing_in(cached.parent, f".{config.file_name}.*"))
            handle, name = tempfile.mkstemp(dir=cached.parent, prefix=f".{config.file_name}.")
        except OSError as error:
            raise UserError(
                f"{cached.parent}: {error.strerror or error}; choose another folder with data.cache_dir"
            ) from error
        temporary = Path(name)
        try:
            with _offline_hint(config, cached):
                with os.fdopen(handle, "wb") as file:
                    _fetch(config, file.write, progress)
                temporary.chmod(0o644)
                os.replace(temporary, cached)
        finally:
            temporary.unlink(missing_ok=True)
    return cached


@contextlib.contextmanager
def writing_in(folder: Path, temporaries: str) -> Iterator[None]:
    """Write temporary files into a folder; first, what processes that were killed have left of them is removed.

    It is removed where nobody else writes there: writers share a lock on the folder, which ends with them.

    Args:
        temporaries: a pattern of their names.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # others write there, or this file system knows no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in folder.glob(temporaries):
                left.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _offline_hint(config: DataConfig, cached: Path) -> Iterator[None]:
    """Turn what the network or the disk refuses into the ways to work offline."""
    try:
        yield
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: an invalid URL
        reason = getattr(error, "reason", error)
        raise UserError(
            f"{config.url}: download failed ({reason}); put the file at {Path(config.folder) / str(config.file_name)} "
            f"or {cached}, or work offline with data=pydocs or data.path=FILE"
        ) from error


def _fetch(config: DataConfig, write: Callable[[bytes], Any], progress: Progress) -> None:
    """Download the file of a config. Raises `UserError` if its checksum differs."""
    assert config.url is not None
    assert config.size_bytes is not None
    if _download(config.url, config.size_bytes, write, progress) != config.sha256:
        raise UserError(f"{config.url}: checksum of the download differs from data.sha256; nothing was kept")


def _download(url: str, size_bytes: int, write: Callable[[bytes], Any], progress: Progress) -> str:
    """Fetch at most `size_bytes` bytes and return their checksum."""
    digest, done = hashlib.sha256(), 0
    with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_SEC) as response:
        while chunk := response.read(CHUNK_BYTES):
            done += len(chunk)
            if done > size_bytes:
                raise UserError(f"{url}: the download exceeds data.size_bytes={size_bytes}; nothing was kept")
            digest.update(chunk)
            write(chunk)
            progress(done, size_bytes)
    return digest.hexdigest()
