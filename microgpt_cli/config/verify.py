"""The keys of `microgpt verify`."""

from __future__ import annotations

from dataclasses import dataclass

from microgpt_cli.config.schema import Node, key


@dataclass
class VerifyConfig(Node):
    """`microgpt verify`."""

    ckpt: str = key("a run, one of its ckpt/step-… folders, or latest")
    replay: int = key("steps to train again from a checkpoint, to compare the bits (0: none)", at_least=0)
