"""`microgpt compare`: runs side by side: settings that differ, curves, losses, and continuations of one prompt."""

import os
import shutil
import sys

from microgpt_cli.commands import Invocation
from microgpt_cli.commands.runs import label, plot_folder
from microgpt_cli.config import CompareConfig
from microgpt_cli.errors import UserError
from microgpt_cli.runs import layout, plots, reading, storage, table, terminal_plot
from microgpt_cli.runs.escape import readable

PLOT = "compare.png"
PLOT_HEIGHT = 16  # lines
MAX_RUNS = len(terminal_plot.LETTERS)


def run(config: CompareConfig, invocation: Invocation) -> None:
    """Print the comparison, and draw the curves in one plot."""
    if len(config.paths) > MAX_RUNS:
        raise UserError(f"{len(config.paths)} runs: at most {MAX_RUNS} can be compared; microgpt runs lists more")
    folders = [layout.find_run_folder(path, "paths") for path in config.paths]
    runs = [run for folder in folders for run in reading.read_runs([folder])]
    letters = terminal_plot.LETTERS[: len(runs)]
    width = shutil.get_terminal_size().columns
    drawn = _draw(runs, letters, config.out)
    for letter, run in zip(letters, runs, strict=True):
        print(f"{letter}  {table.printable(str(run.path))}")
    print(f"\n{table.side_by_side(runs, letters)}\n")
    curves = [reading.val_curve(run) for run in runs]
    braille = terminal_plot.has_braille(sys.stdout.encoding)
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print("val_loss against the step")
    print(terminal_plot.plot(curves, width, PLOT_HEIGHT, braille, colour))
    print(f"\ncurves    {drawn}", flush=True)
    comparable = table.comparability(runs)
    if comparable:
        print(f"note      {comparable}")
    for run in runs:
        if run.problem:
            print(f"damaged   {table.printable(str(run.path))}: {table.printable(run.problem)}")
    if config.sample:
        texts = _continuations(config)
        print(f"\nprompt={config.prompt!r} temperature={config.temperature:g} seed={config.seed}\n")
        print(terminal_plot.side_by_side(texts, list(letters), width))


def _draw(runs: list[reading.Run], letters: str, out: str | None) -> str:
    """Draw the plot and return its path; if the runs' folder is not writable, the reason instead of the path."""
    names = table.shown_keys(runs)
    curves = {
        f"{letter}  {label(run, names)}": reading.val_curve(run) for letter, run in zip(letters, runs, strict=True)
    }
    path = plot_folder(runs, out) / PLOT
    missing = plots.missing()
    if missing and out is not None:
        raise UserError(f"out={out}: {missing}")
    if missing:
        return f"not drawn: {missing}"
    try:
        plots.draw_curves(path, {name: points for name, points in curves.items() if points}, f"{len(runs)} runs")
    except OSError as error:
        problem = f"{storage.explain(error)}, or choose another folder with out="
        if out is not None:
            raise UserError(problem) from error
        return f"not written: {problem}"
    return str(path)


def _continuations(config: CompareConfig) -> list[str]:
    """The continuation of the prompt by each run, or the reason that there is none. Imports torch."""
    from microgpt_cli.checkpoints.model_files import load_model
    from microgpt_cli.compute import choose
    from microgpt_cli.data.tokenizers import unpack
    from microgpt_cli.generation.generate import decode_stream, generate
    from microgpt_cli.generation.sampling import Sampler, UniformStream

    compute = choose(config.device, "auto")
    texts = []
    for path in config.paths:
        try:
            loaded = load_model(layout.find_checkpoint(path), compute.device)
            tokenizer, block_size = loaded.tokenizer, loaded.config.model.block_size
            encoded = tokenizer.encode(config.prompt)
            ids = unpack(encoded[-block_size * tokenizer.itemsize :], tokenizer.itemsize) or [tokenizer.start_id]
            model = loaded.model.eval()
        except UserError as error:
            texts.append(f"({table.printable(str(error))})")
            continue
        sampler, draws = Sampler(config.temperature), UniformStream(config.seed, 1)
        with compute.autocast():
            steps = generate(model, ids, config.max_new_tokens, sampler, draws)
            texts.append(readable(config.prompt + "".join(decode_stream(steps, 0, tokenizer.text_stream()))))
    return texts
