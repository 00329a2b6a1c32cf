"""An encoded corpus: training and validation split, and the batches sampled from them.

A small corpus is encoded in memory. A larger one is encoded once, piece by piece, to a checksummed file in the cache,
which is memory-mapped, so that it can exceed the memory. The file name contains the checksum of the text, so a changed
text is encoded again. B batch, T time (positions).
"""

import contextlib
import functools
import hashlib
import mmap
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from microgpt_cli import randomness
from microgpt_cli.config import TokenizerConfig
from microgpt_cli.data import tokenizers
from microgpt_cli.data.corpus import CONTINUATION_BYTES, Corpus, Progress, no_progress, writing_in
from microgpt_cli.data.tokenizers import Tokenizer
from microgpt_cli.errors import UserError
from microgpt_cli.runs import storage

IN_MEMORY_BYTES = 64 << 20  # a corpus up to this size is encoded in memory
MAX_SHUFFLED = 1 << 22  # windows of an epoch
PIECE_TOKENS = 1 << 20  # tokens of a large text that are processed at once
DTYPES = {1: torch.uint8, 2: torch.uint16, 4: torch.int32}  # the smallest type for the vocabulary


def build_tokenizer(
    config: TokenizerConfig, corpus: Corpus, cache_dir: Path, progress: Progress = no_progress
) -> Tokenizer:
    """The tokenizer of a config, with the vocabulary of the corpus (both splits)."""
    if config.kind == "byte":
        return tokenizers.build(config, "")
    if corpus.size_bytes <= IN_MEMORY_BYTES:
        return tokenizers.build(config, _characters(corpus.text_chunks(progress)))
    name = f"{corpus.sha256(progress)}-{config.kind}-{config.unknown}.json"
    path = Path(os.path.expanduser(cache_dir)) / "vocabulary" / name
    if not path.exists():
        tokenizer = tokenizers.build(config, _characters(corpus.text_chunks(progress)))
        with _cache_hint(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            storage.replace(path, storage.json_bytes(tokenizer.to_json()))
    return tokenizers.from_json(storage.parse_json(storage.read_bytes(path), str(path)), str(path))


def _characters(chunks: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    for chunk in chunks:  # removing known characters first is much faster for ASCII
        seen.update(chunk.translate(dict.fromkeys(map(ord, seen))) if chunk.isascii() else chunk)
    return seen


def encode(
    corpus: Corpus, tokenizer: Tokenizer, cache_dir: Path, progress: Progress = no_progress
) -> tuple[Tensor, str]:
    """The token ids of a corpus (N,) and the sha256 of its text.

    Raises:
        UserError: a character that is not in the vocabulary, invalid UTF-8, or no space for the cache.
    """
    if corpus.size_bytes <= IN_MEMORY_BYTES:
        digest, ids = hashlib.sha256(), bytearray()
        with corpus.unchanged():
            for chunk in corpus.chunks():
                digest.update(chunk)
            for encoded in _encoded(corpus, tokenizer, progress):
                ids += encoded
        return torch.frombuffer(ids, dtype=DTYPES[tokenizer.itemsize]), digest.hexdigest()
    with corpus.unchanged() as check:
        source_sha256 = corpus.sha256(progress)
        kind = storage.sha256(storage.json_bytes(tokenizer.to_json()))
        path = Path(os.path.expanduser(cache_dir)) / "tokens" / f"{source_sha256[:32]}-{kind[:16]}.bin"
        record = path.with_suffix(".json")
        if not _is_intact(path, record, progress):
            with _cache_hint(path):
                _encode_to_file(corpus, tokenizer, path, record, progress, check)
    return _mapped(path, DTYPES[tokenizer.itemsize]), source_sha256


def _mapped(path: Path, dtype: torch.dtype) -> Tensor:
    """Map a file as a read-only tensor. `torch.from_file` maps it writable, which reserves memory for all of it."""
    try:
        with path.open("rb") as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path}: can't be mapped: {error.strerror or error}") from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(pages, dtype=dtype)


def _encoded(corpus: Corpus, tokenizer: Tokenizer, progress: Progress) -> Iterator[bytes]:
    if tokenizer.kind == "byte":
        yield from corpus.chunks(progress)
        return
    position = 0
    for text in corpus.text_chunks(progress):
        yield tokenizer.encode(text, position)
        position += len(text)


def _encode_to_file(
    corpus: Corpus, tokenizer: Tokenizer, path: Path, record: Path, progress: Progress, check: Callable[[], None]
) -> None:
    """Write the ids beside their final name, and give them that name when they are whole and `check` finds no fault."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing_in(path.parent, ".*.bin.*"):
        _check_space(corpus, tokenizer, path.parent)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        digest = hashlib.sha256()
        try:
            with os.fdopen(handle, "wb") as file:
                for encoded in _encoded(corpus, tokenizer, progress):
                    digest.update(encoded)
                    file.write(encoded)
                file.flush()
                os.fsync(file.fileno())
            check()
            size = temporary.stat().st_size
            os.replace(temporary, path)
            storage.replace(record, storage.json_bytes({"bytes": size, "sha256": digest.hexdigest()}))
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _cache_hint(path: Path) -> Iterator[None]:
    """Turn errors of the disk into a `UserError` that names `data.cache_dir`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path.parent}: {error.strerror or error}; choose another folder with data.cache_dir"
        ) from error


