"""`samples.txt`: what a model wrote as it learnt, a text after each header `=== step 500 ===`.

A line of a text that looks like a header is written with a `>` before it, and one that looks so already with one more,
as mail does with "From " (mboxrd): what is read is what was written. Files that are older than this rule are read by
another: steps only rise, so a header that does not belongs to the text.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from microgpt_cli.runs import storage
from microgpt_cli.runs.layout import SAMPLES

HEADER = re.compile(rb"^=== step (\d{1,8}) ===$", re.MULTILINE)
LOOKS_LIKE_ONE = re.compile(rb"^(?=>*=== step \d+ ===$)", re.MULTILINE)
QUOTED = re.compile(rb"^>(?=>*=== step \d+ ===$)", re.MULTILINE)
TORN_HEADER = re.compile(rb"(?:(?<=\n\n)|\A)=[= step\d]*\Z")
MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class Sample:
    """What a model wrote after `step` steps."""

    step: int
    text: str


def append_sample(run: Path, sample: Sample) -> None:
    """Add to a run's samples, which a run can do without."""
    text = LOOKS_LIKE_ONE.sub(b">", sample.text.encode())
    storage.append(run / SAMPLES, b"=== step %d ===\n%b\n\n" % (sample.step, text))


def read_samples(run: Path) -> list[Sample]:
    """The samples of a run, in order; none if it has none yet. What a crash tore is shown with U+FFFD.

    Raises:
        UserError: the file can't be read, or is too large.
    """
    if not (run / SAMPLES).exists():
        return []
    data = storage.read_bytes(run / SAMPLES, MOST_BYTES)
    found = _headers(data)
    ends = [header.start() for header in found[1:]] + [len(data)]
    texts = [data[header.end() + 1 : end].removesuffix(b"\n\n") for header, end in zip(found, ends, strict=True)]
    return [
        Sample(int(header[1]), QUOTED.sub(b"", text).decode("utf-8", "replace"))
        for header, text in zip(found, texts, strict=True)
    ]


def drop_samples_after(run: Path, step: int) -> None:
    """Cut off the samples that an interrupted run wrote after the checkpoint that it is resumed from."""
    if not (run / SAMPLES).exists():
        return
    data = (run / SAMPLES).read_bytes()  # the last character may be torn, so it is not taken for text
    later = next((header.start() for header in _headers(data) if int(header[1]) > step), len(data))
    kept = TORN_HEADER.sub(b"", data[:later])
    if kept and not kept.endswith(b"\n\n"):
        kept += b"\n\n"  # or the next header would not be taken for one
    if kept != data:
        storage.replace(run / SAMPLES, kept)


def _headers(data: bytes) -> list[re.Match[bytes]]:
    """The headers of a file: the first line, and each after an empty line whose step is beyond those before it."""
    found: list[re.Match[bytes]] = []
    for header in HEADER.finditer(data):
        follows = header.start() == 0 or data.endswith(b"\n\n", 0, header.start())
        if follows and (not found or int(header[1]) > int(found[-1][1])):
            found.append(header)
    return found
