"""The keys of `microgpt train` and `microgpt doctor`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from microgpt_cli.config.data import DataConfig
from microgpt_cli.config.device import DEVICE, DTYPES, ENGINES, MOST_THREADS, check_device
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
    engine: str = key(
        "who computes a step: native (C kernels that follow the model's code, on a CPU) or torch (autograd)",
        choices=ENGINES,
        absent="auto",
        default="auto",
    )
    compile: str = key("torch.compile the model", choices=("auto", "true", "false"), default="auto")
    threads: int | None = key(
        "CPU threads (null: by cores, quota and model size)",
        at_least=1,
        at_most=MOST_THREADS,
        default=None,
    )
    seed: int = key("random seed", at_least=0, default=1337)
    max_steps: int = key("optimizer steps", at_least=1, at_most=LARGEST_STEP, default=1500)
    batch_size: int = key("sequences in a micro-batch", at_least=1, at_most=1 << 20, default=32)
    grad_accum_steps: int = key("micro-batches in a step", at_least=1, at_most=1 << 20, default=1)
    log_interval: int = key("steps between lines in metrics.jsonl", at_least=1, at_most=10_000, default=10)
    eval_interval: int = key("steps between evaluations (0: only at the end)", at_least=0, default=500)
    eval_tokens: int | None = key(
        "validation tokens to evaluate on (null: all, up to 1,048,576)", at_least=1, default=None
    )
    checkpoint_interval: int = key("steps between checkpoints (0: only at the end)", at_least=0, default=500)
    sample_interval: int = key("steps between samples (0: only at the end)", at_least=0, default=500)
    early_stop_patience: int | None = key(
        "stop after this many evaluations without a lower validation loss", at_least=1, default=None
    )
    logger: list[str] = key(
        "trackers to log to besides metrics.jsonl, one or several", choices=LOGGERS, absent=[], default=[]
    )
    out_dir: str | None = key("the run's folder (null: outputs/train/DATE_TIME)", default=None)
    resume: str | None = key("continue the run in this folder; latest: the newest run", default=None)
    from_run: str | None = key(
        "start a new run with this run's configuration plus overrides", absent=None, default=None
    )
    lr_find: bool = key("run a learning-rate range test instead of training", absent=False, default=False)
    profile: bool = key("profile training steps instead of training", absent=False, default=False)

    def check(self) -> None:
        check_device(self.device)

    @classmethod
    def upgraded(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Before 0.3 the key `compile` also said who computes: native, or with false torch."""
        engine = {"native": "native", "false": "torch"}.get(str(data.get("compile")))
        if "engine" in data or engine is None:
            return data
        return data | {"engine": engine, "compile": "auto" if engine == "native" else "false"}
