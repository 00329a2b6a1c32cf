"""The default number of CPU threads against one thread and against spinning as OpenMP does by itself.

    python benchmarks/threads.py model=micro,mini steps=400 rounds=5

Whole runs of `microgpt train`, in turns, in three situations: on the machine as it is, beside a process that keeps one
core busy, and beside another run of the same command. What counts is the tokens a second of the steps, as the run
notes them; the median of the rounds. Leave the machine alone meanwhile. Writes to benchmarks/results/.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import machine

STEPS = {"micro": 400, "mini": 60, "small": 4}  # that take a few seconds
ROUNDS = 3
CORES = os.cpu_count() or 1
GNU_SPINS = {"GOMP_SPINCOUNT": "300000"}  # what GNU's OpenMP does where nothing is said
# name → words and environment
WAYS: dict[str, tuple[list[str], dict[str, str]]] = {
    "default": ([], {}),
    "one": (["threads=1"], {}),
    "spinning": ([f"threads={CORES}"], GNU_SPINS),
}
QUIET, BUSY, TWO_RUNS = "quiet", "beside a busy process", "beside a run like it"
SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def main(words: list[str]) -> None:
    given, _ = machine.settings(words, {"model": "micro", "steps": "", "rounds": str(ROUNDS), "name": "threads"})
    found = []
    for size in given["model"].split(","):
        steps = int(given["steps"] or STEPS[size])
        found.append(measure(size, steps, int(given["rounds"]), lambda text: print(text, file=sys.stderr)))
        print(json.dumps(found[-1], indent=1))
    print(f"stored in {machine.store(given['name'], 'threads.py', words, {'rows': found})}")


def measure(
    size: str, steps: int, rounds: int = ROUNDS, progress: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Tokens a second by situation and way, and the ratios that have goals."""
    rates: dict[str, dict[str, list[float]]] = {
        QUIET: {name: [] for name in WAYS},
        BUSY: {name: [] for name in WAYS},
        TWO_RUNS: {name: [] for name in WAYS},
    }
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(rounds):
            for situation, ways in rates.items():
                for name, seen in ways.items():
                    progress(f"{size}, {situation}, {name}, round {number + 1} of {rounds}")
                    with busy_process() if situation == BUSY else contextlib.nullcontext():
                        seen.append(run(size, steps, name, 2 if situation == TWO_RUNS else 1, Path(scratch)))
    return {
        "model": size,
        "steps": steps,
        "tokens_per_sec": {
            situation: {name: round(statistics.median(seen)) for name, seen in ways.items()}
            for situation, ways in rates.items()
        },
        "quiet_default_to_spinning": spread(rates[QUIET]["default"], rates[QUIET]["spinning"]),
        "busy_default_to_one": spread(rates[BUSY]["default"], rates[BUSY]["one"]),
        "two_runs_default_to_one": spread(rates[TWO_RUNS]["default"], rates[TWO_RUNS]["one"]),
    }


def spread(rates: list[float], others: list[float]) -> list[float]:
    """Median, least and most of the ratio, round by round."""
    ratios = [rate / other for rate, other in zip(rates, others, strict=True)]
    return [round(value, 3) for value in (statistics.median(ratios), min(ratios), max(ratios))]


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """A process that takes all it gets of one core."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def run(size: str, steps: int, way: str, at_once: int, scratch: Path) -> float:
    """Tokens a second of a run, the slowest of as many as begin at once."""
    words, environment = WAYS[way]
    given = {name: value for name, value in os.environ.items() if name not in SETTINGS} | environment
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        runs = [Path(folder) / str(number) for number in range(at_once)]
        processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "microgpt_cli", "train", "device=cpu", f"model={size}"),
                    *(f"max_steps={steps}", "eval_interval=0", "checkpoint_interval=0", "sample_interval=0"),
                    *("eval_tokens=1024", f"out_dir={made}", *words),
                ],
                stdout=subprocess.DEVNULL,
                env=given,
            )
            for made in runs
        ]
        failed = [process.args for process in processes if process.wait()]
        if failed:
            raise RuntimeError(f"failed: {failed}")
        results = [json.loads((made / "result.json").read_text(encoding="utf-8")) for made in runs]
    return float(min(result["tokens_per_sec"] for result in results))


if __name__ == "__main__":
    main(sys.argv[1:])
