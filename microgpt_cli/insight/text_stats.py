"""Statistics of a text before training: its characters, unusual ones among them, and repeated lines."""

import unicodedata
from collections import Counter
from dataclasses import dataclass

from microgpt_cli.data.corpus import CONTINUATION_BYTES, Corpus, Progress, no_progress

MAX_BYTES = 64 << 20  # of a larger corpus only its beginning is read
MIN_LINE_CHARACTERS = 40  # shorter lines are often repeated in any text
RARE_COUNT = 5  # characters with fewer occurrences are rare: a model learns little about them
USUAL_CHARS = {"\n", "\t", " "}
UNUSUAL_CATEGORIES = {
    "Cc": "control character",
    "Cf": "invisible",
    "Co": "private use",
    "Cn": "unassigned",
    "Zs": "unusual space",
}


@dataclass(frozen=True)
class UnusualChar:
    """A character that is rarely intended."""

    name: str  # "U+FEFF ZERO WIDTH NO-BREAK SPACE"
    kind: str  # "invisible"
    count: int


@dataclass(frozen=True)
class TextStats:
    """Statistics of a text."""

    characters: int
    distinct: int
    rare: int  # distinct characters with fewer than `RARE_COUNT` occurrences
    unusual: tuple[UnusualChar, ...]  # the most frequent first
    lines: int
    repeated: float  # fraction of the characters that are in lines which occurred before


def text_stats(corpus: Corpus, progress: Progress = no_progress) -> TextStats:
    """Read a whole corpus. Raises `UserError` if it is not UTF-8."""
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    repeated, rest = 0, ""
    for text in corpus.text_chunks(progress):
        counts.update(text)
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            if len(line) >= MIN_LINE_CHARACTERS:
                code = hash(line)
                repeated += len(line) if code in seen else 0
                seen.add(code)
    total = sum(counts.values())
    unusual = [UnusualChar(_name(char), kind, count) for char, count in counts.most_common() if (kind := _kind(char))]
    rare = sum(1 for count in counts.values() if count < RARE_COUNT)
    return TextStats(total, len(counts), rare, tuple(unusual), counts["\n"], repeated / total if total else 0.0)


def _kind(char: str) -> str:
    """Why a character is unusual; empty if it is not."""
    if char in USUAL_CHARS:
        return ""
    if char == "\r":
        return "Windows line ending"
    if char == "\ufffd":
        return "replacement for undecodable bytes"
    return UNUSUAL_CATEGORIES.get(unicodedata.category(char), "")


def _name(char: str) -> str:
    return f"U+{ord(char):04X} {unicodedata.name(char, '')}".rstrip()


def beginning(corpus: Corpus, limit: int = MAX_BYTES) -> Corpus:
    """The corpus, or the complete lines (characters, if it has none) in the first `limit` bytes of a larger one."""
    if corpus.size_bytes <= limit:
        return corpus
    data = bytearray()
    for chunk in corpus.chunks():
        data += chunk
        if len(data) > limit:
            break
    end = data.rfind(b"\n", 0, limit) + 1 or limit
    while end > limit - 3 and data[end] in CONTINUATION_BYTES:  # of UTF-8: not within a character
        end -= 1
    return Corpus(corpus.name, (bytes(data[:end]),))
