"""The keys of `microgpt params`."""

from __future__ import annotations

from dataclasses import dataclass

from microgpt_cli.config.device import DEVICE, check_device
from microgpt_cli.config.model import ModelConfig
from microgpt_cli.config.optim import OptimConfig
from microgpt_cli.config.schema import Node, key


@dataclass
class ParamsConfig(Node):
    """`microgpt params`."""

    model: ModelConfig
    optim: OptimConfig
    vocab_size: int = key("tokens in the vocabulary (65: the article's)", at_least=1, at_most=1 << 24)
    ckpt: str | None = key("count the model of this run instead")
    batch_size: int = key("sequences of block_size tokens, for the bytes of activations", at_least=1)
    depth: int = key("how far to open the blocks (0: the five parts)", at_least=0)
    device: str = key(f"where it would train, for the bytes of activations: {DEVICE}")
    format: str = key("how to print", choices=("table", "plain", "json"))

    def check(self) -> None:
        check_device(self.device)
