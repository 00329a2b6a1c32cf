"""A sweep of short jobs beside one run of the same steps: what the folders, logs and plots of jobs cost.

    python benchmarks/sweep_speed.py [name=FILE] [rounds=N] [key=value …]

20 jobs of 100 steps and one run of 2,000 that evaluates, and so saves, as often, in turns in one process; the median of
the rounds counts, in seconds on the clock and of the processor. Writes to benchmarks/results/.
"""

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time

import machine

from microgpt_cli.cli import main as cli

JOBS, STEPS = 20, 100
WARM_UP = ["max_steps=2", "sample_interval=0"]


def main(words: list[str]) -> None:
    given, common = machine.settings(words, {"name": "sweep_speed", "rounds": "3"}, more=True)
    sweep = ["train", "-m", *common, f"seed=range({JOBS})", f"max_steps={STEPS}"]
    run = ["train", *common, f"max_steps={JOBS * STEPS}", f"eval_interval={STEPS}"]
    rows = []
    with tempfile.TemporaryDirectory() as home, contextlib.chdir(home):
        for command in (["train", *common, *WARM_UP], ["train", "-m", *common, "seed=1,2", *WARM_UP]):
            timed(command)
        for _ in range(int(given["rounds"])):
            row = {"sweep": timed(sweep), "run": timed(run)}
            rows.append(row | {"ratio": [s / r for s, r in zip(*row.values(), strict=True)]})
            print(json.dumps(rows[-1]), flush=True)
    clock, processor = (statistics.median(row["ratio"][i] for row in rows) for i in range(2))
    found = {
        "ratio of seconds on the clock": round(clock, 3),
        "ratio of seconds of the processor": round(processor, 3),
        "rounds": [{name: [round(value, 3) for value in pair] for name, pair in row.items()} for row in rows],
    }
    machine.store(given["name"], "sweep_speed.py", words, found)


def timed(command: list[str]) -> tuple[float, float]:
    """Run a command line, its words set aside: (seconds on the clock, seconds of the processor)."""
    clock, processor = time.perf_counter(), time.process_time()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        status = cli.main(command)
    assert status == 0, command
    return time.perf_counter() - clock, time.process_time() - processor


if __name__ == "__main__":
    main(sys.argv[1:])
