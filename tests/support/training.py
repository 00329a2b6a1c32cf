"""A trainer on a tiny run."""

import dataclasses
from pathlib import Path

import torch

from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.compute import choose
from microgpt_cli.data.dataset import Splits
from microgpt_cli.model.gpt import GPT
from microgpt_cli.runs import layout
from microgpt_cli.training.trainer import Trainer


def make(run: Path, trained: Path, **changes: object) -> Trainer:
    """A trainer on the tiny config of `trained`, in a folder of its own."""
    loaded = checkpoint.load(layout.find_checkpoint(str(trained)))
    config = dataclasses.replace(loaded.config, **changes)  # type: ignore[arg-type]
    run.mkdir()
    for name in (layout.CONFIG, layout.TOKENIZER):
        (run / name).write_bytes((trained / name).read_bytes())
    torch.manual_seed(0)
    model = GPT(config.model, loaded.tokenizer.vocab_size)
    ids = torch.arange(500) % loaded.tokenizer.vocab_size
    facts = {name: fact for name, fact in loaded.meta.items() if name not in ("format", "step", "state")}
    return Trainer(
        run, config, model, Splits(ids[:400], ids[400:]), choose("cpu", "auto", config.engine, config.compile), facts
    )
