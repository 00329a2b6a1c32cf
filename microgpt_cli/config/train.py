"""The keys of `microgpt train` and `microgpt doctor`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from microgpt_cli.config.data import DataConfig
from microgpt_cli.config.device import DEVICE, DTYPES, MOST_THREADS, check_device
from microgpt_cli.config.model import ModelConfig
from microgpt_cli.config.optim import OptimConfig
from microgpt_cli.config.schema import Node, key
from microgpt_cli.config.tokenizer import TokenizerConfig

LARGEST_STEP = 99_999_999  # the name of a checkpoint's folder has eight digits
LOGGERS = ("tensorboard", "wandb", "trackio")


@dataclass
class TrainConfig(Node):
    """`microgpt train`."""

    GROUPS: ClassVar[tuple[str, ...]] = ("experiment",)

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    device: str = key(f"where to compute: {DEVICE}", default="auto")
    dtype: str = key("precision of the arithmetic; weights stay float32", choices=DTYPES, default="auto")
    compile: str = key(
        "true: torch.compile the model; native: on a CPU, by its C compiler, Muon and what is between matrix products",
        choices=("auto", "true", "false", "native"),
        default="auto",
    )
    threads: int | None = key("CPU threads (null: torch's choice)", at_least=1, at_most=MOST_THREADS, default=None)
    seed: int = key("every draw is a function of it, the stream, the step and the rank", at_least=0, default=1337)
    max_steps: int = key("optimizer steps", at_least=1, at_most=LARGEST_STEP, default=1500)
    batch_size: int = key("sequences in a micro-batch", at_least=1, at_most=1 << 20, default=32)
    grad_accum_steps: int = key("micro-batches in a step", at_least=1, at_most=1 << 20, default=1)
    log_interval: int = key("steps between lines in metrics.jsonl", at_least=1, at_most=10_000, default=10)
    eval_interval: int = key("steps between evaluations (0: only at the end)", at_least=0, default=500)
    eval_tokens: int | None = key(
        "held-out tokens to evaluate on (null: all, up to 1,048,576)", at_least=1, default=None
    )
    checkpoint_interval: int = key("steps between checkpoints (0: only at the end)", at_least=0, default=500)
    sample_interval: int = key("steps between samples (0: only at the end)", at_least=0, default=500)
    early_stop_patience: int | None = key(
        "stop after so many evaluations without a better one", at_least=1, default=None
    )
    logger: list[str] = key(
        "trackers to log to besides metrics.jsonl, one or several", choices=LOGGERS, absent=[], default=[]
    )
    out_dir: str | None = key("the run's folder (null: outputs/train/DATE_TIME)", default=None)
    resume: str | None = key("go on with the run in this folder, or with the newest: latest", default=None)
    from_run: str | None = key(
        "begin a new run with the configuration of this one, and what is typed", absent=None, default=None
    )
    lr_find: bool = key("find a learning rate with a throw-away model, and train no run", absent=False, default=False)
    profile: bool = key(
        "find where a step's time goes, with a throw-away model, and train no run", absent=False, default=False
    )

    def check(self) -> None:
        check_device(self.device)
