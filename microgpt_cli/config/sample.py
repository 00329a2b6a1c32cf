"""The keys of `microgpt sample`."""

from __future__ import annotations

from dataclasses import dataclass

from microgpt_cli.config.device import DEVICE, DTYPES, ENGINES, MOST_THREADS, check_device
from microgpt_cli.config.schema import Node, key
from microgpt_cli.errors import UserError


@dataclass
class SampleConfig(Node):
    """`microgpt sample`."""

    ckpt: str = key("a run's folder, one of its ckpt/step-… folders, or latest")
    prompt: str = key("text to go on from", may_be_empty=True)
    prompt_file: str | None = key("a file to read the prompt from")
    max_new_tokens: int = key("tokens to write", at_least=0)
    temperature: float = key("0: always the likeliest token; 1: as learnt; above: bolder", at_least=0)
    top_k: int | None = key("draw among the k likeliest tokens only", at_least=1)
    top_p: float = key("draw among the likeliest tokens that hold this share only", above=0, at_most=1)
    stop: str | None = key("end before this text appears")
    num_samples: int = key("how many continuations", at_least=1, at_most=1 << 20)
    seed: int = key("same seed, same text", at_least=0)
    stream: bool = key("write each character as it comes")
    cache: bool = key("keep keys and values; false: work out the whole context for each token, as the article does")
    out: str | None = key("write to this file and not to the screen")
    device: str = key(f"where to compute: {DEVICE}")
    dtype: str = key("precision of the arithmetic", choices=DTYPES)
    engine: str = key(
        "who decodes: native (one sample on a CPU, in C) or torch; both are checked against the model's code",
        choices=ENGINES,
    )
    compile: str = key(
        "torch.compile the model's forward pass, where cache=false; auto: no", choices=("auto", "true", "false")
    )
    threads: int | None = key("CPU threads (null: one for a small model, else all)", at_least=1, at_most=MOST_THREADS)

    def check(self) -> None:
        check_device(self.device)
        if self.prompt and self.prompt_file is not None:
            raise UserError(f"prompt_file={self.prompt_file}: give prompt or prompt_file, not both")
