"""The keys of `microgpt inspect`."""

from __future__ import annotations

from dataclasses import dataclass

from microgpt_cli.config.device import DEVICE, DTYPES, MOST_THREADS, check_device
from microgpt_cli.config.schema import Node, key
from microgpt_cli.errors import UserError


@dataclass
class InspectConfig(Node):
    """`microgpt inspect`."""

    ckpt: str = key("a run (its best checkpoint is used), one of its ckpt/step-… folders, or latest")
    prompt: str = key("text to look at as the model reads it", may_be_empty=True)
    prompt_file: str | None = key("a file to read the text from")
    max_tokens: int = key("look at so many tokens of its end at most; the page grows with the square", at_least=1)
    out: str | None = key("the HTML page to write, in place of an older one (null: none)")
    device: str = key(f"where to compute: {DEVICE}")
    dtype: str = key("precision of the arithmetic", choices=DTYPES)
    threads: int | None = key("CPU threads (null: by cores, quota and model size)", at_least=1, at_most=MOST_THREADS)

    def check(self) -> None:
        check_device(self.device)
        if self.prompt and self.prompt_file is not None:
            raise UserError(f"prompt_file={self.prompt_file}: give prompt or prompt_file, not both")
        if not self.prompt and self.prompt_file is None:
            raise UserError("prompt is required, for example: microgpt inspect prompt='The function '")
