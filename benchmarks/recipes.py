"""Held-out losses of recipes on Tiny Shakespeare: mean and spread over seeds, without the files of a run.

    python benchmarks/recipes.py data.path=tinyshakespeare.txt device=cuda seeds=1,2,3 "" "optim=adamw" "model=mini"

Each quoted group of words is a recipe, what stands before them is common to all. Prints one JSON line for each.
"""

import json
import statistics
import sys

import torch

from microgpt_cli import randomness
from microgpt_cli.cli import main as cli
from microgpt_cli.commands import dataset_cache
from microgpt_cli.compute import choose
from microgpt_cli.config import TrainConfig
from microgpt_cli.data.dataset import sample_starts, split
from microgpt_cli.model.accounting import total_parameters
from microgpt_cli.model.gpt import GPT
from microgpt_cli.training.schedule import lr_at
from microgpt_cli.training.trainer import evaluate
from microgpt_cli.training.update import Update


def main(words: list[str]) -> None:
    common = [word for word in words if "=" in word and " " not in word]
    recipes = [word for word in words if word not in common] or [""]
    seeds = next((word[6:] for word in common if word.startswith("seeds=")), "1").split(",")
    common = [word for word in common if not word.startswith("seeds=")]
    for recipe in recipes:
        losses, parameters = [], 0
        for seed in seeds:
            config = cli.load_config("train", [*common, *recipe.split(), f"seed={seed}"])
            parameters, loss = learn(config)
            losses.append(round(loss, 4))
        spread = round(statistics.stdev(losses), 4) if len(losses) > 1 else None
        row = {"recipe": recipe, "parameters": parameters, "losses": losses}
        print(json.dumps(row | {"mean": round(statistics.mean(losses), 4), "sd": spread}), flush=True)


def learn(config: TrainConfig) -> tuple[int, float]:
    """Parameters, and the loss over the whole held-out split after the last step."""
    compute = choose(config.device, config.dtype, config.engine, config.compile, config.threads, trained=config.model)
    _, tokenizer, ids, _ = dataset_cache.read(config.data, config.tokenizer, None)
    splits = split(ids, config.data.val_fraction, config.model.block_size)
    torch.manual_seed(randomness.derive(config.seed, randomness.WEIGHTS))
    model = GPT(config.model, tokenizer.vocab_size).to(compute.device)
    update = Update.fresh(model, splits.train, config, compute)
    B, T = config.batch_size * config.grad_accum_steps, config.model.block_size
    for step in range(config.max_steps):
        starts = sample_starts(len(splits.train), B, T, config.seed, step)
        update(starts, lr_at(step, config.max_steps, config.optim), 1.0, lambda: False)
    parts = list(evaluate(model, splits.val, compute))
    return total_parameters(model), (sum(loss for loss, _ in parts) / sum(n for _, n in parts)).item()


if __name__ == "__main__":
    main(sys.argv[1:])
