"""`samples.txt`: the samples written during training, each after a header `=== step 500 ===`.

A line of a sample that looks like a header, with or without leading `>`, is quoted with one more `>`, as the mboxrd
format quotes "From " lines, so that reading returns what was written. Files from before this rule are supported too:
steps only increase, so a header with a smaller step is part of the sample.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from microgpt_cli.runs import storage
from microgpt_cli.runs.layout import SAMPLES

HEADER = re.compile(rb"^=== step (\d{1,8}) ===$", re.MULTILINE)
LIKE_HEADER = re.compile(rb"^(?=>*=== step \d+ ===$)", re.MULTILINE)
QUOTED = re.compile(rb"^>(?=>*=== step \d+ ===$)", re.MULTILINE)
PARTIAL_HEADER = re.compile(rb"(?:(?<=\n\n)|\A)=[= step\d]*\Z")
MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class Sample:
    """Text generated after `step` steps; bytes that are not UTF-8 are lone surrogates."""

    step: int
    text: str


def append_sample(run: Path, sample: Sample) -> None:
    """Append to a run's samples, without fsync: a run does not depend on them."""
    text = LIKE_HEADER.sub(b">", sample.text.encode("utf-8", "surrogateescape"))
    storage.append(run / SAMPLES, b"=== step %d ===\n%b\n\n" % (sample.step, text))


def read_samples(run: Path, errors: str = "replace") -> list[Sample]:
    """The samples of a run, in order.

    Args:
        errors: what becomes of bytes that are no characters, left by a crash or written by a model of bytes: "replace"
            by U+FFFD, or "surrogateescape", from which they can be had back.

    Raises:
        UserError: the file can't be read, or is too large.
    """
    if not (run / SAMPLES).exists():
        return []
    data = storage.read_bytes(run / SAMPLES, MAX_BYTES)
    found = _headers(data)
    ends = [header.start() for header in found[1:]] + [len(data)]
    texts = [data[header.end() + 1 : end].removesuffix(b"\n\n") for header, end in zip(found, ends, strict=True)]
    return [
        Sample(int(header[1]), QUOTED.sub(b"", text).decode("utf-8", errors))
        for header, text in zip(found, texts, strict=True)
    ]


def drop_samples_after(run: Path, step: int) -> None:
    """Remove the samples written after the checkpoint that a run is resumed from."""
    if not (run / SAMPLES).exists():
        return
    data = (run / SAMPLES).read_bytes()  # not decoded: the last character may be incomplete
    later = next((header.start() for header in _headers(data) if int(header[1]) > step), len(data))
    kept = PARTIAL_HEADER.sub(b"", data[:later])
    if kept and not kept.endswith(b"\n\n"):
        kept += b"\n\n"  # a header must follow an empty line
    if kept != data:
        storage.replace(run / SAMPLES, kept)


def _headers(data: bytes) -> list[re.Match[bytes]]:
    """The headers: at the start or after an empty line, with a larger step than the header before."""
    found: list[re.Match[bytes]] = []
    for header in HEADER.finditer(data):
        follows = header.start() == 0 or data.endswith(b"\n\n", 0, header.start())
        if follows and (not found or int(header[1]) > int(found[-1][1])):
            found.append(header)
    return found
