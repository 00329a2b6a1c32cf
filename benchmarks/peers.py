"""Beside peers that are installed here: training steps and sampling of the same GPT-2 shape, with random weights.

    python benchmarks/peers.py [nanogpt=PATH] [model=mini,small] [batch_size=16] [rounds=5] [name=NAME]

`nanogpt=` is a checkout (git clone https://github.com/karpathy/nanoGPT), whose model.py is imported; transformers is
taken where it is installed (pip install transformers). What is missing is left out, with a line that says so. Each
trains as its own documentation does on a CPU (float32, AdamW, eager), and samples one sequence with its own `generate`,
from one token to a full context. Writes to benchmarks/results/.
"""

import contextlib
import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import machine
import torch
from plain import training_step
from sample_speed import has_transformers, transformers_generate
from timing import Way, in_turns, repeated, times_as_fast
from train_speed import our_steps, token_ids

from microgpt_cli.cli import main as cli
from microgpt_cli.compute import choose
from microgpt_cli.config import ModelConfig
from microgpt_cli.generation.dtype_policy import choose_dtype, choose_native
from microgpt_cli.generation.generate import generate
from microgpt_cli.generation.sampling import Sampler, UniformStream
from microgpt_cli.model.gpt import GPT

VOCAB_SIZE = 65


def main(words: list[str]) -> None:
    known = {"nanogpt": "", "model": "mini,small", "batch_size": "16", "rounds": "5"}
    given, _ = machine.settings(words, known | {"name": f"peers_{machine.name_of_machine()}"})
    nanogpt = nanogpt_module(given["nanogpt"])
    if not has_transformers():
        print("transformers is not installed, and left out (pip install transformers)")
    rows = []
    for size in given["model"].split(","):
        for row in (
            training(size, int(given["batch_size"]), int(given["rounds"]), nanogpt),
            sampling(size, int(given["rounds"]), nanogpt),
        ):
            print(table(row), flush=True)
            rows.append(row)
    versions = {}
    if has_transformers():
        import transformers

        versions["transformers"] = transformers.__version__
    print(f"stored in {machine.store(given['name'], 'peers.py', words, {'peers': versions, 'rows': rows})}")


def nanogpt_module(path: str) -> ModuleType | None:
    """The `model.py` of a checkout of nanoGPT."""
    if not path:
        print("nanoGPT is left out (git clone https://github.com/karpathy/nanoGPT, and give nanogpt=PATH)")
        return None
    file = Path(path).expanduser() / "model.py"
    if not file.is_file():
        sys.exit(f"nanogpt={path}: no model.py there; give the folder of a checkout")
    spec = importlib.util.spec_from_file_location("nanogpt_model", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def training(size: str, batch_size: int, rounds: int, nanogpt: ModuleType | None) -> dict[str, Any]:
    """Tokens/s of training steps."""
    config = cli.load_config("train", [f"model={size}", "arch=gpt2", "optim=adamw", f"batch_size={batch_size}"])
    compute = choose(config.device, config.dtype, config.engine, config.compile, config.threads, trained=config.model)
    ids, T = token_ids(VOCAB_SIZE), config.model.block_size
    ways = {"ours": our_steps(config, GPT(config.model, VOCAB_SIZE).to(compute.device), ids, compute)}
    if nanogpt is not None:
        theirs = nanogpt_model(nanogpt, config.model).to(compute.device).train()
        with contextlib.redirect_stdout(io.StringIO()):
            optimizer = theirs.configure_optimizers(0.1, 1e-3, (0.9, 0.99), compute.device.type)
        ways["nanoGPT"] = repeated(
            training_step(lambda idx, targets: theirs(idx, targets)[1], theirs, optimizer, ids, batch_size, T)
        )
    if has_transformers():
        other = transformers_model(config.model).to(compute.device)
        optimizer = torch.optim.AdamW(other.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.99))

        def loss_of(idx: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            logits = other(idx, use_cache=False).logits
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

        ways["transformers"] = repeated(training_step(loss_of, other.train(), optimizer, ids, batch_size, T))
    return row_of(f"train {size}, {batch_size} × {T}", ways, batch_size * T, rounds)


def sampling(size: str, rounds: int, nanogpt: ModuleType | None) -> dict[str, Any]:
    """Tokens/s of one sample that fills the context."""
    config = cli.load_config("train", [f"model={size}", "arch=gpt2"])
    torch.manual_seed(0)
    device = choose("auto", "auto").device
    model = GPT(config.model, VOCAB_SIZE).to(device).eval()
    chosen, _ = choose_dtype("auto", model, 1)
    native = choose_native("auto", model, chosen, 1, cache=True)
    tokens = config.model.block_size - 1
    idx = torch.ones(1, 1, dtype=torch.long, device=device)

    def ours(_number: int) -> None:
        for _ in generate(model, [1], tokens, Sampler(), UniformStream(0, 1), 1, dtype=chosen, native=native):
            pass

    ways = {"ours": repeated(ours)}
    if nanogpt is not None:
        theirs = nanogpt_model(nanogpt, config.model).to(device).eval()
        ways["nanoGPT"] = repeated(lambda _: theirs.generate(idx, tokens))
    if has_transformers():
        fill = transformers_generate(model)
        ways["transformers"] = repeated(lambda _: fill(tokens))
    return row_of(f"sample {size}, {tokens} tokens", ways, tokens, rounds)


def row_of(what: str, ways: dict[str, Way], tokens: int, rounds: int) -> dict[str, Any]:
    """Rates of all, and how many times the others' ours is.

    Args:
        tokens: that a unit of each way makes.
    """
    found = in_turns(ways, rounds, trial_units=1, progress=lambda text: say(f"{what}: {text}"))
    say("")
    row: dict[str, Any] = {"what": what, "tokens_per_sec": {}, "times": {}, "times_min_max": {}}
    for name, timed in found.items():
        row["tokens_per_sec"][name] = round(tokens / timed.seconds, 1)
        if name != "ours":
            ratio = times_as_fast(found["ours"].rounds, timed.rounds)
            row["times"][name] = round(ratio.median, 2)
            row["times_min_max"][name] = [round(ratio.least, 2), round(ratio.most, 2)]
    return row


def say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def table(row: dict[str, Any]) -> str:
    lines = [row["what"]]
    for name, rate in row["tokens_per_sec"].items():
        ratio = f"   ours is {row['times'][name]:g} × as fast ({row['times_min_max'][name]})" if name != "ours" else ""
        lines.append(f"  {name:14}{rate:>12,.1f} tokens/s{ratio}")
    return "\n".join(lines)


def nanogpt_model(module: ModuleType, config: ModelConfig) -> Any:
    sizes = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd", "block_size", "dropout")}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its number of parameters
        return module.GPT(module.GPTConfig(vocab_size=VOCAB_SIZE, bias=config.bias, **sizes))


def transformers_model(config: ModelConfig) -> Any:
    """GPT-2 of transformers, of this shape."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd")}
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.dropout)
    ids = {"bos_token_id": 1, "eos_token_id": None}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB_SIZE, n_positions=config.block_size, **sizes, **dropout, **ids))


if __name__ == "__main__":
    main(sys.argv[1:])
