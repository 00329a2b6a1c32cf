"""What a notebook or a program does with a run: train one, load its model, let it write. See docs/python.md."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from microgpt_cli.checkpoints.model_files import TrainedModel, load_model
from microgpt_cli.commands import Invocation
from microgpt_cli.commands.prompts import encode_prompt
from microgpt_cli.config import TrainConfig
from microgpt_cli.config.schema import leaves
from microgpt_cli.data.tokenizers import Tokenizer
from microgpt_cli.errors import UserError
from microgpt_cli.generation.dtype_policy import choose_dtype, choose_native
from microgpt_cli.generation.generate import Stops, decode_stream, truncate_at
from microgpt_cli.generation.generate import generate as generate_tokens
from microgpt_cli.generation.sampling import Sampler, UniformStream
from microgpt_cli.model.gpt import GPT
from microgpt_cli.runs import layout, storage


@dataclass(frozen=True)
class TrainedRun:
    """A run that has ended: its folder, and what it wrote to `result.json`."""

    folder: Path
    result: dict[str, Any]


def load_run(ckpt: str | Path = "latest", device: str = "cpu") -> TrainedModel:
    """The model of a run, in eval mode, and its tokenizer: `model, tokenizer = load_run("outputs/latest")`.

    Args:
        ckpt: a run's folder, whose best checkpoint is read, one of its `ckpt/step-…` folders, or `latest`.
        device: where to put the model.

    Raises:
        UserError: there is none, or a file of it is damaged.
    """
    loaded = load_model(layout.find_checkpoint(str(ckpt)), torch.device(device))
    loaded.model.eval()
    return loaded


def train(config: TrainConfig) -> TrainedRun:
    """Train a run, or resume the one that `config.resume` names, as `microgpt train` does, printing what it prints.

    In a resumed run, or one that `config.from_run` begins, the keys that differ from their defaults are those that
    change.

    Raises:
        UserError: something in the config can't be.
        RunStopped: the run ended early, and what was saved is kept.
        Interrupted: Ctrl-C or another signal ended it, and it can be resumed.
    """
    from microgpt_cli.commands import train as command  # and with it what only training needs

    for name in ("lr_find", "profile"):
        if getattr(config, name):
            raise UserError(f"{name}=True: trains no run; use microgpt train {name}=true")
    folder = command.run(config, Invocation(typed=_changed_keys(config)))
    assert folder is not None
    path = folder / layout.RESULT
    return TrainedRun(folder, storage.parse_json(storage.read_bytes(path), str(path)))


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str = "",
    *,
    max_new_tokens: int = 500,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float = 1.0,
    stop: str | None = None,
    seed: int = 1337,
) -> str:
    """The prompt and its continuation, the same text that `microgpt sample` writes.

    Args:
        model: on the device that is to compute.
        tokenizer: the model's own.
        prompt: text to continue.
        max_new_tokens: tokens to write.
        temperature: 0 takes the most likely token each time.
        top_k: draw among the k most likely tokens.
        top_p: draw among the most likely tokens that hold this share of the probability.
        stop: end before this text appears.
        seed: of the draws.

    Raises:
        UserError: the vocabulary lacks a character of the prompt.
    """
    ids, _ = encode_prompt(prompt, tokenizer, model.config.block_size)
    dtype, _ = choose_dtype("auto", model, 1)
    native = choose_native("auto", model, dtype)
    stops = Stops(1, tokenizer.text_stream, stop)
    made = []
    columns = generate_tokens(
        model, ids, max_new_tokens, Sampler(temperature, top_k, top_p), UniformStream(seed, 1),
        dtype=dtype, native=native, stopped=stops.is_done,
    )  # fmt: skip
    for tokens in columns:
        made.append(tokens)
        stops.feed(tokens)
    return prompt + "".join(truncate_at(decode_stream(iter(made), 0, tokenizer.text_stream()), stop))


def _changed_keys(config: TrainConfig) -> tuple[str, ...]:
    """The dotted keys whose values are not the defaults."""
    given, usual = asdict(config), asdict(TrainConfig())

    def value(data: dict[str, Any], name: str) -> Any:
        node, _, key = name.rpartition(".")
        return data[node][key] if node else data[key]

    names = [leaf.name for leaf in leaves(TrainConfig)]
    return tuple(name for name in names if value(given, name) != value(usual, name))
