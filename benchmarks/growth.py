"""How cost grows: tokens/s and memory of training over model sizes, batch sizes and contexts, as a table and a plot.

    python benchmarks/growth.py [seconds=2] [name=NAME] [key=value … of train]

Each point is a process of its own that makes a few steps; its memory is the most that it held (of a GPU: of torch's
tensors), less what torch itself takes before there is a model. Writes benchmarks/results/growth_NAME.json and .svg.
"""

import json
import resource
import subprocess
import sys
from typing import Any

import machine
import torch
from timing import seconds_of
from train_speed import our_steps, token_ids

from microgpt_cli.cli import main as cli
from microgpt_cli.compute import choose
from microgpt_cli.model.accounting import memory, total_parameters
from microgpt_cli.model.gpt import GPT

VOCAB_SIZE, WARMUP_STEPS = 65, 2
# What grows → the words of each point.
SERIES = {
    "model size, 8 × 256 tokens": [[f"model={size}"] for size in ("micro", "mini", "small", "medium")],
    "batch size, mini at 64 tokens": [["model=mini", f"batch_size={2**power}"] for power in range(1, 10, 2)],
    "context, mini, 8,192 tokens a step": [
        ["model=mini", f"model.block_size={T}", f"batch_size={8192 // T}"] for T in (32, 128, 512, 2048)
    ],
}
COMMON = {"model size, 8 × 256 tokens": ["model.block_size=256", "batch_size=8"]}


def main(words: list[str]) -> None:
    if words[:1] == ["point"]:
        print(json.dumps(point(float(words[1]), words[2:])))
        return
    known = {"seconds": "2", "name": f"growth_{machine.name_of_machine()}"}
    given, rest = machine.settings(words, known, more=True)
    series = {}
    for title, points in SERIES.items():
        print(f"\n{title}\n{'':16}{'parameters':>12}{'tokens/s':>12}{'memory, MB':>12}{'by formula':>12}")
        series[title] = []
        for own in points:
            command = [sys.executable, __file__, "point", given["seconds"], *COMMON.get(title, []), *own, *rest]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            found["point"] = label(title, found)
            print(
                f"{found['point']:16}{found['parameters']:>12,}{found['tokens_per_sec']:>12,.0f}"
                f"{found['memory_mb']:>12,.0f}{found['formula_mb']:>12,.0f}",
                flush=True,
            )
            series[title].append(found)
    path = machine.store(given["name"], "growth.py", words, {"series": series})
    draw(series, str(path.with_suffix(".svg")))
    print(f"\nstored in {path} and {path.with_suffix('.svg').name}")


def point(seconds: float, words: list[str]) -> dict[str, Any]:
    """A few steps of one setting, about so many seconds of them."""
    config = cli.load_config("train", ["arch=gpt2", "optim=adamw", *words])
    compute = choose(config.device, config.dtype, config.engine, config.compile, config.threads, trained=config.model)
    ids = token_ids(VOCAB_SIZE)
    before = held_bytes()
    model = GPT(config.model, VOCAB_SIZE).to(compute.device)
    steps = our_steps(config, model, ids, compute)
    each = seconds_of(steps, WARMUP_STEPS) / WARMUP_STEPS
    count = max(2, round(seconds / each))
    costs = memory(model, config.batch_size, config.optim, compute.engine)
    rate = config.batch_size * config.model.block_size * count / seconds_of(steps, count)
    return {
        "model": next(word.partition("=")[2] for word in words if word.startswith("model=")),
        "batch_size": config.batch_size,
        "block_size": config.model.block_size,
        "parameters": total_parameters(model),
        "steps": count,
        "tokens_per_sec": round(rate, 1),
        "memory_mb": round((held_bytes() - before) / 1e6, 1),
        "formula_mb": round(
            sum(cost.value for cost in costs.values()) / 1e6,
            1,
        ),
    }


def held_bytes() -> int:
    """The most memory that this process has held: on the GPU, if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10  # macOS counts bytes, Linux kilobytes


def label(title: str, found: dict[str, Any]) -> str:
    if title.startswith("batch"):
        return str(found["batch_size"])
    return str(found["block_size"]) if title.startswith("context") else str(found["model"])


def draw(series: dict[str, list[dict[str, Any]]], path: str) -> None:
    """A panel for each series: bars of tokens/s above, memory below."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(2, len(series), sharex="col", sharey="row", squeeze=False)
    for (title, points), rate, held in zip(series.items(), panels[0], panels[1], strict=True):
        names = [found["point"] for found in points]
        rates = [found["tokens_per_sec"] for found in points]
        rate.plot(names, rates, marker="o")
        for name, value in zip(names, rates, strict=True):
            rate.annotate(f"{value:,.0f}", (name, value), (0, 6), textcoords="offset points", ha="center", fontsize=8)
        rate.margins(0.12, 0.15)
        held.plot(names, [found["memory_mb"] for found in points], marker="o", color="tab:red", label="measured")
        formula = [found["formula_mb"] for found in points]
        held.plot(names, formula, linestyle=":", color="grey", label="by formula")
        rate.set_title(title, fontsize=10)
        for axes in (rate, held):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:,.0f}")
            axes.yaxis.set_minor_formatter("")
            axes.grid(alpha=0.2)
    panels[0][0].set_ylabel("tokens/s")
    panels[1][0].set_ylabel("memory, MB")
    panels[1][0].legend(fontsize=8)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "growth"}):
        figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else {})


if __name__ == "__main__":
    main(sys.argv[1:])
