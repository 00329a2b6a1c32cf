"""`experiment=speedrun_cpu` as a whole process, beside nanoGPT's laptop recipe done the plain way on this machine.

    OMP_NUM_THREADS=2 python benchmarks/speedrun.py data.path=tinyshakespeare.txt rounds=3

The recipe: 0.8M parameters, 2,000 steps of 12 × 64 tokens, every 250 steps an evaluation by 20 random batches of each
split. Its time is put together from parts measured in the same sitting, in turns with the speedruns: a process that
imports torch and makes its optimizer, 2,000 times the median of plain steps (plain.py), 360 plain evaluation batches.
Reading the text, checkpoints and samples are left out of it. Writes to benchmarks/results/.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import machine
import torch
from plain import plain_step

from microgpt_cli.cli import main as cli
from microgpt_cli.data.dataset import gather_windows, sample_starts
from microgpt_cli.model.gpt import GPT

STEPS, EVALUATIONS, EVAL_BATCHES = 2000, 9, 2 * 20  # of nanoGPT's recipe: at steps 0, 250, …; both splits
MEASURED_STEPS, WARMUP_STEPS, VOCAB = 100, 10, 65
ROUNDS = 3
OPTIMIZER = "import torch; torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])"


def measure(text: str, rounds: int = ROUNDS) -> dict[str, object]:
    """Seconds of whole processes, ours and the plain way's, and their ratio."""
    config = cli.load_config("train", ["experiment=nanogpt_cpu"])
    ids = torch.randint(VOCAB, (1_000_000,)).to(torch.uint8)
    model = GPT(config.model, VOCAB)
    step = plain_step(model, ids, config.batch_size, compile=False)
    for number in range(WARMUP_STEPS):
        step(number)
    ours, losses, start, a_step, a_batch = [], [], [], [], []
    for seed in range(1337, 1337 + rounds):
        took, loss = _speedrun(text, seed)
        ours.append(took)
        losses.append(loss)
        start.append(_seconds(lambda: subprocess.run([sys.executable, "-c", OPTIMIZER], check=True)))
        a_step.append(_seconds(lambda: [step(number) for number in range(MEASURED_STEPS)]) / MEASURED_STEPS)
        a_batch.append(_seconds(lambda: _evaluate(model, ids, config.batch_size)) / EVAL_BATCHES)
    parts = {
        "import_torch_and_make_optimizer": statistics.median(start),
        "training": STEPS * statistics.median(a_step),
        "evaluating": EVALUATIONS * EVAL_BATCHES * statistics.median(a_batch),
    }
    plain = sum(parts.values())
    return {
        "ours_sec": [round(value, 2) for value in ours],
        "ours_val_loss": losses,
        "plain_sec": round(plain, 1),
        "plain_parts_sec": {name: round(value, 1) for name, value in parts.items()},
        "plain_ms_per_step": [round(1000 * value, 1) for value in a_step],
        "ratio": round(plain / statistics.median(ours), 1),
    }


def _speedrun(text: str, seed: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as scratch:
        words = [
            "train",
            "experiment=speedrun_cpu",
            f"data.path={os.path.abspath(text)}",
            f"seed={seed}",
            "out_dir=run",
        ]
        command = [sys.executable, "-m", "microgpt_cli", *words]
        took = _seconds(lambda: subprocess.run(command, cwd=scratch, stdout=subprocess.DEVNULL, check=True))
        result = json.loads((Path(scratch) / "run" / "result.json").read_text(encoding="utf-8"))
    return took, round(result["val_loss"], 4)


@torch.no_grad()
def _evaluate(model: GPT, ids: torch.Tensor, batch_size: int) -> None:
    model.eval()
    for number in range(EVAL_BATCHES):
        T = model.config.block_size
        _, loss = model(*gather_windows(ids, sample_starts(len(ids), batch_size, T, 0, number), T, ids.device))
        assert loss is not None
        loss.item()
    model.train()


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(words: list[str]) -> None:
    given, _ = machine.settings(words, {"data.path": "", "rounds": str(ROUNDS)})
    if not given["data.path"]:
        sys.exit("the loss is one on Tiny Shakespeare: give its file with data.path=")
    found = measure(given["data.path"], int(given["rounds"]))
    print(json.dumps(found, indent=1))
    machine.store("speedrun", "speedrun.py", words, found)


if __name__ == "__main__":
    main(sys.argv[1:])
