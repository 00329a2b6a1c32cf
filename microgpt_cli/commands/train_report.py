"""What `microgpt train` says: before the first step, after the last, and what to type when a run has stopped."""

import shlex
from pathlib import Path
from typing import Any

from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.commands.console import duration, say, thousands
from microgpt_cli.config import TrainConfig
from microgpt_cli.data.baselines import Baselines
from microgpt_cli.data.tokenizers import Tokenizer
from microgpt_cli.model.accounting import total_parameters
from microgpt_cli.runs import layout, plots
from microgpt_cli.runs.diagnose import diagnose
from microgpt_cli.runs.run_summary import run_context
from microgpt_cli.training import metrics
from microgpt_cli.training.trainer import Trainer


def introduce(trainer: Trainer, tokenizer: Tokenizer, compare: Baselines, text_name: str) -> None:
    """What was chosen and why, and what loss to compare with."""
    config, splits, reasons = trainer.config, trainer.splits, trainer.compute.reasons
    size = config.model
    total = len(splits.train) + len(splits.val)
    unit = tokenizer.unit
    say(f"text      {text_name}: {total:,} {unit}, {tokenizer.vocab_size} different")
    held = (
        f"evaluated on {trainer.eval_tokens:,} of them"
        if trainer.eval_tokens < len(splits.val) - 1
        else "all evaluated"
    )
    say(f"split     {len(splits.train):,} to learn from, the last {len(splits.val):,} held out, {held}")
    say(
        f"model     {total_parameters(trainer.model):,} parameters: {size.n_layer} layers, {size.n_head} heads, "
        f"{size.n_embd} wide, context {size.block_size}"
    )
    for name in ("device", "dtype", "engine", "threads"):
        say(f"{name:9} {reasons[name]}")
    say(
        f"compare   a loss of {compare.uniform:.3f} is guessing (ln {tokenizer.vocab_size}), {compare.unigram:.3f} is "
        f"counting {unit}, {compare.bigram:.3f} counting pairs of them"
    )
    began = f", from step {trainer.state.step:,}" if trainer.state.step else ""
    say(f"run       {trainer.run_folder}{began}")


def conclude(trainer: Trainer, about: dict[str, Any], text: str) -> None:
    """The last sample, the loss, the best step, the time, what the numbers say, and what to type next."""
    state, run_folder = trainer.state, trainer.run_folder
    say(f"\n{text}\n")
    if trainer.is_pruned:
        say(f"pruned: other settings of this search did better by step {state.step:,}")
    if trainer.stopped_early:
        say(f"stopped early: {state.stale_evaluations} evaluations without a better one")
    say(
        f"val_loss {state.val_loss:.4f} after {state.step:,} steps in {duration(state.train_seconds)} "
        f"({thousands(state.tokens / state.train_seconds)} tokens/s); best {state.best_val_loss:.4f} at step "
        f"{state.best_step:,}"
    )
    for finding in diagnose(metrics.read(run_folder / layout.METRICS), trainer.config, run_context(about)):
        say(f"judged    {finding}")
    problem = plots.missing()
    say(f"note      no {layout.PLOT}: {problem}" if problem else f"curve     {run_folder / layout.PLOT}")
    say(f"next      microgpt sample ckpt={shlex.quote(str(run_folder))}")


def go_on(run_folder: Path, config: TrainConfig, resumed: checkpoint.Checkpoint | None) -> str:
    """What to type after a run has stopped."""
    steps = layout.step_folders(run_folder)
    if not steps:
        return "start again: nothing was saved yet"
    command = f"go on with: microgpt train resume={shlex.quote(str(run_folder))}"
    if resumed is not None and steps[0] == resumed.path and config.max_steps != resumed.config.max_steps:
        command += f" max_steps={config.max_steps}"  # no checkpoint knows of it yet
    return command


def smaller_batch(config: TrainConfig, run_folder: Path) -> str:
    """What to type so that a step of the same tokens needs less memory."""
    B, micro_batches = config.batch_size, config.grad_accum_steps
    divisor = next((n for n in range(2, B + 1) if B % n == 0), None)
    if divisor is None:
        return "one sequence at a time is too much already; take a smaller model.block_size, or a smaller model="
    cut = f"batch_size={B // divisor} grad_accum_steps={micro_batches * divisor}"
    how = "resume" if layout.step_folders(run_folder) else "from_run"
    return f"as many tokens a step in smaller parts: microgpt train {how}={shlex.quote(str(run_folder))} {cut}"
