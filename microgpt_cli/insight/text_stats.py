"""A look at a text before it is trained on: what characters it has, which of them are odd, what it repeats."""

import unicodedata
from collections import Counter
from dataclasses import dataclass

from microgpt_cli.data.corpus import Corpus, Progress, no_progress

LOOKED_AT_BYTES = 64 << 20  # of a larger corpus, its beginning
LINE_CHARACTERS = 40  # shorter lines repeat in any text
RARE = 5  # times: a model learns little of a character that it sees more seldom
USUAL = {"\n", "\t", " "}
ODD = {"Cc": "control character", "Cf": "invisible", "Co": "private use", "Cn": "unassigned", "Zs": "unusual space"}


@dataclass(frozen=True)
class Odd:
    """A character that is seldom meant."""

    name: str  # "U+FEFF ZERO WIDTH NO-BREAK SPACE"
    what: str  # "invisible"
    count: int


@dataclass(frozen=True)
class Survey:
    """What a text consists of."""

    characters: int
    different: int
    rare: int  # different characters that stand there fewer than `RARE` times
    odd: tuple[Odd, ...]  # the most frequent first
    lines: int
    repeated: float  # share of the characters that are in lines which stand there before


def survey(corpus: Corpus, progress: Progress = no_progress) -> Survey:
    """Read a corpus through. Raises `UserError` if it is not UTF-8."""
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    repeated, rest = 0, ""
    for text in corpus.text_chunks(progress):
        counts.update(text)
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            if len(line) >= LINE_CHARACTERS:
                code = hash(line)
                repeated += len(line) if code in seen else 0
                seen.add(code)
    total = sum(counts.values())
    odd = [Odd(_name(char), what, count) for char, count in counts.most_common() if (what := _oddity(char))]
    rare = sum(1 for count in counts.values() if count < RARE)
    return Survey(total, len(counts), rare, tuple(odd), counts["\n"], repeated / total if total else 0.0)


def _oddity(char: str) -> str:
    if char in USUAL:
        return ""
    if char == "\r":
        return "end of a line as Windows writes it"
    if char == "\ufffd":
        return "stands for what could not be read"
    return ODD.get(unicodedata.category(char), "")


def _name(char: str) -> str:
    return f"U+{ord(char):04X} {unicodedata.name(char, '')}".rstrip()


def beginning(corpus: Corpus, limit: int = LOOKED_AT_BYTES) -> Corpus:
    """The corpus, or the whole lines at the beginning of one that is larger than `limit` bytes, in memory."""
    if corpus.size_bytes <= limit:
        return corpus
    taken = bytearray()
    for chunk in corpus.chunks():
        taken += chunk
        if len(taken) >= limit:
            break
    end = taken.rfind(b"\n", 0, limit) + 1
    return Corpus(corpus.name, (bytes(taken[: end or limit]),))
