"""`microgpt doctor`: check machine, text, memory, disk and time before a run. Writes nothing."""

import importlib.util
import json
import os
import platform
import shlex
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from microgpt_cli.commands import Invocation
from microgpt_cli.commands.console import bytes_bar, data_size, duration, thousands
from microgpt_cli.commands.resume import config_from_run
from microgpt_cli.commands.train import LAST_SAMPLE_TOKENS, SAMPLE_TOKENS
from microgpt_cli.commands.train_report import baselines_line, split_line
from microgpt_cli.compute import Compute, choose_for_run
from microgpt_cli.config import TrainConfig
from microgpt_cli.config.schema import leaves
from microgpt_cli.data.baselines import count_baselines
from microgpt_cli.data.corpus import Corpus, open_corpus
from microgpt_cli.data.dataset import IN_MEMORY_BYTES, Splits, build_tokenizer, encode, present, split
from microgpt_cli.data.tokenizers import Tokenizer
from microgpt_cli.errors import RunStopped, UserError
from microgpt_cli.insight.overlap import find_overlap
from microgpt_cli.insight.text_stats import RARE_COUNT, TextStats, beginning, text_stats
from microgpt_cli.model.accounting import memory, meta_model, total_parameters
from microgpt_cli.runs import layout
from microgpt_cli.training import probe
from microgpt_cli.training.trainer import EVAL_TOKENS

SMALL_BYTES = 100_000  # a model soon overfits to a text below this size
MUCH_REPEATED = 0.1  # share of duplicate lines that is reported
MIN_COPIED_TOKENS, MAX_COPIED_VAL, MAX_COPIED_TRAIN = 50, 1 << 18, 1 << 24  # length of a match; tokens compared
MAX_UNUSUAL = 4  # characters that are named
USABLE_MEMORY = 0.9  # share of the free memory that a run may plan with


def run(config: TrainConfig, invocation: Invocation) -> None:
    """Check what a run needs and print the command that starts it."""
    if config.resume is not None:
        raise UserError("resume: doctor checks new runs; check this one with microgpt verify ckpt=RUN")
    if config.from_run is not None:
        config = config_from_run(config, invocation.typed)
    if config.out_dir is not None:
        layout.refuse_unless_free(config.out_dir)
    compute = choose_for_run(config, config.device)
    with bytes_bar("reading the text") as progress:
        whole = open_corpus(config.data, progress, keep=False)
        corpus = beginning(whole, IN_MEMORY_BYTES)
        tokenizer = build_tokenizer(config.tokenizer, corpus, Path(), progress)
        ids, _ = encode(corpus, tokenizer, Path(), progress)
        found = _survey(corpus, tokenizer)
    splits = split(ids, config.data.val_fraction, config.model.block_size)
    problems = _machine(config, compute)
    _text(config, whole, corpus, found, tokenizer, splits)
    problems += _room(config, compute, whole, tokenizer)
    if not any(problem.startswith("memory") for problem in problems):
        _time(config, compute, whole.size_bytes / corpus.size_bytes, tokenizer, splits)
    if problems:
        raise RunStopped("pre-flight check failed: " + "; ".join(problems))
    if invocation.hydra_files:  # absent in a sweep, whose jobs were not typed
        print(f"next      {_command(config, invocation)}")


def _survey(corpus: Corpus, tokenizer: Tokenizer) -> TextStats | None:
    try:
        return text_stats(corpus)
    except UserError:
        if tokenizer.kind != "byte":
            raise
        return None  # the byte tokenizer reads any bytes


def _machine(config: TrainConfig, compute: Compute) -> list[str]:
    """Print the hardware and what was chosen; returns the problems."""
    cores = os.cpu_count()
    print(
        f"machine   {platform.system()} {platform.machine()}, {cores} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        kinds = "float32, float16" + (", bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "")
        vram = f"{data_size(free)} of {data_size(total)} free"
        print(f"gpu       cuda:{index} {torch.cuda.get_device_name(index)}, {vram}, {kinds}")
    for name in ("device", "dtype", "engine", "threads"):
        print(f"{name:9} {compute.reasons[name]}")
    missing = _missing_compiler(compute.device)
    untried = "; torch.compile is not tried, because it writes to the disk" if compute.compile else ""
    print(f"compiler  {missing or 'found'}{untried}")
    return [f"compile=true: {missing}; try compile=false"] if missing and config.compile == "true" else []


