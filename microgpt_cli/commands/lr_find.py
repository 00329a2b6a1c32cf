"""`microgpt train lr_find=true`: a learning-rate range test with a temporary model; writes a plot."""

import os
import shutil
import sys
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
from microgpt_cli.runs import layout, plots, storage, terminal_plot
from microgpt_cli.training import lr_find
from microgpt_cli.training.lr_find import Tried

PLOT_HEIGHT, MAX_PLOT_WIDTH = 11, 72


def run(config: TrainConfig, invocation: Invocation) -> None:
    """Run the range test and print the suggested learning rate."""
    path = _plot_path(config)
    # torch.compile does not pay off for 200 steps
    compute = choose(config.device, config.dtype, threads=config.threads)
    with bytes_bar("reading the text") as progress:
        corpus = open_corpus(config.data, progress)
        cache = Path(config.data.cache_dir)
        tokenizer = build_tokenizer(config.tokenizer, corpus, cache, progress)
        ids, _ = encode(corpus, tokenizer, cache, progress)
    splits = split(ids, config.data.val_fraction, config.model.block_size)
    torch.manual_seed(randomness.derive(config.seed, randomness.WEIGHTS))
    model = GPT(config.model, tokenizer.vocab_size).to(compute.device)
    say(f"data      {corpus.name}: {len(splits.train):,} training tokens, vocabulary of {tokenizer.vocab_size}")
    say(f"model     {total_parameters(model):,} parameters, newly initialised and discarded")
    say(f"device    {compute.reasons['device']}")
    say(
        f"test      optim.learning_rate from {lr_find.LOWEST:g} up to {lr_find.HIGHEST:g} in {lr_find.STEPS} steps of "
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
    """The path of the plot, outside of the run's folder, which must stay empty for the run."""
    if config.out_dir is not None:
        folder = Path(os.path.expanduser(config.out_dir))
        return folder.with_name(f"{folder.name}-lr_find.png")
    return layout.OUTPUTS / "lr_find" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f.png")


def _report(config: TrainConfig, tried: Sequence[Tried], suggested: float | None, path: Path) -> None:
    if len(tried) > 1:
        say(f"\n{_terminal_plot(tried, suggested)}\n")
        problem = plots.missing()
        if not problem:
            _draw(path, tried, suggested)
        say(f"note      no plot: {problem}" if problem else f"plot      {path}")
    found, rule = lr_find.fall(tried), lr_find.RULES[config.optim.kind]
    if found is None or suggested is None:
        raise RunStopped("lr_find: the loss did not decrease at any learning rate; check the data")
    say(
        f"result    {suggested:g}: {'twice ' if rule.times == 2 else ''}the first learning rate after {rule.share:.0%} "
        f"of the decrease of the smoothed loss, from {found.start:.3f} to {found.lowest.smoothed:.3f} at "
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
    """The overrides that set the peak learning rate and scale the other learning rates by the same factor."""
    optim, times = config.optim, suggested / config.optim.learning_rate
    words = [f"optim.learning_rate={suggested:g}"]
    if optim.adamw_learning_rate is not None:
        words.append(f"optim.adamw_learning_rate={times * optim.adamw_learning_rate:.2g}")
    if optim.schedule != "constant" and optim.min_learning_rate:
        words.append(f"optim.min_learning_rate={times * optim.min_learning_rate:.2g}")
    return " ".join(words)


def _terminal_plot(tried: Sequence[Tried], suggested: float | None) -> str:
    """The smoothed loss (A) against the learning rate and the suggestion (B); losses above the first are clipped."""
    lowest = min(step.smoothed for step in tried)
    highest = tried[0].smoothed + 0.1 * (tried[0].smoothed - lowest)
    curves = [[(step.learning_rate, min(step.smoothed, highest)) for step in tried]]
    legend = "A smoothed loss against learning rate"
    if suggested is not None:
        nearest = min(tried, key=lambda step: abs(step.learning_rate - suggested))
        curves.append([(nearest.learning_rate, min(nearest.smoothed, highest))])
        legend += f", B suggested {suggested:g}"
    width = min(MAX_PLOT_WIDTH, shutil.get_terminal_size().columns)
    braille = terminal_plot.has_braille(sys.stdout.encoding)
    return f"{terminal_plot.plot(curves, width, PLOT_HEIGHT, braille, log_x=True)}\n{legend}"
