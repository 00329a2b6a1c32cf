"""`microgpt train profile=true`: profile training steps of a temporary model; writes a trace."""

import gzip
import os
import shutil
from collections.abc import Collection
from datetime import datetime
from pathlib import Path

import torch
from tqdm import tqdm

from microgpt_cli import randomness
from microgpt_cli.commands import Invocation, dataset_cache
from microgpt_cli.commands.console import say, thousands
from microgpt_cli.compute import choose_for_run
from microgpt_cli.config import TrainConfig
from microgpt_cli.data.dataset import split
from microgpt_cli.model.accounting import flops_per_token, total_parameters
from microgpt_cli.model.gpt import GPT
from microgpt_cli.runs import layout
from microgpt_cli.training import profile
from microgpt_cli.training.profile import PROFILED_STEPS, STEP, TIMED_STEPS, WARMUP_STEPS, Profile

TRACE = "trace.json"
LARGE_BYTES = 4 << 20  # larger traces are compressed, to about a twentieth
SHOWN = 10  # operations
MIN_FLOPS = 1000  # per call; the rate of smaller operations is meaningless
MIN_WIDTH = 50  # columns of the table


def run(config: TrainConfig, invocation: Invocation) -> None:
    """Profile some steps, print the phases and operations, and write the trace."""
    # silence the profiler's log, which also complains about a missing GPU
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    folder = config.out_dir or str(layout.OUTPUTS / "profile" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f"))
    layout.refuse_unless_free(folder)
    compute = choose_for_run(config, config.device)
    corpus, tokenizer, ids, _ = dataset_cache.read(config.data, config.tokenizer)
    splits = split(ids, config.data.val_fraction, config.model.block_size)
    torch.manual_seed(randomness.derive(config.seed, randomness.WEIGHTS))
    model = GPT(config.model, tokenizer.vocab_size).to(compute.device)
    say(f"data      {corpus.name}: {len(splits.train):,} training tokens, vocabulary of {tokenizer.vocab_size}")
    say(f"model     {total_parameters(model):,} parameters, newly initialised and discarded")
    for name in ("device", "dtype", "engine", "threads"):
        say(f"{name:9} {compute.reasons[name]}")
    with tqdm(total=WARMUP_STEPS + TIMED_STEPS + PROFILED_STEPS, disable=None, desc="step", leave=False) as bar:

        def progress(doing: str) -> None:
            bar.set_postfix_str(doing, refresh=False)
            bar.update()

        found = profile.profile(model, splits, config, compute, progress)
    compressed = len(found.trace) > LARGE_BYTES
    name, data = (f"{TRACE}.gz", gzip.compress(found.trace, 6)) if compressed else (TRACE, found.trace)
    with layout.new(folder, None, {name: data}, invocation.hydra_files) as made:
        _report(config, found, flops_per_token(model).value, made / name)


def _report(config: TrainConfig, found: Profile, flops: int, trace: Path) -> None:
    """Print throughput, phases, the slowest operations and how to view the trace."""
    tokens = config.batch_size * config.grad_accum_steps * config.model.block_size
    rate = flops * tokens / found.step_seconds
    say(
        f"speed     {_milliseconds(found.step_seconds)} ms/step, {thousands(tokens / found.step_seconds)} tokens/s, "
        f"{thousands(rate / 1e9)} GFLOP/s (FLOPs as in microgpt params)"
    )
    say(
        f"profile   {found.steps} steps, {_milliseconds(found.profiled_step_seconds)} ms each, "
        "including profiler overhead"
    )
    if found.phases:
        whole = sum(found.phases.values())
        say("\n share    ms/step  phase")
        for phase, seconds in found.phases.items():
            say(f"{seconds / whole:6.1%} {_milliseconds(seconds / found.steps):>10}  {phase}")
    say("")
    for line in table(found, shutil.get_terminal_size().columns):
        say(line)
    say(f"\ntrace     {trace}")
    say("next      open it in https://ui.perfetto.dev (it stays in your browser), or in chrome://tracing")


def table(found: Profile, columns: int) -> list[str]:
    """The slowest operations, one line each; names are truncated to fit `columns`."""

    def line(seconds: float, calls: float | None, rate: str, name: str) -> str:
        each = "" if calls is None else f"{calls / found.steps:,.4g}"
        share = seconds / found.seconds if found.seconds else 0.0
        return f"{share:6.1%} {_milliseconds(seconds / found.steps):>10} {each:>13} {rate:>8}  {name}"

    lines = [" share    ms/step    calls/step  GFLOP/s  operation" + (", on the GPU" if found.on_gpu else "")]
    for row in found.operations[:SHOWN]:
        rate = f"{row.flops / row.seconds / 1e9:,.0f}" if row.flops >= MIN_FLOPS * row.calls else ""
        lines.append(line(row.seconds, row.calls, rate, label(row.name, found.phases)))
    rest = found.operations[SHOWN:]
    if rest:
        seconds, calls = sum(row.seconds for row in rest), sum(row.calls for row in rest)
        lines.append(line(seconds, calls, "", f"{len(rest)} others"))
    lines.append(line(found.seconds, None, "", "all"))
    width = max(columns, MIN_WIDTH)
    return [text if len(text) <= width else text[: width - 1] + "…" for text in lines]


def label(name: str, phases: Collection[str]) -> str:
    """The name of an operation; for a phase, the time in it outside of operations."""
    if name == STEP or name in phases:
        return f"between operations, {'outside the phases' if name == STEP else f'in {name}'}"
    return name


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.3f}" if seconds < 1 else f"{1000 * seconds:,.0f}"
