"""The node `optim`: the optimizer and its learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from microgpt_cli.config.schema import Node, key
from microgpt_cli.errors import UserError


@dataclass
class OptimConfig(Node):
    """The optimizer and its learning-rate schedule."""

    NODE: ClassVar[str] = "optim."
    GROUPS: ClassVar[tuple[str, ...]] = ("optim",)

    kind: str = key(
        "adamw, or muon: Muon for the blocks' matrices, AdamW for the rest",
        choices=("adamw", "muon"),
        absent="adamw",
        default="muon",
    )
    learning_rate: float = key("peak learning rate", above=0, default=1.5e-2)
    adamw_learning_rate: float | None = key(
        "muon: peak learning rate of AdamW's part", above=0, absent=None, default=1e-2
    )
    warmup_steps: int = key("steps of linear warm-up", at_least=0, default=0)
    schedule: str = key(
        "learning-rate schedule after the warm-up", choices=("constant", "linear", "cosine"), default="linear"
    )
    decay_fraction: float = key(
        "share of the run over which it falls, at its end", above=0, at_most=1, absent=1.0, default=0.8
    )
    min_learning_rate: float | None = key(
        "learning rate at max_steps (null: a tenth of the peak)", at_least=0, default=0.0
    )
    weight_decay: float = key(
        "decoupled decay of matrices and tables (biases and gains are spared)", at_least=0, default=0.1
    )
    beta1: float = key("decay of the running mean of gradients (Adam)", at_least=0, below=1, default=0.9)
    beta2: float = key("decay of the running mean of squared gradients (Adam)", at_least=0, below=1, default=0.99)
    eps: float = key("added to the denominator", above=0, default=1e-8)
    momentum: float | None = key(
        "muon: decay of the matrices' running mean", at_least=0, below=1, absent=None, default=0.9
    )
    grad_clip: float = key("largest gradient norm (0: no clipping)", at_least=0, default=1.0)

    def check(self) -> None:
        if self.schedule != "constant" and self.last_learning_rate > self.learning_rate:
            raise UserError(
                f"optim.min_learning_rate={self.min_learning_rate:g}: above optim.learning_rate={self.learning_rate:g}"
            )
        for name in ("adamw_learning_rate", "momentum"):
            value = getattr(self, name)
            if (value is None) == (self.kind == "muon"):
                remedy = "muon needs a number" if value is None else "only optim=muon has it"
                raise UserError(f"optim.{name}={'null' if value is None else value}: {remedy}")

    @property
    def last_learning_rate(self) -> float:
        """Where a schedule that falls ends: as given, or in proportion, so that a sweep of the peak moves both."""
        return self.learning_rate / 10 if self.min_learning_rate is None else self.min_learning_rate
