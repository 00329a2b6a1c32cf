"""One dataclass for each node of `conf/`: type, unit, meaning and range of every key.

Values live in the YAML files under `conf/`, types live here, and no default stands in both. A dataclass checks
itself when it is made, so a config that exists is a config that is right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from microgpt_cli.config.schema import Node, key
from microgpt_cli.errors import UserError


@dataclass
class ModelConfig(Node):
    """A GPT: how big (group `model`) and of what kind (group `arch`)."""

    NODE: ClassVar[str] = "model."

    n_layer: int = key("transformer blocks", at_least=1, at_most=1000)
    n_head: int = key("attention heads in a block", at_least=1)
    n_embd: int = key("width: numbers that stand for one token", at_least=1, at_most=1 << 16)
    block_size: int = key("context: tokens that the model sees at once", at_least=1, at_most=1 << 24)
    dropout: float = key("share of activations dropped in training", at_least=0, below=1)
    position: str = key("how a token's place is told", choices=("learned", "rotary"))
    token_shift: bool = key("each token also carries a learnt share of the one before it", absent=False)
    norm: str = key("normalisation before each sublayer", choices=("layernorm", "rmsnorm"))
    activation: str = key("nonlinearity of the MLP", choices=("relu", "gelu", "relu2"))
    qk_norm: bool = key("normalise queries and keys")
    qkv_bias: bool = key("bias in the query, key and value projections")
    bias: bool = key("bias in the other projections, the MLP and LayerNorm")
    tied_head: bool = key("lm_head shares the weights of token_embedding_table")
    head_bias: bool = key("bias in lm_head")
    residual_init: str = key("start of the projections that write to the residual", choices=("scaled", "zero"))

    def check(self) -> None:
        n_embd, n_head = self.n_embd, self.n_head
        if n_embd % n_head:
            near = sorted({max(n_head, n_embd - n_embd % n_head), n_embd - n_embd % n_head + n_head})
            raise UserError(
                f"model.n_embd={n_embd}: cannot be split over model.n_head={n_head} heads; "
                f"try model.n_embd={' or '.join(map(str, near))}"
            )
        if self.position == "rotary" and (n_embd // n_head) % 2:
            raise UserError(
                f"model.n_embd={n_embd}: model.position=rotary turns pairs, so n_embd / n_head must be even, "
                f"not {n_embd // n_head}; try model.n_embd={n_embd + n_head}"
            )


@dataclass
class DataConfig(Node):
    """Where text comes from, and how it is split."""

    NODE: ClassVar[str] = "data."

    source: str = key("kind of source", choices=("pydocs", "download", "path", "run"))
    path: str | None = key("your own text: a file, a folder of .txt and .md, or a glob")
    val_fraction: float = key("share held out for evaluation, from the end", above=0, below=1)
    folder: str = key("where a downloaded text is looked for first")
    cache_dir: str = key("where downloads and encoded corpora are kept")
    url: str | None = key("where a download comes from")
    file_name: str | None = key("name of the downloaded file")
    sha256: str | None = key("checksum that the file must have")
    size_bytes: int | None = key("size that the file must have, bytes", at_least=1)

    def check(self) -> None:
        # A run that came from elsewhere brings these along: they must not reach other files than the cache's own.
        if self.url is not None and not self.url.startswith(("https://", "http://")):
            raise UserError(f"data.url={self.url}: must begin with https:// or http://")
        if self.file_name is not None and (re.search(r"[/\\:]", self.file_name) or self.file_name.startswith(".")):
            raise UserError(f"data.file_name={self.file_name}: must be a name alone, without a folder")
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise UserError(f"data.sha256={self.sha256}: must be 64 hexadecimal digits")


@dataclass
class TokenizerConfig(Node):
    """How text becomes token ids."""

    NODE: ClassVar[str] = "tokenizer."

    kind: str = key("char: one id a code point of the corpus; byte: UTF-8 bytes", choices=("char", "byte"))
    unknown: str = key("a character the vocabulary lacks: refuse, or replace by U+FFFD", choices=("error", "replace"))


@dataclass
class OptimConfig(Node):
    """The optimizer and its learning-rate schedule."""

    NODE: ClassVar[str] = "optim."

    kind: str = key(
        "adamw, or muon: Muon for the blocks' matrices, AdamW for the rest", choices=("adamw", "muon"), absent="adamw"
    )
    learning_rate: float = key("peak learning rate", above=0)
    adamw_learning_rate: float | None = key("muon: peak learning rate of AdamW's part", above=0, absent=None)
    warmup_steps: int = key("steps of linear rise to the peak", at_least=0)
    schedule: str = key("course after the warm-up", choices=("constant", "linear", "cosine"))
    decay_fraction: float = key("share of the run over which it falls, at its end", above=0, at_most=1, absent=1.0)
    min_learning_rate: float | None = key("learning rate at max_steps (null: a tenth of the peak)", at_least=0)
    weight_decay: float = key("decoupled decay of matrices and tables (biases and gains are spared)", at_least=0)
    beta1: float = key("decay of the gradient's running mean", at_least=0, below=1)
    beta2: float = key("decay of the squared gradient's running mean", at_least=0, below=1)
    eps: float = key("added to the denominator", above=0)
    momentum: float | None = key("muon: decay of the matrices' running mean", at_least=0, below=1, absent=None)
    grad_clip: float = key("largest gradient norm (0: no clipping)", at_least=0)

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


DEVICE = "auto, cpu, cuda, cuda:N or mps"
LARGEST_STEP = 99_999_999  # the name of a checkpoint's folder has eight digits
MOST_THREADS = 1024
LOGGERS = ("tensorboard", "wandb", "trackio")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def check_device(device: str) -> None:
    """Raises `UserError` unless `device` is one of `DEVICE`; whether it is there is asked later."""
    name, colon, index = device.partition(":")
    if device not in ("auto", "cpu", "cuda", "mps") and not (
        name == "cuda" and colon and index.isascii() and index.isdecimal()
    ):
        raise UserError(f"device={device}: choose one of {DEVICE}")


@dataclass
class TrainConfig(Node):
    """`microgpt train`."""

    model: ModelConfig
    data: DataConfig
    tokenizer: TokenizerConfig
    optim: OptimConfig
    device: str = key(f"where to compute: {DEVICE}")
    dtype: str = key("precision of the arithmetic; weights stay float32", choices=DTYPES)
    compile: str = key(
        "true: torch.compile the model; native: on a CPU, by its C compiler, Muon and what is between matrix products",
        choices=("auto", "true", "false", "native"),
    )
    threads: int | None = key(
        "CPU threads (null: as cores, quota and OMP_NUM_THREADS allow)", at_least=1, at_most=MOST_THREADS
    )
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


@dataclass
class SweepConfig(Node):
    """How `microgpt train -m` sweeps: no part of a run's config; Hydra has these keys in `hydra.sweeper`."""

    NODE: ClassVar[str] = "sweep."

    resume: str | None = key("go on with the sweep in this folder, or with the newest: latest")
    fail_fast: bool = key("begin no further job after one has failed")


