"""The keys of `microgpt shapes`."""

from __future__ import annotations

from dataclasses import dataclass

from microgpt_cli.config.model import ModelConfig
from microgpt_cli.config.schema import Node, key


@dataclass
class ShapesConfig(Node):
    """`microgpt shapes`."""

    model: ModelConfig
    vocab_size: int = key("tokens in the vocabulary (65: the article's)", at_least=1, at_most=1 << 24)
    ckpt: str | None = key("trace the model of this run instead")
    batch: int = key("sequences, B", at_least=1, at_most=1 << 20)
    time: int | None = key("tokens in each, T (null: block_size)", at_least=1)
    depth: int | None = key(
        "how far to open the modules, every block by itself (null: all, equal ones once)", at_least=0
    )
    backward: bool = key("go back from the loss too, and show the gradients")
    device: str = key("meta: shapes without numbers; auto: the CPU if that is quick", choices=("auto", "cpu", "meta"))
    format: str = key("how to print", choices=("table", "json"))
