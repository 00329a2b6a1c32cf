"""The lines that `microgpt train` prints before the first step and after the last, and how to resume a stopped run."""

import shlex
from pathlib import Path
from typing import Any

from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.commands.console import duration, say, thousands
from microgpt_cli.config import TrainConfig
from microgpt_cli.data.baselines import Baselines
from microgpt_cli.data.dataset import Splits
from microgpt_cli.data.tokenizers import Tokenizer
from microgpt_cli.model.accounting import total_parameters
from microgpt_cli.runs import layout, plots
from microgpt_cli.runs.diagnose import diagnose
from microgpt_cli.runs.run_summary import run_context
from microgpt_cli.training import metrics
from microgpt_cli.training.trainer import Trainer


def introduce(trainer: Trainer, tokenizer: Tokenizer, baselines: Baselines, text_name: str) -> None:
    """Print the data, the model, where it runs and why, the baseline losses and the folder of the run."""
    config, splits, reasons = trainer.config, trainer.splits, trainer.compute.reasons
    size = config.model
    total = len(splits.train) + len(splits.val)
    say(f"data      {text_name}: {total:,} {tokenizer.unit}, vocabulary of {tokenizer.vocab_size:,}")
    part = f"; evaluated on {trainer.eval_tokens:,}" if trainer.eval_tokens < len(splits.val) - 1 else ""
    say(split_line(splits, config.data.val_fraction) + part)
    say(
        f"model     {total_parameters(trainer.model):,} parameters: {size.n_layer} layers, {size.n_head} heads, "
        f"width {size.n_embd}, context {size.block_size}"
    )
    for name in ("device", "dtype", "engine", "threads"):
        say(f"{name:9} {reasons[name]}")
    say(baselines_line(baselines, tokenizer))
    start = f", from step {trainer.state.step:,}" if trainer.state.step else ""
    say(f"run       {trainer.run_folder}{start}")


def split_line(splits: Splits, val_fraction: float) -> str:
    """The sizes of the two splits, as `train` and `doctor` print them."""
    share = f"the last {100 * val_fraction:.3g}%"
    return f"split     {len(splits.train):,} training, {len(splits.val):,} validation ({share})"


def baselines_line(baselines: Baselines, tokenizer: Tokenizer) -> str:
    """The losses of predictors without a neural network, as `train` and `doctor` print them."""
    return (
        f"baselines uniform {baselines.uniform:.3f}, unigram {baselines.unigram:.3f}, bigram {baselines.bigram:.3f} "
        f"(nats per {tokenizer.unit.removesuffix('s')})"
    )


def conclude(trainer: Trainer, about: dict[str, Any], sample: str) -> None:
    """Print the last sample, the result, the diagnosis, the plot and the command to type next."""
    state, run_folder = trainer.state, trainer.run_folder
    say(f"\n{sample}\n")
    if trainer.is_pruned:
        say(f"note      pruned: other trials of this search had lower losses at step {state.step:,}")
    if trainer.stopped_early:
        say(f"note      stopped early: {state.stale_evaluations} evaluations without improvement")
    say(
        f"result    val_loss {state.val_loss:.4f} after {state.step:,} steps in {duration(state.train_seconds)} "
        f"({thousands(state.tokens / state.train_seconds)} tokens/s); best {state.best_val_loss:.4f} at step "
        f"{state.best_step:,}"
    )
    for finding in diagnose(metrics.read(run_folder / layout.METRICS), trainer.config, run_context(about)):
        say(f"diagnosis {finding}")
    problem = plots.missing()
    say(f"note      no {layout.PLOT}: {problem}" if problem else f"plot      {run_folder / layout.PLOT}")
    say(f"next      microgpt sample ckpt={shlex.quote(str(run_folder))}")


def how_to_resume(run_folder: Path, config: TrainConfig, resumed: checkpoint.Checkpoint | None) -> str:
    """What to type after a run has stopped."""
    steps = layout.step_folders(run_folder)
    if not steps:
        return "start again: nothing was saved yet"
    command = f"resume with: microgpt train resume={shlex.quote(str(run_folder))}"
    if resumed is not None and steps[0] == resumed.path and config.max_steps != resumed.config.max_steps:
        command += f" max_steps={config.max_steps}"  # the checkpoint still has the old value
    return command


def smaller_batch(config: TrainConfig, run_folder: Path) -> str:
    """The command that makes the same steps in smaller micro-batches."""
    B, micro_batches = config.batch_size, config.grad_accum_steps
    divisor = next((n for n in range(2, B + 1) if B % n == 0), None)
    if divisor is None:
        return "one sequence at a time does not fit; try a smaller model.block_size or a smaller model="
    cut = f"batch_size={B // divisor} grad_accum_steps={micro_batches * divisor}"
    how = "resume" if layout.step_folders(run_folder) else "from_run"
    return (
        f"try smaller micro-batches, as many tokens per step: microgpt train {how}={shlex.quote(str(run_folder))} {cut}"
    )
