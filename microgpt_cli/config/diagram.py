"""The keys of `microgpt diagram`."""

from __future__ import annotations

from dataclasses import dataclass

from microgpt_cli.config.model import ModelConfig
from microgpt_cli.config.schema import Node, key


@dataclass
class DiagramConfig(Node):
    """`microgpt diagram`."""

    model: ModelConfig
    vocab_size: int = key("tokens in the vocabulary (65: the article's)", at_least=1, at_most=1 << 24)
    ckpt: str | None = key("draw the model of this run instead")
    batch: int = key("sequences, B", at_least=1, at_most=1 << 20)
    time: int | None = key("tokens in each, T (null: block_size)", at_least=1)
    out: str | None = key("the picture to write, .svg or .png (null: only the drawing on the terminal)")
    theme: str = key(
        "colours; auto: an SVG follows its reader's system, a PNG is light", choices=("auto", "light", "dark")
    )
