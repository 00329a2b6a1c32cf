"""The keys of `microgpt compare`."""

from __future__ import annotations

from dataclasses import dataclass

from microgpt_cli.config.device import DEVICE, check_device
from microgpt_cli.config.schema import Node, key
from microgpt_cli.errors import UserError


@dataclass
class CompareConfig(Node):
    """`microgpt compare`."""

    paths: list[str] = key("the runs to compare, two or more: their folders, as bare words")
    sample: bool = key("let each of them go on from the prompt")
    prompt: str = key("prompt", may_be_empty=True)
    max_new_tokens: int = key("tokens that each writes", at_least=0)
    temperature: float = key("0: greedy; 1: the model's probabilities; above 1: more random", at_least=0)
    seed: int = key("of the samples; the same for each run", at_least=0)
    device: str = key(f"where to compute: {DEVICE}")
    out: str | None = key("folder for the plot (null: the one that the runs lie in)")

    def check(self) -> None:
        check_device(self.device)
        if len(self.paths) < 2:
            raise UserError("give two runs or more: microgpt compare RUN RUN; microgpt runs lists them")
