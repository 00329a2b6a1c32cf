"""Does `lr_find` suggest what a sweep would find, and by which rule? On Tiny Shakespeare, for several settings.

    python benchmarks/lr_find.py TEXT_FILE

For each setting: short runs over a grid of peak learning rates (cosine to a tenth), the range test with two seeds, and
what each of the rules in use makes of its curve, as a factor of the sweep's best rate. What stands in
benchmarks/results/lr_find.json is not measured again, so a run that was stopped goes on.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from microgpt_cli import __version__, randomness
from microgpt_cli.cli import main as cli
from microgpt_cli.compute import choose
from microgpt_cli.config import TrainConfig
from microgpt_cli.data.corpus import open_corpus
from microgpt_cli.data.dataset import Splits, build_tokenizer, encode, sample_starts, split
from microgpt_cli.model.gpt import GPT
from microgpt_cli.training import lr_find
from microgpt_cli.training.lr_find import Tried
from microgpt_cli.training.schedule import lr_at
from microgpt_cli.training.trainer import evaluate
from microgpt_cli.training.update import Update

KINDS = {
    "micro, batch 8": ["batch_size=8"],
    "micro, batch 32": [],
    "micro, batch 128": ["batch_size=128"],
    "micro gpt2": ["arch=gpt2"],
    "micro modern": ["arch=modern"],
    "mini, batch 16": ["model=mini", "batch_size=16"],
}
# Tried after the rules had been chosen by the ones above.
HELD_OUT = {
    "mini modern, batch 16": ["model=mini", "arch=modern", "batch_size=16"],
    "96 wide, 2 layers, batch 64": ["model.n_embd=96", "model.n_layer=2", "batch_size=64"],
}
SETTINGS = {
    f"{optim} {name}": [f"optim={optim}", *words]
    for optim in ("adamw", "muon")
    for name, words in (KINDS | HELD_OUT).items()
}
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
MUON_RATES = (4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 1.28e-1)
SEEDS = (1337, 1)
STEPS, EVAL_TOKENS = 300, 32_768
WITHIN = 3.0
RESULTS = Path(__file__).parent / "results" / "lr_find.json"


def smoothed(tried: Sequence[Tried]) -> tuple[list[float], list[float], int]:
    """Rates, smoothed losses, and where the lowest of these is."""
    losses = [step.smoothed for step in tried]
    return [step.learning_rate for step in tried], losses, min(range(len(losses)), key=losses.__getitem__)


def share_of_the_fall(share: float) -> Any:
    def rule(tried: Sequence[Tried]) -> float:
        rates, losses, lowest = smoothed(tried)
        start = losses[lr_find.START_STEPS - 1]
        threshold = start - share * (start - losses[lowest])
        return next(rate for rate, loss in zip(rates, losses, strict=True) if loss <= threshold)

    return rule


def below_the_lowest(factor: float) -> Any:
    def rule(tried: Sequence[Tried]) -> float:
        rates, _, lowest = smoothed(tried)
        return rates[lowest] / factor

    return rule


def steepest(tried: Sequence[Tried]) -> float:
    """Where the smoothed loss falls fastest against the logarithm of the rate."""
    rates, losses, lowest = smoothed(tried)
    slopes = [(losses[i + 1] - losses[i - 1], rates[i]) for i in range(lr_find.START_STEPS, max(lowest, 11))]
    return min(slopes)[1]


def valley(tried: Sequence[Tried]) -> float:
    """fastai's default: two thirds along the longest falling subsequence."""
    rates, losses, _ = smoothed(tried)
    length = [1] * len(losses)
    for i in range(1, len(losses)):
        length[i] = 1 + max((length[j] for j in range(i) if losses[j] > losses[i]), default=0)
    longest = max(length)
    end = length.index(longest)
    return rates[end - longest + int(2 * longest / 3)]


def times(factor: float, rule: Any) -> Any:
    return lambda tried: factor * rule(tried)


RULES = {
    "twice 95%": times(2, share_of_the_fall(0.95)),
    "95% of the fall": share_of_the_fall(0.95),
    "90% of the fall": share_of_the_fall(0.9),
    "80% of the fall": share_of_the_fall(0.8),
    "half of the fall": share_of_the_fall(0.5),
    "lowest / 3": below_the_lowest(3),
    "lowest / 4": below_the_lowest(4),
    "lowest / 10": below_the_lowest(10),
    "steepest": steepest,
    "valley": valley,
}