def _missing_compiler(device: torch.device) -> str:
    """What torch.compile lacks on this machine; empty if nothing."""
    if device.type == "cuda":
        return "" if importlib.util.find_spec("triton") else "not found: triton is not installed"
    names = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    return "" if any(name and shutil.which(name) for name in names) else "not found: no g++ or clang++ on the path"


def _text(
    config: TrainConfig,
    whole: Corpus,
    corpus: Corpus,
    found: TextStats | None,
    tokenizer: Tokenizer,
    splits: Splits,
) -> None:
    """Print statistics of the text, what is unusual about it, and the baselines."""
    unit = tokenizer.unit
    files = f" in {len(whole.sources):,} files" if len(whole.sources) > 1 else ""
    print(
        f"data      {whole.name}: {data_size(whole.size_bytes)}{files}"
        + (f", of which the first {data_size(corpus.size_bytes)} are checked" if corpus is not whole else "")
    )
    if whole.note:
        print(f"note      {whole.note}")
    if found is None:
        print("          not UTF-8; read as bytes")
    else:
        print(
            f"          {found.characters:,} characters, {found.distinct:,} distinct, of which {found.rare:,} occur "
            f"fewer than {RARE_COUNT} times; {found.lines:,} lines"
        )
        for odd in found.unusual[:MAX_UNUSUAL]:
            print(f"unusual   {odd.name}, {f'{odd.count:,} times' if odd.count > 1 else 'once'}: {odd.kind}")
        if len(found.unusual) > MAX_UNUSUAL:
            print(f"unusual   and {len(found.unusual) - MAX_UNUSUAL} more characters")
        if found.repeated > MUCH_REPEATED:
            print(f"repeated  {found.repeated:.0%} of the text is duplicate lines")
    print(f"{split_line(splits, config.data.val_fraction)}; vocabulary of {tokenizer.vocab_size:,}")
    unseen = (present(splits.val, tokenizer.vocab_size) & ~present(splits.train, tokenizer.vocab_size)).nonzero()[:, 0]
    if len(unseen):
        shown = " ".join(repr(tokenizer.decode([i])) for i in unseen[:8].tolist())
        print(f"unseen    {len(unseen)} {unit} occur only in the validation split, so they can't be learned: {shown}")
    again = find_overlap(splits.val[:MAX_COPIED_VAL], splits.train[-MAX_COPIED_TRAIN:], 0, MIN_COPIED_TOKENS).share
    if again > 0.01:
        print(
            f"copied    {again:.0%} of the validation split also occurs in the training split (matches of "
            f"{MIN_COPIED_TOKENS} or more {unit}): val_loss will be optimistic"
        )
    if whole.size_bytes < SMALL_BYTES:
        print(f"small     {data_size(whole.size_bytes)} of text: expect overfitting; try early_stop_patience=3")
    baselines = count_baselines(splits.train, splits.val, tokenizer.vocab_size)
    print(baselines_line(baselines, tokenizer))


