"""The node `tokenizer`: how text becomes token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from microgpt_cli.config.schema import Node, key


@dataclass
class TokenizerConfig(Node):
    """How text becomes token ids."""

    NODE: ClassVar[str] = "tokenizer."
    GROUPS: ClassVar[tuple[str, ...]] = ("tokenizer",)

    kind: str = key(
        "char: one id a code point of the corpus; byte: UTF-8 bytes", choices=("char", "byte"), default="char"
    )
    unknown: str = key(
        "a character the vocabulary lacks: refuse, or replace by U+FFFD", choices=("error", "replace"), default="error"
    )
