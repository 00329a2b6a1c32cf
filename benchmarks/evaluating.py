"""The share of a run that goes into evaluating: the default run's, and that of recipes in `conf/experiment/`.

    python benchmarks/evaluating.py [experiment=article,nanogpt_cpu] [text=FILE]

A short run tells what a step and an evaluation take, from its own `timings.jsonl`; its config tells how many of each
the whole run makes. Without `text=` Tiny Shakespeare is taken from `MICROGPT_SHAKESPEARE`, or downloaded.
"""

import contextlib
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import machine

from microgpt_cli.cli import main as cli

STEPS, SKIPPED = 60, 20  # of the short run; those that warm it up
NEWCOMERS = "article,article_muon,article_modern,nanogpt_cpu,speedrun_cpu"


def main(words: list[str]) -> None:
    given, _ = machine.settings(words, {"experiment": NEWCOMERS, "text": ""})
    runs = {"default": []} | {name: of_experiment(name, given["text"]) for name in given["experiment"].split(",")}
    for name, run in runs.items():
        print(f"{name:20} {share(run):6.1%} of the run evaluates", flush=True)


def of_experiment(name: str, text: str) -> list[str]:
    """The words of a run of this recipe on Tiny Shakespeare."""
    return [f"experiment={name}", *shakespeare(text)]


def shakespeare(text: str) -> list[str]:
    path = text or os.environ.get("MICROGPT_SHAKESPEARE")
    return [f"data.path={Path(path).absolute()}"] if path else ["data=shakespeare"]


def share(words: Sequence[str]) -> float:
    """Seconds of all evaluations of a run over those and the seconds of all its steps.

    Raises:
        RuntimeError: the run failed, with what it said.
    """
    config = cli.load_config("train", list(words))
    evaluations = math.ceil(config.max_steps / config.eval_interval) if config.eval_interval else 1
    with tempfile.TemporaryDirectory() as home:
        run = Path(home) / "run"
        short = [f"max_steps={STEPS}", f"log_interval={SKIPPED}", "sample_interval=0", "checkpoint_interval=0"]
        own = {word.partition("=")[0]: word for word in [*words, *short, "eval_interval=0", f"out_dir={run}"]}
        quietly(["train", *own.values()], home)
        lines = [json.loads(line) for line in (run / "timings.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = {line["step"]: line["seconds"] for line in lines if "seconds" in line}
    step = (seconds[STEPS] - seconds[SKIPPED]) / (STEPS - SKIPPED)
    evaluating = evaluations * sum(line.get("evaluating_seconds", 0.0) for line in lines)
    return evaluating / (evaluating + config.max_steps * step)


def quietly(command: Sequence[str], folder: str) -> None:
    """Run a command line in a folder, its words set aside unless it fails."""
    out = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = cli.main(command)
    if status:
        raise RuntimeError(out.getvalue().strip())


if __name__ == "__main__":
    main(sys.argv[1:])
