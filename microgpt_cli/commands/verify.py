"""`microgpt verify`: check the integrity of a run's checkpoints, and the reproducibility of training from one."""

import tempfile
from pathlib import Path

import torch
from tqdm import tqdm

from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.checkpoints.meta import engine_of
from microgpt_cli.commands import Invocation
from microgpt_cli.commands.console import bytes_bar
from microgpt_cli.compute import choose, why_not_native
from microgpt_cli.config import VerifyConfig
from microgpt_cli.data.corpus import open_corpus
from microgpt_cli.data.dataset import encode, split
from microgpt_cli.errors import RunStopped, UserError
from microgpt_cli.runs import layout, storage
from microgpt_cli.training.trainer import Stepped, Trainer


def run(config: VerifyConfig, invocation: Invocation) -> None:
    """Check hashes, schema, names, shapes and values of each checkpoint; with `replay`, retrain and compare bits."""
    folder = layout.find_run(config.ckpt, "ckpt")
    paths = [folder] if (folder / layout.MANIFEST).is_file() else layout.step_folders(folder)
    if not paths:
        raise UserError(f"ckpt={config.ckpt}: no checkpoint in this folder; give a run's folder, as in outputs/train/…")
    problems = 0
    valid: dict[int, Path] = {}
    for path in reversed(paths):
        try:
            step = _check(path)
        except UserError as error:
            problems += 1
            print(f"BAD   {error}")
        else:
            valid[step] = path
            print(f"good  {path}: all checksums match, all values are finite")
    if problems:
        raise RunStopped(f"{problems} of {len(paths)} checkpoints are damaged; the others are usable")
    if config.replay:
        _replay(valid, config.replay)


def _check(path: Path) -> int:
    """Check a checkpoint and return its step. Raises `UserError` if it is invalid."""
    return checkpoint.load(path).step


def _replay(valid: dict[int, Path], steps: int) -> None:
    """Train `steps` steps from a checkpoint and compare with a later one of the run, or with a second replay."""
    start = next((step for step in valid if step + steps in valid), max(valid))
    loaded = checkpoint.load(valid[start])
    if start + steps > loaded.config.max_steps:
        raise UserError(
            f"replay={steps}: can't replay {steps} steps from step {start}: the run ends at {loaded.config.max_steps}"
        )
    replayed = _retrain(loaded, steps)
    if start + steps in valid:
        other, what = checkpoint.load(valid[start + steps]).model, f"the run's step {start + steps:,}"
    else:
        other, what = _retrain(loaded, steps), "a second replay"
    different = [name for name, tensor in replayed.items() if not torch.equal(tensor, other[name])]
    if different:
        raise RunStopped(
            f"{steps} steps from step {start:,} differ from {what}: {', '.join(different[:3])} "
            f"(trained on {loaded.meta['device']} with torch {loaded.meta['torch']}, {loaded.meta['threads']} threads)"
        )
    print(f"good  {steps} steps from step {start:,} are bit-identical to {what}")


def _retrain(loaded: checkpoint.Checkpoint, steps: int) -> dict[str, torch.Tensor]:
    """The weights `steps` steps after a checkpoint, trained in a temporary folder."""
    config = loaded.config
    engine, compiled = engine_of(loaded.meta)
    device = "cpu" if loaded.meta["device"] == "cpu" else config.device
    why_not = why_not_native() if engine == "native" else ""
    if why_not:
        raise UserError(f"replay={steps}: the run was trained with engine=native, which is not available: {why_not}")
    noted, dtype = loaded.meta["threads"], loaded.meta["dtype"]
    compute = choose(device, dtype, engine, compiled, config.threads, trained=config.model, recorded_threads=noted)
    with bytes_bar("reading the text") as progress:
        corpus = open_corpus(config.data, progress)
        ids, text_sha256 = encode(corpus, loaded.tokenizer, Path(config.data.cache_dir), progress)
    if text_sha256 != loaded.meta["text_sha256"]:
        raise UserError(f"{corpus.name}: the text has changed since the run, so its steps can't be replayed")
    splits = split(ids, config.data.val_fraction, config.model.block_size)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / layout.CHECKPOINTS).mkdir()
        for name in (layout.CONFIG, layout.TOKENIZER):
            storage.write_new(Path(scratch) / name, storage.read_bytes(loaded.path / name))
        model = checkpoint.build_model(loaded, compute.device)
        trainer = Trainer(Path(scratch), config, model, splits, compute, {}, loaded)
        with tqdm(total=steps, desc="step", disable=None, leave=False) as bar:
            for event in trainer.run():
                if isinstance(event, Stepped):
                    bar.update()
                    if event.step == loaded.step + steps:
                        break
    return {name: p.detach().cpu() for name, p in model.named_parameters()}
