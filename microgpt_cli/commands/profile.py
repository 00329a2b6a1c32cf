"""`microgpt train profile=true`: where a step's time goes, from a model that is thrown away. It leaves a trace."""

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
from microgpt_cli.commands.train import work_flops
from microgpt_cli.compute import choose, for_vocabulary
from microgpt_cli.config import TrainConfig
from microgpt_cli.data.dataset import split
from microgpt_cli.model.accounting import flops_per_token, total_parameters
from microgpt_cli.model.gpt import GPT
from microgpt_cli.runs import layout
from microgpt_cli.training import profile
from microgpt_cli.training.profile import PROFILED_STEPS, STEP, TIMED_STEPS, WARMUP_STEPS, Profile

TRACE = "trace.json"
LARGE_BYTES = 4 << 20  # of a trace: it is compressed, to a twentieth
SHOWN = 10  # operations
LEAST_FLOPS = 1000  # of a call: below, its rate says nothing
NARROWEST = 50  # columns of a table
# What torch's operations do, and what the kernels of a GPU do that have these words in their names.
OPERATIONS = {
    "mm": "matrix product", "addmm": "matrix product and bias", "bmm": "matrix products, one a head",
    "copy_": "copying, or changing precision", "cat": "joining tensors", "index": "looking up rows",
    "index_select": "looking up rows", "embedding_dense_backward": "gradient of an embedding",
    "mul": "multiplying numbers", "mul_": "multiplying numbers", "add": "adding numbers", "add_": "adding numbers",
    "sub_": "subtracting numbers", "div": "dividing numbers", "sum": "adding up", "fill_": "filling with a number",
    "where": "choosing by a mask", "masked_fill_": "masking the future", "triu_": "a mask", "tril": "a mask",
    "clamp_min": "ReLU", "relu": "ReLU", "threshold_backward": "ReLU, backward", "gelu": "GELU",
    "gelu_backward": "GELU, backward", "_softmax": "softmax", "_softmax_backward_data": "softmax, backward",
    "_log_softmax": "log-softmax of the logits", "_log_softmax_backward_data": "log-softmax, backward",
    "native_layer_norm": "LayerNorm", "native_layer_norm_backward": "LayerNorm, backward",
    "_fused_rms_norm": "RMSNorm", "_fused_rms_norm_backward": "RMSNorm, backward",
    "_scaled_dot_product_flash_attention_for_cpu": "attention",
    "_scaled_dot_product_flash_attention_for_cpu_backward": "attention, backward",
    "_fused_adamw_": "AdamW", "linalg_vector_norm": "norm of gradients", "lerp": "a running mean",
}  # fmt: skip
KERNELS = {
    "Memcpy": "copying", "Memset": "filling with a number", "triton": "compiled: several in one", "flash": "attention",
    "fmha": "attention", "gemm": "matrix product", "nvjet": "matrix product", "cutlass": "matrix product",
    "Adam": "AdamW", "layer_norm": "LayerNorm", "rms_norm": "RMSNorm", "softmax": "softmax", "SoftMax": "softmax",
    "index": "looking up rows", "Cat": "joining tensors", "multi_tensor": "one operation on many tensors",
    "reduce": "adding up, norms", "elementwise": "number by number",
}  # fmt: skip


def run(config: TrainConfig, invocation: Invocation) -> None:
    """Profile some steps, say what they consist of, and keep the trace."""
    # torch's profiler would tell of its stages, and that a machine without a GPU has none
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    folder = config.out_dir or str(layout.OUTPUTS / "profile" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f"))
    layout.refuse_unless_free(folder)
    # what a run of this config would choose, so that its own steps are seen
    compute = choose(
        config.device,
        config.dtype,
        config.compile,
        config.threads,
        work_flops(config),
        config.model,
        config.batch_size,
    )
    corpus, tokenizer, ids, _ = dataset_cache.read(config.data, config.tokenizer)
    compute = for_vocabulary(compute, config.compile, tokenizer.vocab_size)
    splits = split(ids, config.data.val_fraction, config.model.block_size)
    torch.manual_seed(randomness.derive(config.seed, randomness.WEIGHTS))
    model = GPT(config.model, tokenizer.vocab_size).to(compute.device)
    say(f"text      {corpus.name}: {len(splits.train):,} tokens to learn from, {tokenizer.vocab_size} different")
    say(f"model     {total_parameters(model):,} parameters, fresh weights that are thrown away")
    for name in ("device", "dtype", "compile", "threads"):
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
    """The pace, the phases, the costliest operations, and what to do with the trace."""
    tokens = config.batch_size * config.grad_accum_steps * config.model.block_size
    rate = flops * tokens / found.step_seconds
    say(
        f"pace      {_milliseconds(found.step_seconds)} ms a step, {thousands(tokens / found.step_seconds)} tokens/s, "
        f"{thousands(rate / 1e9)} GFLOP/s by the formula of microgpt params"
    )
    say(
        f"profile   {found.steps} steps, {_milliseconds(found.profiled_step_seconds)} ms each: "
        "noting what is called takes time, too"
    )
    if found.phases:
        whole = sum(found.phases.values())
        say("\n share  ms a step  phase")
        for phase, seconds in found.phases.items():
            say(f"{seconds / whole:6.1%} {_milliseconds(seconds / found.steps):>10}  {phase}")
    say("")
    for line in table(found, shutil.get_terminal_size().columns):
        say(line)
    say(f"\ntrace     {trace}")
    say("next      drop it into https://ui.perfetto.dev (it stays in your browser), or chrome://tracing")


def table(found: Profile, columns: int) -> list[str]:
    """The costliest operations, a line each; what does not fit into `columns` is cut off their names."""

    def line(seconds: float, calls: float | None, rate: str, name: str) -> str:
        each = "" if calls is None else f"{calls / found.steps:,.4g}"
        share = seconds / found.seconds if found.seconds else 0.0
        return f"{share:6.1%} {_milliseconds(seconds / found.steps):>10} {each:>13} {rate:>8}  {name}"

    lines = [" share  ms a step  calls a step  GFLOP/s  operation" + (", on the GPU" if found.on_gpu else "")]
    for row in found.operations[:SHOWN]:
        rate = f"{row.flops / row.seconds / 1e9:,.0f}" if row.flops >= LEAST_FLOPS * row.calls else ""
        lines.append(line(row.seconds, row.calls, rate, in_words(row.name, found.phases)))
    rest = found.operations[SHOWN:]
    if rest:
        seconds, calls = sum(row.seconds for row in rest), sum(row.calls for row in rest)
        lines.append(line(seconds, calls, "", f"{len(rest)} others"))
    lines.append(line(found.seconds, None, "", "all"))
    width = max(columns, NARROWEST)
    return [text if len(text) <= width else text[: width - 1] + "…" for text in lines]


def in_words(name: str, phases: Collection[str]) -> str:
    """What an operation does, and its name in torch: `matrix product (aten::mm)`."""
    if name == STEP or name in phases:
        return f"between operations, {'outside the phases' if name == STEP else f'in {name}'}"
    short = name.removeprefix("aten::")
    words = OPERATIONS.get(short) if short != name else next((w for k, w in KERNELS.items() if k in name), None)
    return f"{words} ({name})" if words else name


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.3f}" if seconds < 1 else f"{1000 * seconds:,.0f}"