class Bench:
    """The text, read once."""

    def __init__(self, text_file: str) -> None:
        self.words = [f"data.path={text_file}", "device=cpu", "threads=1", f"max_steps={STEPS}"]
        self.compute = choose("cpu", "float32", "auto", threads=1)
        config = self.config()
        cache = Path(config.data.cache_dir)
        corpus = open_corpus(config.data)
        self.tokenizer = build_tokenizer(config.tokenizer, corpus, cache)
        self.ids, _ = encode(corpus, self.tokenizer, cache)

    def config(self, *words: str) -> TrainConfig:
        loaded: TrainConfig = cli.load_config("train", [*self.words, *words])
        return loaded

    def fresh(self, config: TrainConfig) -> tuple[GPT, Splits]:
        torch.manual_seed(randomness.derive(config.seed, randomness.WEIGHTS))
        return GPT(config.model, self.tokenizer.vocab_size), split(self.ids, 0.1, config.model.block_size)

    def val_loss(self, config: TrainConfig) -> float:
        """The held-out loss at the end of a short run."""
        [loss] = self.val_losses(config, STEPS, STEPS, EVAL_TOKENS)
        return loss

    def val_losses(self, config: TrainConfig, steps: int, interval: int, tokens: int) -> Iterator[float]:
        """The losses over so many held-out tokens in a run of so many steps, one every `interval` of them."""
        model, splits = self.fresh(config)
        update = Update.fresh(model, splits.train, config, self.compute)
        for step in range(steps):
            starts = sample_starts(len(splits.train), config.batch_size, config.model.block_size, config.seed, step)
            update(starts, lr_at(step, steps, config.optim), 1.0, lambda: False)
            if (step + 1) % interval == 0:
                sums, counts = zip(*evaluate(model, splits.val[: tokens + 1], self.compute), strict=True)
                yield float(sum(sums) / sum(counts))

    def curve(self, config: TrainConfig) -> list[Tried]:
        return list(lr_find.range_test(*self.fresh(config), config, self.compute))


def at_rate(config: TrainConfig, rate: float) -> TrainConfig:
    """The config with another peak; Muon's second rate keeps its ratio to it."""
    optim, second = config.optim, config.optim.adamw_learning_rate
    scaled = None if second is None else second * rate / optim.learning_rate
    return replace(config, optim=replace(optim, learning_rate=rate, adamw_learning_rate=scaled))


def main(text_file: str) -> None:
    bench = Bench(text_file)
    page: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    page |= {
        "command": "python benchmarks/lr_find.py tinyshakespeare.txt",
        "measured": f"val_loss of {EVAL_TOKENS:,} held-out tokens after {STEPS} steps, one seed",
        "torch": torch.__version__,
        "settings": page.get("settings", {}),
    }
    for name, words in SETTINGS.items():
        fresh = {"microgpt": __version__, "overrides": words, "val_loss": {}, "suggested": {}}
        row = page["settings"].setdefault(name, fresh)
        for seed in SEEDS:
            if str(seed) not in row["suggested"]:
                curve = bench.curve(bench.config(*words, f"seed={seed}"))
                row["suggested"][str(seed)] = {rule: float(f"{find(curve):.2g}") for rule, find in RULES.items()}
                RESULTS.write_text(json.dumps(page, indent=1) + "\n")
        for rate in MUON_RATES if "optim=muon" in words else RATES:
            if str(rate) not in row["val_loss"]:
                row["val_loss"][str(rate)] = round(bench.val_loss(at_rate(bench.config(*words), rate)), 4)
                RESULTS.write_text(json.dumps(page, indent=1) + "\n")
    page["within"] = {
        optim: compare({name: row for name, row in page["settings"].items() if name.startswith(optim)})
        for optim in ("adamw", "muon")
    }
    RESULTS.write_text(json.dumps(page, indent=1) + "\n")


def best_rate(val_loss: dict[str, float]) -> float:
    """The best rate of a sweep: the vertex of the parabola, over log rate, through its lowest loss and the two beside.

    The bottom is flat: between neighbours on the grid, chance decides which is lower.
    """
    rates, losses = zip(*sorted((float(rate), loss) for rate, loss in val_loss.items()), strict=True)
    lowest = min(range(len(losses)), key=losses.__getitem__)
    if not 0 < lowest < len(losses) - 1:
        return float(rates[lowest])
    before, here, after = losses[lowest - 1 : lowest + 2]
    offset = (before - after) / (2 * (before - 2 * here + after))  # in grid steps, between -1/2 and 1/2
    return float(rates[lowest] * (rates[1] / rates[0]) ** offset)


def compare(settings: dict[str, Any]) -> dict[str, str]:
    """Print the table, and say for each rule how often it came within the factor, and its worst factor."""
    factors: dict[str, list[float]] = {rule: [] for rule in RULES}
    print(f"{'setting':34}{'best of the sweep':>18}  " + "  ".join(f"{rule:>16}" for rule in RULES))
    for name, row in settings.items():
        best = row["best"] = float(f"{best_rate(row['val_loss']):.2g}")
        cells = []
        for rule in RULES:
            found = [suggested[rule] for suggested in row["suggested"].values()]
            factors[rule] += [max(rate / best, best / rate) for rate in found]
            cells.append(" ".join(f"{rate:.1e}" for rate in found))
        print(f"{name:34}{best:>18.1e}  " + "  ".join(f"{cell:>16}" for cell in cells))
    told = {
        rule: f"{sum(f <= WITHIN for f in found)} of {len(found)} within {WITHIN:g}, worst {max(found):.1f}"
        for rule, found in factors.items()
    }
    for rule, text in told.items():
        print(f"{rule:18}{text}")
    return told


if __name__ == "__main__":
    main(*sys.argv[1:])
