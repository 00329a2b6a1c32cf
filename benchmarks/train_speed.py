"""Training steps of ours and of the plain way, side by side in one process: tokens/s, ratio, MFU.

    python benchmarks/train_speed.py model=micro,mini,small arch=gpt2 batch_size=64 device=cuda compile=false

Each pair runs in turns (ours, plain, ours, …); the median of the rounds counts. Writes to benchmarks/results/.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import machine
import torch
from plain import plain_step
from timing import ROUND_SECONDS, ROUNDS, Way, in_turns, repeated, times_as_fast

from microgpt_cli.cli import main as cli
from microgpt_cli.compute import Compute, choose
from microgpt_cli.config import TrainConfig
from microgpt_cli.data.dataset import sample_starts
from microgpt_cli.model.accounting import embedding_parameters, flops_per_token, total_parameters
from microgpt_cli.model.gpt import GPT
from microgpt_cli.training.update import Update

TEXT_TOKENS = 1_000_000


def main(words: list[str]) -> None:
    known = {"model": "micro", "vocab_size": "65", "plain_compile": "auto", "name": "train_speed"}
    given, rest = machine.settings(words, known, more=True)
    rows = []
    for size in given["model"].split(","):
        config = cli.load_config("train", [f"model={size}", *rest])
        rows.append(compare(config, size, int(given["vocab_size"]), given["plain_compile"]))
        print(json.dumps(rows[-1]), flush=True)
    print(f"stored in {machine.store(given['name'], 'train_speed.py', words, {'rows': rows})}")


def compare(
    config: TrainConfig,
    size: str,
    vocab_size: int = 65,
    plain_compile: str = "auto",
    rounds: int = ROUNDS,
    round_seconds: float = ROUND_SECONDS,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Rates of both, and how many times as fast ours is.

    Args:
        size: what the row is called.
        plain_compile: whether the plain way compiles; auto: on a GPU.
    """
    compute = choose(config.device, config.dtype, config.engine, config.compile, config.threads, trained=config.model)
    cuda = compute.device.type == "cuda"
    ids = token_ids(vocab_size)
    B, T = config.batch_size, config.model.block_size
    torch.manual_seed(0)
    model = GPT(config.model, vocab_size).to(compute.device)
    compiled = cuda if plain_compile == "auto" else plain_compile == "true"
    plain_model = GPT(config.model, vocab_size).to(compute.device)
    ways = {
        "ours": our_steps(config, model, ids, compute),
        "plain": repeated(plain_step(plain_model, ids, B, compiled)),
    }
    found = in_turns(ways, rounds, round_seconds, progress=lambda text: progress(f"{size}: {text}"))
    rates = {name: B * T / timed.seconds for name, timed in found.items()}
    ratio = times_as_fast(found["ours"].rounds, found["plain"].rounds)
    peak = machine.PEAK_FLOPS.get(torch.cuda.get_device_name()) if cuda else None
    flops, weights = flops_per_token(model).value, total_parameters(model) - embedding_parameters(model)
    return {
        "model": size,
        "batch": f"{B} × {T}",
        "parameters": total_parameters(model),
        "ours": compute.reasons["dtype"].partition(":")[0] + (" compiled" if compute.compile else ""),
        "ours_tokens_per_sec": round(rates["ours"]),
        "plain_tokens_per_sec": round(rates["plain"]),
        "ratio": round(ratio.median, 2),
        "ratio_min_max": [round(ratio.least, 2), round(ratio.most, 2)],
        "first_steps_sec": {name: round(timed.first_seconds, 2) for name, timed in found.items()},
        "ours_gflops_6n": round(6 * weights * rates["ours"] / 1e9, 1),
        "plain_gflops_6n": round(6 * weights * rates["plain"] / 1e9, 1),
        "ours_mfu": round(rates["ours"] * flops / peak, 3) if peak else None,
        "plain_mfu": round(rates["plain"] * flops / peak, 3) if peak else None,
        "memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if cuda else None,
    }


def token_ids(vocab_size: int) -> torch.Tensor:
    """A text of random tokens: what they are costs nothing."""
    return torch.randint(vocab_size, (TEXT_TOKENS,)).to(torch.uint8 if vocab_size <= 256 else torch.int32)


def our_steps(config: TrainConfig, model: GPT, ids: torch.Tensor, compute: Compute) -> Way:
    """The steps of a run of this config; it looks at its losses as often as a run does."""
    update = Update.fresh(model, ids, config, compute)
    sequences = config.batch_size * config.grad_accum_steps
    pending: list[torch.Tensor] = []

    def step(number: int) -> None:
        starts = sample_starts(len(ids), sequences, config.model.block_size, 0, number)
        done = update(starts, 1e-3, 1.0, lambda: False)
        assert done is not None
        pending.append(done)
        if number % config.log_interval == 0 or compute.device.type == "cpu":
            torch.stack(pending).tolist()
            pending.clear()

    return repeated(step)


if __name__ == "__main__":
    main(sys.argv[1:])
