"""`microgpt verify`: is every checkpoint of a run whole, and does training from one give the same bits again?"""

import tempfile
from pathlib import Path

import torch
from tqdm import tqdm

from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.commands import Invocation
from microgpt_cli.commands.console import bytes_bar
from microgpt_cli.compute import DTYPES, choose, why_no_native
from microgpt_cli.config import VerifyConfig
from microgpt_cli.data.corpus import open_corpus
from microgpt_cli.data.dataset import encode, split
from microgpt_cli.errors import RunStopped, UserError
from microgpt_cli.runs import layout, storage
from microgpt_cli.training.trainer import Stepped, Trainer


def run(config: VerifyConfig, invocation: Invocation) -> None:
    """Check hashes, schema, names, shapes and numbers of each checkpoint; then, if asked, train again and compare."""
    folder = layout.find_run(config.ckpt, "ckpt")
    paths = [folder] if (folder / layout.MANIFEST).is_file() else layout.step_folders(folder)
    if not paths:
        raise UserError(f"ckpt={config.ckpt}: no checkpoint in this folder; give a run's folder, as in outputs/train/…")
    problems = 0
    whole: dict[int, Path] = {}
    for path in reversed(paths):
        try:
            step = _check(path)
        except UserError as error:
            problems += 1
            print(f"BAD   {error}")
        else:
            whole[step] = path
            print(f"good  {path}: every byte as written, every number finite")
    if problems:
        raise RunStopped(f"{problems} of {len(paths)} checkpoints are damaged; the others can be used")
    if config.replay:
        _replay(whole, config.replay)


def _check(path: Path) -> int:
    """Raises `UserError` if anything about a checkpoint is wrong; its step."""
    loaded = checkpoint.load(path)
    checkpoint.build_model(loaded, torch.device("cpu"))
    for name, tensor in {**loaded.model, **loaded.optim}.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {name} has numbers that are not finite")
    return loaded.step


def _replay(whole: dict[int, Path], steps: int) -> None:
    """Train `steps` steps from a checkpoint: to another one of the run if there is one, else twice."""
    start = next((step for step in whole if step + steps in whole), max(whole))
    began = checkpoint.load(whole[start])
    if start + steps > began.config.max_steps:
        raise UserError(f"replay={steps}: the run ends {began.config.max_steps - start} steps after its step {start}")
    made = _trained_again(began, steps)
    if start + steps in whole:
        other, what = checkpoint.load(whole[start + steps]).model, f"the run's own step {start + steps:,}"
    else:
        other, what = _trained_again(began, steps), "the same steps once more"
    different = [name for name, tensor in made.items() if not torch.equal(tensor, other[name])]
    if different:
        raise RunStopped(
            f"{steps} steps from step {start:,} are not {what} to the bit: {', '.join(different[:3])} differ "
            f"(trained on {began.meta['device']} with torch {began.meta['torch']}, {began.meta['threads']} threads)"
        )
    print(f"good  {steps} steps from step {start:,} give {what} to the bit")


def _trained_again(began: checkpoint.Checkpoint, steps: int) -> dict[str, torch.Tensor]:
    """The weights `steps` steps after a checkpoint, trained in a folder that goes away."""
    config = began.config
    compiled = str(began.meta.get("compile", False)).lower()
    device = "cpu" if began.meta["device"] == "cpu" else config.device
    if compiled == "native":
        why_not = why_no_native(torch.device("cpu"), DTYPES[began.meta["dtype"]], config.model)
        if why_not:
            raise UserError(f"replay={steps}: this run was trained in part in C, and here: {why_not}")
    noted = began.meta["threads"]
    compute = choose(device, began.meta["dtype"], compiled, config.threads, trained=config.model, noted_threads=noted)
    with bytes_bar("reading the text") as progress:
        corpus = open_corpus(config.data, progress)
        ids, text_sha256 = encode(corpus, began.tokenizer, Path(config.data.cache_dir), progress)
    if text_sha256 != began.meta["text_sha256"]:
        raise UserError(f"{corpus.name}: the text has changed since the run, so its steps can't be repeated")
    splits = split(ids, config.data.val_fraction, config.model.block_size)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / layout.CHECKPOINTS).mkdir()
        for name in (layout.CONFIG, layout.TOKENIZER):
            storage.write_new(Path(scratch) / name, storage.read_bytes(began.path / name))
        model = checkpoint.build_model(began, compute.device)
        trainer = Trainer(Path(scratch), config, model, splits, compute, {}, began)
        with tqdm(total=steps, desc="step", disable=None, leave=False) as bar:
            for event in trainer.run():
                if isinstance(event, Stepped):
                    bar.update()
                    if event.step == began.step + steps:
                        break
    return {name: p.detach().cpu() for name, p in model.named_parameters()}
