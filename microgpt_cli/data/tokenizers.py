"""Tokenizers: characters, as in the article, or bytes. Lossless, stored as JSON, without torch.

Encoded text is a buffer of little-endian unsigned integers of the smallest type for the vocabulary.
"""

import codecs
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from microgpt_cli.config import TokenizerConfig
from microgpt_cli.errors import UserError
from microgpt_cli.runs.escape import escape

FORMAT = 1
REPLACEMENT = "\ufffd"  # U+FFFD, the replacement character
SIGNS = {"\n": "↵", "\r": "␍", "\t": "⇥", " ": "␣"}  # symbols for whitespace


class ByteTokenizer:
    """One id for each byte of UTF-8: 256 ids, any input."""

    kind = "byte"
    unit = "bytes"  # name of the tokens
    vocab_size = 256
    itemsize = 1
    start_id = ord("\n")  # the first token without a prompt

    def encode(self, text: str | bytes, position: int = 0) -> bytes:
        """Ids of a text. Undecodable bytes of the command line (surrogate escapes) are preserved."""
        if isinstance(text, bytes):
            return text
        try:
            return text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            char = text[error.start]
            raise UserError(
                f"character {char!r} (U+{ord(char):04X}) at position {position + error.start:,} is half a surrogate "
                "pair, which is no character"
            ) from error

    def decode(self, ids: Iterable[int]) -> str:
        """The text; invalid UTF-8 becomes U+FFFD."""
        return bytes(ids).decode("utf-8", "replace")

    def text_stream(self) -> Callable[[Sequence[int], bool], str]:
        """A function of (ids, whether they are the last) that gives whole characters, and other bytes as surrogates.

        `text.encode("utf-8", "surrogateescape")` are then the bytes of the ids; `readable` shows the text.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        return lambda ids, final: decoder.decode(bytes(ids), final)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "kind": self.kind}


class CharTokenizer:
    """One id for each character of a vocabulary.

    Args:
        chars: the vocabulary, each character once, sorted by code point; the id of a character is its index.
        unknown: what `encode` does with others: "error", or "replace" by U+FFFD, which must then be in `chars`.
    """

    kind = "char"
    unit = "characters"

    def __init__(self, chars: str, unknown: str = "error") -> None:
        self.chars = chars
        self.unknown = unknown
        self.vocab_size = len(chars)
        self.start_id = max(0, chars.find("\n"))  # the first token without a prompt
        self.itemsize = 1 if len(chars) <= 1 << 8 else 2 if len(chars) <= 1 << 16 else 4
        # each character becomes the character whose code is its id, and those codes are then the buffer.
        self._encoding = {1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}[self.itemsize]
        self._table = _Table({ord(char): chr(index) for index, char in enumerate(chars)})
        if unknown == "replace":
            self._table.replacement = chr(chars.index(REPLACEMENT))

    def encode(self, text: str | bytes, position: int = 0) -> bytes:
        """Ids of a text.

        Args:
            text: what to encode.
            position: of `text` in the whole text, for the message.

        Raises:
            UserError: a character is not in the vocabulary; the message has its position.
        """
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        try:
            return text.translate(self._table).encode(self._encoding, "surrogatepass")
        except _Unknown as missing:
            char = chr(missing.args[0])
            raise UserError(
                f"character {char!r} (U+{ord(char):04X}) at position {position + text.index(char):,} is not among the "
                f"{self.vocab_size} of the vocabulary; leave it out, or train with tokenizer.unknown=replace or "
                "tokenizer=byte"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        return "".join([self.chars[index] for index in ids])

    def text_stream(self) -> Callable[[Sequence[int], bool], str]:
        """A decoder for streams: (ids, whether they are the last) → whole characters."""
        return lambda ids, final: self.decode(ids)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "kind": self.kind, "unknown": self.unknown, "chars": self.chars}


class _Unknown(Exception):
    """A character that is not in the table. Not a LookupError, on which `str.translate` keeps the character."""


class _Table(dict[int, str]):
    """A table for `str.translate` that replaces or rejects unknown characters."""

    replacement: str | None = None

    def __missing__(self, code: int) -> str:
        if self.replacement is None:
            raise _Unknown(code)
        return self.replacement


Tokenizer = ByteTokenizer | CharTokenizer


def build(config: TokenizerConfig, chars: Iterable[str]) -> Tokenizer:
    """The tokenizer of a config, with the characters of a corpus as vocabulary."""
    if config.kind == "byte":
        return ByteTokenizer()
    replacement = {REPLACEMENT} if config.unknown == "replace" else set()
    return CharTokenizer("".join(sorted(set(chars) | replacement)), config.unknown)


def unpack(encoded: bytes, itemsize: int) -> list[int]:
    """The ids in a buffer from `encode`."""
    return [int.from_bytes(encoded[i : i + itemsize], "little") for i in range(0, len(encoded), itemsize)]


def from_json(data: Any, where: str) -> Tokenizer:
    """A tokenizer from the output of `to_json`.

    Raises:
        UserError: wrong format, unknown kind or key, or a vocabulary that is empty, unsorted or has duplicates.
    """
    if not isinstance(data, dict) or type(data.get("format")) is not int or data["format"] != FORMAT:
        raise UserError(f"{where}: not a tokenizer of format {FORMAT}")
    if data == ByteTokenizer().to_json():
        return ByteTokenizer()
    if set(data) != {"format", "kind", "unknown", "chars"} or data["kind"] != "char":
        raise UserError(f"{where}: not a tokenizer of kind char or byte")
    chars, unknown = data["chars"], data["unknown"]
    if not isinstance(chars, str) or not chars or any(a >= b for a, b in itertools.pairwise(chars)):
        raise UserError(f"{where}: chars must be distinct characters, sorted")
    if any("\ud800" <= char <= "\udfff" for char in chars):
        raise UserError(f"{where}: chars contains a surrogate, which is not a character")
    if unknown not in ("error", "replace") or (unknown == "replace" and REPLACEMENT not in chars):
        raise UserError(f"{where}: unknown={unknown!r} must be error, or replace with U+FFFD among chars")
    return CharTokenizer(chars, unknown)


def visible(tokenizer: Tokenizer, token: int) -> str:
    """Visible form of a token: `↵` for a newline, `␣` for a space, `\\xc3` for a byte that is not a character."""
    text = tokenizer.decode([token])
    if tokenizer.kind == "byte" and text == REPLACEMENT:
        return f"\\x{token:02x}"
    return "".join(SIGNS.get(char) or escape(char) for char in text)