def _room(config: TrainConfig, compute: Compute, whole: Corpus, tokenizer: Tokenizer) -> list[str]:
    """Print the memory and the disk space that are needed and free; returns the problems."""
    problems = []
    model = meta_model(config.model, tokenizer.vocab_size)
    costs = memory(model, config.batch_size, config.optim, compute.engine)
    needed, free = sum(cost.value for cost in costs.values()), probe.free_bytes(compute.device)
    print(f"model     {total_parameters(model):,} parameters")
    parts = ", ".join(f"{name} {data_size(cost.value)}" for name, cost in costs.items())
    print(
        f"memory    {data_size(needed)} per step ({parts})" + (f"; {data_size(free)} free" if free is not None else "")
    )
    if free is not None and needed > USABLE_MEMORY * free:
        fitting = probe.fitting_batch(model, config, compute.engine, int(USABLE_MEMORY * free))
        problems.append(_too_large(config, fitting, needed, free))
    state = costs["weights"].value + costs["optimizer"].value
    wanted = [(_out_folder(config), probe.CHECKPOINTS_KEPT * state, "out_dir")]
    if whole.size_bytes > IN_MEMORY_BYTES:
        wanted.append(
            (Path(os.path.expanduser(config.data.cache_dir)), whole.size_bytes * tokenizer.itemsize, "data.cache_dir")
        )
    for folder, size, key in wanted:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        room = shutil.disk_usage(there).free
        print(
            f"disk      {data_size(size)} for {'checkpoints' if key == 'out_dir' else 'the encoded text'}; "
            f"{data_size(room)} free at {there}"
        )
        if size > room:
            problems.append(f"disk: not enough free space at {there}; try another {key}=")
        if not os.access(there, os.W_OK):
            problems.append(f"disk: {there} is not writable; try another {key}=")
    return problems


def _out_folder(config: TrainConfig) -> Path:
    return Path(os.path.expanduser(config.out_dir)) if config.out_dir is not None else layout.OUTPUTS / "train"


def _too_large(config: TrainConfig, batch_size: int | None, needed: int, free: int) -> str:
    words = f"memory: a step needs {data_size(needed)}, and {data_size(free)} are free"
    if batch_size is None:
        return f"{words}; one sequence at a time does not fit: try a smaller model= or model.block_size="
    accumulate = config.grad_accum_steps * (config.batch_size // batch_size)
    return f"{words}; try batch_size={batch_size} grad_accum_steps={accumulate}: as many tokens per step"


def _time(config: TrainConfig, compute: Compute, scale: float, tokenizer: Tokenizer, splits: Splits) -> None:
    """Print how long the run will take, estimated from a few of its steps."""
    throughput = probe.estimate(config, splits, tokenizer.vocab_size, compute)
    eval_tokens = min(config.eval_tokens or EVAL_TOKENS, int(scale * len(splits.val)) - 1)
    model = meta_model(config.model, tokenizer.vocab_size)
    costs = memory(model, config.batch_size, config.optim, compute.engine)
    state = costs["weights"].value + costs["optimizer"].value
    whole = probe.forecast(config, throughput, eval_tokens, SAMPLE_TOKENS, LAST_SAMPLE_TOKENS, state)
    tokens = config.batch_size * config.grad_accum_steps * config.model.block_size
    step = f"{1000 * throughput.step:.3g} ms" if throughput.step < 1 else f"{throughput.step:.3g} s"
    print(
        f"speed     {step}/step, {thousands(tokens / throughput.step)} tokens/s, measured over {throughput.steps} steps"
        + (" without torch.compile" if compute.compile else "")
    )
    print(
        f"time      {duration(whole.total)} in total: {duration(whole.training)} for {config.max_steps:,} steps, "
        f"{duration(whole.evaluating)} to evaluate, {duration(whole.sampling)} to sample, "
        f"{duration(whole.saving)} to save"
    )
    passes = config.max_steps * tokens / (scale * len(splits.train))
    print(f"epochs    {passes:.3g} passes over the training split")


def _command(config: TrainConfig, invocation: Invocation) -> str:
    """The command line of the run that was checked."""
    keys = {leaf.name for leaf in leaves(TrainConfig)}
    words = yaml.safe_load(invocation.hydra_files["overrides.yaml"])
    names = [word.partition("=")[0] for word in words]
    typed = [
        f"{name}={_typed(config, name)}" if name in keys else word for name, word in zip(names, words, strict=True)
    ]
    return " ".join(["microgpt train", *map(shlex.quote, typed)])


def _typed(config: TrainConfig, name: str) -> str:
    """A value of the config as the command line takes it."""
    node: Any = config
    for part in name.split("."):
        node = getattr(node, part)
    return json.dumps(node) if node is None or isinstance(node, bool) else str(node)
