"""How many steps does pruning save, and what does it cost? On Tiny Shakespeare, `micro`, a grid of 16 settings.

    python benchmarks/pruning.py TEXT_FILE

First every setting is trained to its end with each of three seeds, and its validation loss recorded every 25 steps: the
full grid. Then the search goes through the same grid, in random orders, with the study and the pruner that
`hydra/sweeper=optuna` uses, and is given the recorded losses: a run is a function of its settings, so it would
have had the same ones. What stands in benchmarks/results/pruning.json is not trained again.
"""

import json
import statistics
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch
from lr_find import Bench

from microgpt_cli import __version__
from microgpt_cli.config import TrainConfig
from microgpt_cli.sweeps.study import Dimension, Settings, Study, TrialPruner

SPACE = [
    Dimension("optim.learning_rate", ("5e-4", "1e-3", "2e-3", "4e-3", "8e-3", "1.6e-2", "3.2e-2", "6.4e-2")),
    Dimension("arch", ("article", "modern")),
]
SEEDS = (1, 2, 3)
ORDERS = range(10)
STEPS, EVAL_INTERVAL, EVAL_TOKENS = 400, 25, 8192
BATCH_SIZE = 8  # of 32 tokens: a grid takes minutes
WAYS = {
    "asha, 1 in 3, from 25": Settings("grid", "asha", None, 25, 3, 0),
    "asha, 1 in 3, from 50": Settings("grid", "asha", None, 50, 3, 0),
    "asha, 1 in 4, from 25": Settings("grid", "asha", None, 25, 4, 0),
    "asha, 1 in 4, from 50": Settings("grid", "asha", None, 50, 4, 0),
    "median, from 50": Settings("grid", "median", None, 50, 4, 0),
}
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # the journal is synced at each evaluation
RESULTS = Path(__file__).parent / "results" / "pruning.json"


def curve(bench: Bench, config: TrainConfig) -> list[float]:
    """The validation losses of a run, one every `EVAL_INTERVAL` steps."""
    return [round(loss, 4) for loss in bench.val_losses(config, STEPS, EVAL_INTERVAL, EVAL_TOKENS)]


def search(settings: Settings, curves: dict[str, list[float]]) -> tuple[int, float]:
    """Go through the grid with a pruner: the steps that it took, and the final loss of the setting that it found."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        sweep, steps, found = Path(folder), 0, (float("inf"), "")
        study = Study(sweep, SPACE, settings)
        while study.sampled < study.n_trials:
            number, overrides = study.ask()
            name, pruner = " ".join(overrides), TrialPruner(sweep / str(number))
            losses, status = curves[name], "finished"
            for i, loss in enumerate(losses):
                step = (i + 1) * EVAL_INTERVAL
                if pruner.should_prune(step, loss) and step < STEPS:
                    status = "pruned"
                    break
            steps += step
            best = min(losses[: i + 1])
            if status == "finished":
                found = min(found, (best, name))
            study.tell(number, status, best)
        return steps, found[0]


def main(text_file: str) -> None:
    bench = Bench(text_file)
    page: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    curves = page.get("curves", {})
    page |= {
        "command": "python benchmarks/pruning.py tinyshakespeare.txt",
        "versions": {"microgpt": __version__, "torch": torch.__version__},
        "curves": curves,
    }
    for seed in SEEDS:
        row = curves.setdefault(str(seed), {})
        for point in product(*(dimension.values for dimension in SPACE)):
            words = [f"{dimension.key}={text}" for dimension, text in zip(SPACE, point, strict=True)]
            if " ".join(words) not in row:
                row[" ".join(words)] = curve(
                    bench, bench.config(*words, f"seed={seed}", f"batch_size={BATCH_SIZE}", f"max_steps={STEPS}")
                )
                RESULTS.write_text(json.dumps(page) + "\n")
    page["table"] = compare(curves)
    RESULTS.write_text(json.dumps(page) + "\n")


def compare(curves: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Print the table: for each way and training seed, over the orders, the share of the grid's steps, and the loss."""
    size = STEPS * len(next(iter(curves.values())))
    rows: list[dict[str, Any]] = []
    print(f"{'way':24}{'seed':>5}{'grid best':>11}{'found':>9}{'worst':>9}{'same':>7}{'steps':>8}{'most':>7}")
    for way, settings in WAYS.items():
        for seed, row in curves.items():
            best = min(min(losses) for losses in row.values())
            tries = [search(Settings(**{**settings.__dict__, "seed": order}), row) for order in ORDERS]
            shares, losses = [steps / size for steps, _ in tries], [loss for _, loss in tries]
            rows.append(
                {
                    "way": way,
                    "seed": int(seed),
                    "grid_best": best,
                    "found_mean": round(statistics.mean(losses), 4),
                    "found_worst": max(losses),
                    "found_the_same": sum(loss == best for loss in losses),
                    "orders": len(tries),
                    "share_of_steps_mean": round(statistics.mean(shares), 3),
                    "share_of_steps_most": round(max(shares), 3),
                }
            )
            r = rows[-1]
            print(
                f"{way:24}{seed:>5}{best:>11.4f}{r['found_mean']:>9.4f}{r['found_worst']:>9.4f}"
                f"{r['found_the_same']:>4}/{r['orders']}{r['share_of_steps_mean']:>8.0%}{r['share_of_steps_most']:>7.0%}"
            )
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:])
