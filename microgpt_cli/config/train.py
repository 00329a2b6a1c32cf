"""The keys of `microgpt train` and `microgpt doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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

    model: ModelConfig
    data: DataConfig
    tokenizer: TokenizerConfig
    optim: OptimConfig
    device: str = key(f"where to compute: {DEVICE}")
    dtype: str = key("precision of the arithmetic; weights stay float32", choices=DTYPES)
    engine: str = key(
        "who computes a step: native (C kernels that follow the model's code, on a CPU) or torch (autograd)",
        choices=ENGINES,
        absent="auto",
    )
    compile: str = key("torch.compile the model", choices=("auto", "true", "false"))
    threads: int | None = key("CPU threads (null: torch's choice)", at_least=1, at_most=MOST_THREADS)
    seed: int = key("every draw is a function of it, the stream, the step and the rank", at_least=0)
    max_steps: int = key("optimizer steps", at_least=1, at_most=LARGEST_STEP)
    batch_size: int = key("sequences in a micro-batch", at_least=1, at_most=1 << 20)
    grad_accum_steps: int = key("micro-batches in a step", at_least=1, at_most=1 << 20)
    log_interval: int = key("steps between lines in metrics.jsonl", at_least=1, at_most=10_000)
    eval_interval: int = key("steps between evaluations (0: only at the end)", at_least=0)
    eval_tokens: int | None = key("held-out tokens to evaluate on (null: all, up to 1,048,576)", at_least=1)
    checkpoint_interval: int = key("steps between checkpoints (0: only at the end)", at_least=0)
    sample_interval: int = key("steps between samples (0: only at the end)", at_least=0)
    early_stop_patience: int | None = key("stop after so many evaluations without a better one", at_least=1)
    logger: list[str] = key("trackers to log to besides metrics.jsonl, one or several", choices=LOGGERS, absent=[])
    out_dir: str | None = key("the run's folder (null: outputs/train/DATE_TIME)")
    resume: str | None = key("go on with the run in this folder, or with the newest: latest")
    from_run: str | None = key("begin a new run with the configuration of this one, and what is typed", absent=None)
    lr_find: bool = key("find a learning rate with a throw-away model, and train no run", absent=False)
    profile: bool = key("find where a step's time goes, with a throw-away model, and train no run", absent=False)

    def check(self) -> None:
        check_device(self.device)

    @classmethod
    def upgraded(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Before 0.3 the key `compile` also said who computes: native, or with false torch."""
        engine = {"native": "native", "false": "torch"}.get(str(data.get("compile")))
        if "engine" in data or engine is None:
            return data
        return data | {"engine": engine, "compile": "auto" if engine == "native" else "false"}
