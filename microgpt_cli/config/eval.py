"""The keys of `microgpt eval`."""

from __future__ import annotations

from dataclasses import dataclass

from microgpt_cli.config.data import DataConfig
from microgpt_cli.config.device import DEVICE, DTYPES, MOST_THREADS, check_device
from microgpt_cli.config.schema import Node, key


@dataclass
class EvalConfig(Node):
    """`microgpt eval`."""

    data: DataConfig
    ckpt: str = key("a run's folder, one of its ckpt/step-… folders, or latest")
    split: str = key(
        "auto: held-out split of the run's text, the whole of another", choices=("auto", "train", "val", "all")
    )
    batch_size: int = key("windows evaluated at once", at_least=1, at_most=1 << 20)
    per_token: bool = key("also show where the loss lies: by token, by position, on a page, and what is copied")
    shown_tokens: int = key("per_token: show so many tokens of the text's beginning", at_least=0, at_most=200_000)
    out: str | None = key("per_token: the HTML page to write, in place of an older one (null: none)")
    device: str = key(f"where to compute: {DEVICE}")
    dtype: str = key("precision of the arithmetic", choices=DTYPES)
    threads: int | None = key("CPU threads (null: torch's choice)", at_least=1, at_most=MOST_THREADS)

    def check(self) -> None:
        check_device(self.device)
