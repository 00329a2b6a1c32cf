"""Kill sweeps of six jobs, go on with them, and compare the bits: `python killing_sweeps.py TRIES KILLS SEED`.

Like killing.py, a program of its own that forks a child for each try. SIGKILL, SIGTERM and SIGINT come at random
instants, one after the other, until the sweep is done; then every job must have ended with the bits that it ends with
when nobody interferes, and no job that was done may have been touched again. Prints JSON.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from killing import TEXT, in_child, status_of  # beside this program

import microgpt_cli.commands.train
from microgpt_cli.cli import main as cli
from microgpt_cli.runs import layout, plots
from microgpt_cli.sweeps import job

STEPS = 12
WORDS = [
    *("model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.block_size=8", "batch_size=4", "device=cpu"),
    *("threads=1", "data.path=my.txt", f"max_steps={STEPS}", "log_interval=3", "eval_interval=5"),
    *("checkpoint_interval=4", "sample_interval=0", "seed=range(3)", "optim.learning_rate=1e-3,3e-3"),
]
SWEEP, JOBS = Path("sweep"), 6


def sweep() -> int:
    """Begin the sweep, or go on with it where there is one."""
    begun = (SWEEP / "sweep.json").exists()
    return cli.main(["train", "-m", *WORDS, f"sweep.resume={SWEEP}" if begun else f"hydra.sweep.dir={SWEEP}"])


def outcomes() -> list[dict[str, bytes]]:
    """What must be the same for every job: weights, optimizer state, log, samples."""
    found = []
    for number in range(JOBS):
        run = SWEEP / str(number)
        last = run / layout.CHECKPOINTS / layout.step_name(STEPS)
        paths = [last / "model.safetensors", last / "optim.safetensors", run / layout.METRICS, run / layout.SAMPLES]
        found.append({path.name: path.read_bytes() for path in paths})
    return found


def done() -> dict[int, int]:
    """The jobs that are done, each with the time when its result was written."""
    numbers = [n for n in range(JOBS) if job.look(SWEEP / str(n)).status in job.DONE]
    return {n: (SWEEP / str(n) / layout.RESULT).stat().st_mtime_ns for n in numbers}


def main(tries: int, most_kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    plots.draw_loss = lambda *_: None  # type: ignore[assignment]  # a third of a job's time, and no part of this
    microgpt_cli.commands.train.LAST_SAMPLE_TOKENS = 5
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as home:
        os.chdir(home)
        os.environ["XDG_CACHE_HOME"] = home
        Path("my.txt").write_text(TEXT, encoding="utf-8")
        cli.load_config("train", WORDS[:-2])
        began = time.monotonic()
        assert status_of(in_child(sweep)) == 0
        duration = time.monotonic() - began
        expected = outcomes()
        draw = random.Random(seed)
        wrong: list[str] = []
        kills = Counter[str]()
        for _ in range(tries):
            shutil.rmtree(SWEEP)
            before: dict[int, int] = {}
            for number in draw.choices((signal.SIGKILL, signal.SIGTERM, signal.SIGINT), k=most_kills):
                pid = in_child(sweep)
                time.sleep(draw.uniform(0, duration))
                os.kill(pid, number)
                status = status_of(pid)
                kills[signal.Signals(number).name if status else "none: it had ended"] += 1
                if status not in (0, -signal.SIGKILL, -number, 128 + number):
                    wrong.append(f"status {status} after {signal.Signals(number).name}")
                if not before.items() <= done().items():
                    wrong.append(f"a job that was done is touched: {before}, {done()}")
                before = done()
                if len(before) == JOBS:
                    break
            status = status_of(in_child(sweep))
            if status != 0 or not before.items() <= done().items():
                wrong.append(f"in the end: status {status}, done before {before}, done now {done()}")
            for number, (found, alone) in enumerate(zip(outcomes(), expected, strict=True)):
                wrong += [f"job {number}: {name} {data!r:.300}" for name, data in found.items() if data != alone[name]]
        os.chdir("/")
    print(json.dumps({"tries": tries, "wrong": wrong, "kills": dict(kills), "seconds": round(duration, 1)}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
