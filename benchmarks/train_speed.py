"""Training steps of ours and of the plain way, side by side in one process: tokens/s, ratio, MFU.

    python benchmarks/train_speed.py model=micro,mini,small arch=gpt2 batch_size=64 device=cuda compile=false

Each pair runs in turns (ours, plain, ours, …); the median of the rounds counts. Writes to benchmarks/results/.
"""

import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from plain import plain_step

from microgpt_cli import __version__, cli
from microgpt_cli.config import TrainConfig
from microgpt_cli.data.tokens import draw_starts
from microgpt_cli.model.accounting import flops_per_token
from microgpt_cli.model.gpt import GPT
from microgpt_cli.training.device import choose
from microgpt_cli.training.optimizers import make_optimizer
from microgpt_cli.training.update import Update

ROUNDS, ROUND_SECONDS, WARMUP_STEPS = 5, 1.5, 5
PEAK_FLOPS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}  # dense bfloat16, from the data sheets


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words)
    vocab_size = int(given.pop("vocab_size", 65))
    plain_compile = given.pop("plain_compile", "auto")
    sizes = given.pop("model", "micro").split(",")
    out = Path(__file__).parent / "results" / f"{given.pop('name', 'train_speed')}.json"
    rows = []
    for size in sizes:
        overrides = [f"model={size}", *(f"{k}={v}" for k, v in given.items())]
        config = cli.load_config("train", overrides)
        rows.append(compare(config, size, vocab_size, plain_compile))
        print(json.dumps(rows[-1]), flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    page = {
        "command": f"python benchmarks/train_speed.py {' '.join(words)}",
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": {"microgpt": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "rows": rows,
    }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(page, indent=1) + "\n")


def compare(config: TrainConfig, size: str, vocab_size: int, plain_compile: str) -> dict[str, object]:
    compute = choose(config.device, config.dtype, config.compile, config.threads, 0.0, config.model.n_embd)
    cuda = compute.device.type == "cuda"
    ids = torch.randint(vocab_size, (1_000_000,)).to(torch.uint8 if vocab_size <= 256 else torch.int32)
    T, B = config.model.block_size, config.batch_size
    torch.manual_seed(0)
    model = GPT(config.model, vocab_size).to(compute.device)
    update = Update(model, make_optimizer(model.named_parameters(), config.optim), ids, config, compute)
    pending: list[torch.Tensor] = []

    def ours(number: int) -> None:
        done = update(draw_starts(len(ids), B, T, 0, number), 1e-3, 1.0, lambda: False)
        assert done is not None
        pending.append(done)
        if number % config.log_interval == 0 or not cuda:
            torch.stack(pending).tolist()
            pending.clear()

    plain = plain_step(
        GPT(config.model, vocab_size).to(compute.device),
        ids,
        B,
        cuda if plain_compile == "auto" else plain_compile == "true",
    )
    steps = {"ours": ours, "plain": plain}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    counts, first = {}, {}
    for name, step in steps.items():
        began = time.perf_counter()
        for number in range(WARMUP_STEPS):
            step(number)
        if cuda:
            torch.cuda.synchronize()
        first[name] = time.perf_counter() - began
        began = time.perf_counter()
        for number in range(WARMUP_STEPS):
            step(number)
        if cuda:
            torch.cuda.synchronize()
        counts[name] = max(5, int(ROUND_SECONDS / ((time.perf_counter() - began) / WARMUP_STEPS)))
    for _ in range(ROUNDS):
        for name, step in steps.items():
            began = time.perf_counter()
            for number in range(counts[name]):
                step(number)
            if cuda:
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - began) / counts[name])
    rates = {name: B * T / statistics.median(times) for name, times in seconds.items()}
    ratios = [p / o for o, p in zip(seconds["ours"], seconds["plain"], strict=True)]
    peak = PEAK_FLOPS.get(torch.cuda.get_device_name()) if cuda else None
    flops = flops_per_token(model).value
    return {
        "model": size,
        "batch": f"{B} × {T}",
        "ours": compute.reasons["dtype"].partition(":")[0] + (" compiled" if compute.compile else "")
        + (" graph" if update._graph else ""),
        "ours_tokens_per_sec": round(rates["ours"]),
        "plain_tokens_per_sec": round(rates["plain"]),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min_max": [round(min(ratios), 2), round(max(ratios), 2)],
        "first_steps_sec": {name: round(value, 2) for name, value in first.items()},
        "ours_tflops": round(rates["ours"] * flops / 1e12, 3),
        "ours_mfu": round(rates["ours"] * flops / peak, 3) if peak else None,
        "plain_mfu": round(rates["plain"] * flops / peak, 3) if peak else None,
        "memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if cuda else None,
    }  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
