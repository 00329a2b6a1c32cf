"""`microgpt train lr_find=true`: which learning rate to use, from a model that is thrown away. It leaves a plot."""

import math
import os
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import torch
from tqdm import tqdm

from microgpt_cli import randomness
from microgpt_cli.commands import Invocation
from microgpt_cli.commands.console import bytes_bar, say
from microgpt_cli.compute import choose
from microgpt_cli.config import TrainConfig
from microgpt_cli.data.corpus import open_corpus
from microgpt_cli.data.dataset import build_tokenizer, encode, split
from microgpt_cli.errors import RunStopped, UserError
from microgpt_cli.model.accounting import total_parameters
from microgpt_cli.model.gpt import GPT
from microgpt_cli.runs import layout, plots, storage
from microgpt_cli.training import lr_find
from microgpt_cli.training.lr_find import Tried

PICTURE_ROWS, PICTURE_COLUMNS = 9, 64


def run(config: TrainConfig, invocation: Invocation) -> None:
    """Make the range test and say which learning rate it suggests."""
    path = _plot_path(config)
    # 200 steps don't pay for a compiler
    compute = choose(config.device, config.dtype, threads=config.threads)
    with bytes_bar("reading the text") as progress:
        corpus = open_corpus(config.data, progress)
        cache = Path(config.data.cache_dir)
        tokenizer = build_tokenizer(config.tokenizer, corpus, cache, progress)
        ids, _ = encode(corpus, tokenizer, cache, progress)
    splits = split(ids, config.data.val_fraction, config.model.block_size)
    torch.manual_seed(randomness.derive(config.seed, randomness.WEIGHTS))
    model = GPT(config.model, tokenizer.vocab_size).to(compute.device)
    say(f"text      {corpus.name}: {len(splits.train):,} tokens to learn from, {tokenizer.vocab_size} different")
    say(f"model     {total_parameters(model):,} parameters, fresh weights that are thrown away")
    say(f"device    {compute.reasons['device']}")
    say(
        f"rates     optim.learning_rate from {lr_find.LOWEST:g} up to {lr_find.HIGHEST:g} in {lr_find.STEPS} steps of "
        f"{config.batch_size * config.grad_accum_steps} × {config.model.block_size} tokens"
    )
    tried = []
    with tqdm(total=lr_find.STEPS, disable=None, desc="step", leave=False) as bar:
        for step in lr_find.range_test(model, splits, config, compute):
            tried.append(step)
            bar.set_postfix_str(f"lr {step.learning_rate:.1e}, loss {step.smoothed:.3f}", refresh=False)
            bar.update()
    _report(config, tried, lr_find.suggestion(tried, lr_find.RULES[config.optim.kind]), path)


def _plot_path(config: TrainConfig) -> Path:
    """Where the plot goes: a run's folder stays free for the run."""
    if config.out_dir is not None:
        folder = Path(os.path.expanduser(config.out_dir))
        return folder.with_name(f"{folder.name}-lr_find.png")
    return layout.OUTPUTS / "lr_find" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f.png")


def _report(config: TrainConfig, tried: Sequence[Tried], suggested: float | None, path: Path) -> None:
    if len(tried) > 1:
        say(f"\n{_picture(tried, suggested, shutil.get_terminal_size().columns)}\n")
        problem = plots.missing()
        if not problem:
            _draw(path, tried, suggested)
        say(f"note      no plot: {problem}" if problem else f"plot      {path}")
    found, rule = lr_find.fall(tried), lr_find.RULES[config.optim.kind]
    if found is None or suggested is None:
        raise RunStopped("lr_find: the loss fell at no learning rate, so there is none to suggest; look at the data")
    say(
        f"chosen    {suggested:g}: {'twice ' if rule.times == 2 else ''}the first rate with {rule.share:.0%} of "
        f"the fall behind it, from a smoothed loss of {found.start:.3f} to {found.lowest.smoothed:.3f} at "
        f"{found.lowest.learning_rate:.1e}"
    )
    say(f"paste     {override(config, suggested)}")


def _draw(path: Path, tried: Sequence[Tried], suggested: float | None) -> None:
    try:
        storage.make_folders(path.parent)
        plots.draw_lr_find(path, [(t.learning_rate, t.loss, t.smoothed) for t in tried], suggested)
    except OSError as error:
        raise UserError(storage.explain(error)) from error


def override(config: TrainConfig, suggested: float) -> str:
    """What to type so that the peak is the suggested rate, and the other rates keep their ratio to it."""
    optim, times = config.optim, suggested / config.optim.learning_rate
    words = [f"optim.learning_rate={suggested:g}"]
    if optim.adamw_learning_rate is not None:
        words.append(f"optim.adamw_learning_rate={times * optim.adamw_learning_rate:.2g}")
    if optim.schedule != "constant" and optim.min_learning_rate:
        words.append(f"optim.min_learning_rate={times * optim.min_learning_rate:.2g}")
    return " ".join(words)


def _picture(tried: Sequence[Tried], suggested: float | None, columns: int) -> str:
    """The smoothed loss against the learning rate, in characters; an arrow below shows what is suggested."""
    width = max(10, min(PICTURE_COLUMNS, columns - 8))
    first, last = math.log(tried[0].learning_rate), math.log(tried[-1].learning_rate)

    def column(rate: float) -> int:
        return round((math.log(rate) - first) / (last - first) * (width - 1))

    low = min(step.smoothed for step in tried)
    high = tried[0].smoothed + 0.1 * (tried[0].smoothed - low) + 1e-9  # what rises far above its start is cut off
    rows = [[" "] * width for _ in range(PICTURE_ROWS)]
    for step in tried:
        row = round((high - step.smoothed) / (high - low) * (PICTURE_ROWS - 1))
        rows[max(0, row)][column(step.learning_rate)] = "•"
    labels = {0: f"{high:.2f}", PICTURE_ROWS - 1: f"{low:.2f}"}
    lines = [f"{labels.get(number, ''):>6} │{''.join(row).rstrip()}" for number, row in enumerate(rows)]
    left, right = f"{tried[0].learning_rate:.0e}", f"{tried[-1].learning_rate:.0e}"
    lines.append(" " * 7 + "└" + "─" * width)
    axis = list(left + " " * (width - len(left) - len(right)) + right)
    if suggested is not None:
        mark = f"↑ {suggested:g}"
        at = min(column(suggested), width - len(mark))
        axis[at : at + len(mark)] = mark
    lines.append(" " * 8 + "".join(axis))
    return "\n".join(lines)
