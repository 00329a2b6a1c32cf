"""The keys of `microgpt sample`."""

from __future__ import annotations

from dataclasses import dataclass

from microgpt_cli.config.device import DEVICE, DTYPES, ENGINES, MOST_THREADS, check_device
from microgpt_cli.config.schema import Node, key
from microgpt_cli.errors import UserError


@dataclass
class SampleConfig(Node):
    """`microgpt sample`."""

    ckpt: str = key("a run (its best checkpoint is used), one of its ckpt/step-… folders, or latest")
    prompt: str = key("prompt", may_be_empty=True)
    prompt_file: str | None = key("file that holds the prompt")
    max_new_tokens: int = key("tokens to generate", at_least=0)
    temperature: float = key("0: greedy; 1: the model's probabilities; above 1: more random", at_least=0)
    top_k: int | None = key("sample from the k most likely tokens", at_least=1)
    top_p: float = key("nucleus sampling: the most likely tokens of this total probability", above=0, at_most=1)
    stop: str | None = key("stop before this text")
    num_samples: int = key("number of samples", at_least=1, at_most=1 << 20)
    seed: int = key("random seed", at_least=0)
    stream: bool = key("print characters as they are generated")
    cache: bool = key("key/value cache; false: recompute the whole context for each token, as in the article")
    out: str | None = key("write to this file instead of standard output")
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
