"""The model that a command line describes, by config groups or by the checkpoint of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from microgpt_cli.checkpoints.model_files import describe, load_model
from microgpt_cli.commands import Invocation
from microgpt_cli.config import ModelConfig, TrainConfig
from microgpt_cli.errors import UserError
from microgpt_cli.insight.trace import Call, trace
from microgpt_cli.model.accounting import meta_model, total_parameters
from microgpt_cli.model.gpt import GPT
from microgpt_cli.runs import layout

QUICK_FLOPS = 3e10  # a forward pass of about a second on two cores


class Keys(Protocol):
    """The keys that a verb's config must have."""

    model: ModelConfig
    vocab_size: int
    ckpt: str | None


@dataclass(frozen=True)
class Described:
    """A model that is not built yet."""

    config: ModelConfig
    vocab_size: int
    checkpoint: Path | None  # source of the weights
    trained: TrainConfig | None  # config of that run

    def model(self, real: bool) -> GPT:
        """Build the model, with the weights of the checkpoint or new ones; on the meta device unless `real`."""
        if not real:
            return meta_model(self.config, self.vocab_size)
        if self.checkpoint is None:
            return GPT(self.config, self.vocab_size)
        return load_model(self.checkpoint).model


def described(keys: Keys, invocation: Invocation) -> Described:
    """Read the description. Raises `UserError` if both a run and groups are given, or the run can't be read."""
    if keys.ckpt is None:
        return Described(keys.model, keys.vocab_size, None, None)
    shapes = [key for key in invocation.typed if key.partition(".")[0] in ("model", "arch", "vocab_size", "optim")]
    if shapes:
        part = "optimizer" if shapes[0].startswith("optim") else "model"
        raise UserError(f"ckpt={keys.ckpt}: the checkpoint defines the {part}; omit {shapes[0]}")
    path = layout.find_checkpoint(keys.ckpt)
    loaded = describe(path)
    return Described(loaded.config.model, loaded.tokenizer.vocab_size, path, loaded.config)


def traced(what: Described, batch: int, time: int | None, device: str, backward: bool = False) -> tuple[GPT, Call]:
    """Run the model once and record the calls.

    Raises:
        UserError: `time` exceeds the context.
    """
    T = what.config.block_size if time is None else time
    if T > what.config.block_size:
        raise UserError(f"time={T}: exceeds model.block_size={what.config.block_size}; give a smaller one")
    real = device == "cpu"
    if device == "auto":
        size = meta_model(what.config, what.vocab_size)
        real = 2 * total_parameters(size) * batch * T * (3 if backward else 1) <= QUICK_FLOPS
    model = what.model(real)
    return model, trace(model, batch, T, backward)
