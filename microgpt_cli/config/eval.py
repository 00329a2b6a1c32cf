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
    ckpt: str = key("a run (its best checkpoint is used), one of its ckpt/step-… folders, or latest")
    split: str = key(
        "auto: held-out split of the run's text, the whole of another", choices=("auto", "train", "val", "all")
    )
    batch_size: int = key("batch size of the evaluation", at_least=1, at_most=1 << 20)
    per_token: bool = key("also report losses by token and position, as a page, and overlap with the training text")
    shown_tokens: int = key("per_token: tokens shown from the beginning of the text", at_least=0, at_most=200_000)
    out: str | None = key("per_token: the HTML page to write (null: none)")
    device: str = key(f"where to compute: {DEVICE}")
    dtype: str = key("precision of the arithmetic", choices=DTYPES)
    threads: int | None = key("CPU threads (null: by cores, quota and model size)", at_least=1, at_most=MOST_THREADS)

    def check(self) -> None:
        check_device(self.device)