@dataclass
class SearchConfig(SweepConfig):
    """What `hydra/sweeper=optuna` takes beside."""

    sampler: str = key("how settings are drawn", choices=("tpe", "random", "grid"))
    n_trials: int | None = key("settings to try (null: 20, or the whole grid)", at_least=1, at_most=1 << 20)
    pruner: str = key("how runs that do worse are ended early", choices=("asha", "median", "none"))
    min_steps: int | None = key("no run is pruned before so many steps (null: those of the warm-up)", at_least=1)
    keep_one_in: int = key("asha: one run in so many goes on to so many times the steps", at_least=2, at_most=64)
    at_once: int | None = key("trials begun together (null: as many as the launcher runs at once)", at_least=1)
    seed: int = key("of the draws; the runs have a seed of their own", at_least=0)


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
    compile: str = key(
        "native: one sample in C, by the compiler of a CPU's machine; auto: where that can be",
        choices=("auto", "false", "native"),
    )
    threads: int | None = key("CPU threads (null: one for a small model, else all)", at_least=1, at_most=MOST_THREADS)

    def check(self) -> None:
        check_device(self.device)
        if self.prompt and self.prompt_file is not None:
            raise UserError(f"prompt_file={self.prompt_file}: give prompt or prompt_file, not both")


@dataclass
class ReportConfig(Node):
    """`microgpt report`."""

    run: str = key("a run's folder, a sweep's or any that holds runs, or latest")
    out: str | None = key("the HTML page to write, in place of an older one (null: report.html in that folder)")


@dataclass
class InspectConfig(Node):
    """`microgpt inspect`."""

    ckpt: str = key("a run's folder, one of its ckpt/step-… folders, or latest")
    prompt: str = key("text to look at as the model reads it", may_be_empty=True)
    prompt_file: str | None = key("a file to read the text from")
    max_tokens: int = key("look at so many tokens of its end at most; the page grows with the square", at_least=1)
    out: str | None = key("the HTML page to write, in place of an older one (null: none)")
    device: str = key(f"where to compute: {DEVICE}")
    dtype: str = key("precision of the arithmetic", choices=DTYPES)
    threads: int | None = key(
        "CPU threads (null: as cores, quota and OMP_NUM_THREADS allow)", at_least=1, at_most=MOST_THREADS
    )

    def check(self) -> None:
        check_device(self.device)
        if self.prompt and self.prompt_file is not None:
            raise UserError(f"prompt_file={self.prompt_file}: give prompt or prompt_file, not both")
        if not self.prompt and self.prompt_file is None:
            raise UserError("prompt is required, for example: microgpt inspect prompt='The function '")