def _check_space(corpus: Corpus, tokenizer: Tokenizer, folder: Path) -> None:
    """Raises `UserError` if the disk lacks space for the encoded text."""
    free = shutil.disk_usage(folder).free
    needed = corpus.size_bytes * tokenizer.itemsize
    if needed > free and tokenizer.kind == "char":  # count the characters, which may have several bytes
        needed = tokenizer.itemsize * sum(len(chunk.translate(None, CONTINUATION_BYTES)) for chunk in corpus.chunks())
    if needed > free:
        raise UserError(
            f"{folder}: the encoded text needs {needed:,} bytes, and {free:,} are free; "
            "choose another folder with data.cache_dir"
        )


def _is_intact(path: Path, record: Path, progress: Progress) -> bool:
    """Whether an encoded file exists with the recorded size and checksum."""
    if not (path.is_file() and record.is_file()):
        return False
    try:
        recorded = storage.parse_json(storage.read_bytes(record), str(record))
    except UserError:
        return False
    written = Corpus(str(path), (path,))
    return bool(recorded == {"bytes": written.size_bytes, "sha256": written.sha256(progress)})


def present(ids: Tensor, vocab_size: int) -> Tensor:
    """Which tokens are among `ids` (N,), as booleans (V,). torch can't sort 16-bit ids, so `unique` is no way to it."""
    found = torch.zeros(vocab_size, dtype=torch.bool)
    for piece in ids.split(PIECE_TOKENS):
        found[piece.long()] = True
    return found


@dataclass(frozen=True)
class Splits:
    """Training and validation ids (each one-dimensional); no window crosses their border."""

    train: Tensor
    val: Tensor


def split(ids: Tensor, val_fraction: float, block_size: int) -> Splits:
    """Split off the last `val_fraction` of the ids for validation.

    Raises:
        UserError: a split is shorter than a context and its next token.
    """
    n_val = round(len(ids) * val_fraction)
    train, val = ids[: len(ids) - n_val], ids[len(ids) - n_val :]
    for name, part in (("training", train), ("validation", val)):
        if len(part) <= block_size:
            least = int((block_size + 2) / min(val_fraction, 1 - val_fraction)) + 1
            raise UserError(
                f"data: the {name} split has {len(part):,} of the text's {len(ids):,} tokens, and a context needs "
                f"model.block_size + 1 = {block_size + 1:,}; give at least {least:,} tokens of text, or a smaller "
                "model.block_size"
            )
    return Splits(train, val)


def sample_starts(count: int, batch_size: int, block_size: int, seed: int, step: int) -> Tensor:
    """The first positions (B, 1) of the windows of a step in `count` ids, a function of seed and step.

    Each epoch divides the ids into consecutive windows from a random offset and uses each once, in random order. With
    more than MAX_SHUFFLED windows per epoch they are sampled independently.
    """
    in_epoch = max(1, (count - 1) // block_size - 1)  # for any offset
    if in_epoch > MAX_SHUFFLED:
        drawn = randomness.generator(seed, randomness.BATCHES, step)
        return torch.randint(count - block_size, (batch_size, 1), generator=drawn)
    first = step * batch_size
    starts: list[int] = []
    while len(starts) < batch_size:
        epoch, index = divmod(first + len(starts), in_epoch)
        offset, order = _epoch(count, block_size, in_epoch, seed, epoch)
        starts += [offset + block_size * n for n in order[index : index + batch_size - len(starts)].tolist()]
    return torch.tensor(starts)[:, None]


@functools.lru_cache(maxsize=2)  # a batch may span two epochs
def _epoch(count: int, block_size: int, in_epoch: int, seed: int, epoch: int) -> tuple[int, Tensor]:
    """The offset and the order of an epoch's windows."""
    drawn = randomness.generator(seed, randomness.BATCHES, epoch)
    offset = torch.randint(count - block_size * in_epoch, (), generator=drawn)
    return int(offset), torch.randperm(in_epoch, generator=drawn)


def gather_windows(ids: Tensor, starts: Tensor, block_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Gather the windows of `ids` at `starts` (B, 1), both on one device, and copy them to another.

    The copy to a GPU is asynchronous, from pinned memory: the host is steps ahead and reads windows of a mapped file
    while the GPU computes.

    Returns:
        idx (B, T) and targets (B, T), int64: targets are shifted by one token.
    """
    is_unsigned = ids.dtype == torch.uint16  # torch 2.7 can't index it
    bits = ids.view(torch.int16) if is_unsigned else ids
    window = bits[starts + torch.arange(block_size + 1, device=ids.device)].long()  # (B, T + 1)
    window = window & 0xFFFF if is_unsigned else window
    if window.device.type == "cpu" and device.type == "cuda":
        window = window.pin_memory()
    window = window.to(device, non_blocking=True)
    return window[:, :-1], window[:, 1:]


def windows(ids: Tensor, batch_size: int, block_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Consecutive windows that predict every id but the first exactly once.

    Yields:
        idx and targets, int64 (B, T); at the end fewer rows, and then the rest (1, T').
    """
    whole = (len(ids) - 1) // block_size
    for row in range(0, whole, batch_size):
        rows = min(batch_size, whole - row)
        piece = ids[row * block_size : (row + rows) * block_size + 1].long()
        yield piece[:-1].view(rows, block_size), piece[1:].view(rows, block_size)
    rest = ids[whole * block_size :].long()
    if len(rest) > 1:
        yield rest[None, :-1], rest[None, 1:]