@dataclass
class ParamsConfig(Node):
    """`microgpt params`."""

    model: ModelConfig
    vocab_size: int = key("tokens in the vocabulary (65: the article's)", at_least=1, at_most=1 << 24)
    ckpt: str | None = key("count the model of this run instead")
    batch_size: int = key("sequences of block_size tokens, for the bytes of activations", at_least=1)
    depth: int = key("how far to open the blocks (0: the five parts)", at_least=0)
    format: str = key("how to print", choices=("table", "plain", "json"))


@dataclass
class ShapesConfig(Node):
    """`microgpt shapes`."""

    model: ModelConfig
    vocab_size: int = key("tokens in the vocabulary (65: the article's)", at_least=1, at_most=1 << 24)
    ckpt: str | None = key("trace the model of this run instead")
    batch: int = key("sequences, B", at_least=1, at_most=1 << 20)
    time: int | None = key("tokens in each, T (null: block_size)", at_least=1)
    depth: int | None = key(
        "how far to open the modules, every block by itself (null: all, equal ones once)", at_least=0
    )
    backward: bool = key("go back from the loss too, and show the gradients")
    device: str = key("meta: shapes without numbers; auto: the CPU if that is quick", choices=("auto", "cpu", "meta"))
    format: str = key("how to print", choices=("table", "json"))


@dataclass
class DiagramConfig(Node):
    """`microgpt diagram`."""

    model: ModelConfig
    vocab_size: int = key("tokens in the vocabulary (65: the article's)", at_least=1, at_most=1 << 24)
    ckpt: str | None = key("draw the model of this run instead")
    batch: int = key("sequences, B", at_least=1, at_most=1 << 20)
    time: int | None = key("tokens in each, T (null: block_size)", at_least=1)
    out: str | None = key("the picture to write, .svg or .png (null: only the drawing on the terminal)")
    theme: str = key(
        "colours; auto: an SVG follows its reader's system, a PNG is light", choices=("auto", "light", "dark")
    )

    def check(self) -> None:
        if self.out is not None and not self.out.lower().endswith((".svg", ".png")):
            raise UserError(f"out={self.out}: a picture's name ends in .svg or .png")


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
    threads: int | None = key(
        "CPU threads (null: as cores, quota and OMP_NUM_THREADS allow)", at_least=1, at_most=MOST_THREADS
    )

    def check(self) -> None:
        check_device(self.device)


@dataclass
class ReplayConfig(Node):
    """`microgpt replay`."""

    run: str = key("a run's folder, or latest")
    speed: float = key("2: twice as fast; + and - change it while it plays", above=0, at_most=1000)


@dataclass
class VerifyConfig(Node):
    """`microgpt verify`."""

    ckpt: str = key("a run's folder, one of its ckpt/step-… folders, or latest")
    replay: int = key("steps to train again from a checkpoint, to compare the bits (0: none)", at_least=0)


@dataclass
class RunsConfig(Node):
    """`microgpt runs`."""

    paths: list[str] = key("folders to look for runs in; bare words")
    sort: str = key("column or setting to sort by; - before it turns the order round")
    filter: str | None = key("which runs, as in model.n_layer>4 and status=finished")
    format: str = key("how to print", choices=("table", "csv", "json", "md"))
    plot: bool = key("draw val_loss against the step, and the best one against each setting that differs")
    out: str | None = key("folder for the plots (null: the one that the runs lie in)")

    def check(self) -> None:
        if not self.paths:
            raise UserError("paths=[]: give a folder to look for runs in, such as outputs")


@dataclass
class CompareConfig(Node):
    """`microgpt compare`."""

    paths: list[str] = key("the runs to compare, two or more: their folders, as bare words")
    sample: bool = key("let each of them go on from the prompt")
    prompt: str = key("text to go on from", may_be_empty=True)
    max_new_tokens: int = key("tokens that each writes", at_least=0)
    temperature: float = key("0: always the likeliest token; 1: as learnt; above: bolder", at_least=0)
    seed: int = key("of the samples; the same for each run", at_least=0)
    device: str = key(f"where to compute: {DEVICE}")
    out: str | None = key("folder for the plot (null: the one that the runs lie in)")

    def check(self) -> None:
        check_device(self.device)
        if len(self.paths) < 2:
            raise UserError("give two runs or more: microgpt compare RUN RUN; microgpt runs lists them")
