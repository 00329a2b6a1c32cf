"""Checkpoints: written atomically, verified by checksums, without pickle.

    ckpt/step-00001000/
        model.safetensors     weights by name, tied ones once
        optim.safetensors     the optimizer's state, by `adamw/PARAMETER/STATE`
        meta.json             step, tokens, best, sizes of the logs, hashes, versions
        config.json  tokenizer.json
        MANIFEST.json         size and sha256 of all the others; written last

The folder of a step is self-contained. No random state is stored: random draws are functions of seed and step.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from microgpt_cli.checkpoints.meta import FORMAT
from microgpt_cli.checkpoints.model_files import Description, describe
from microgpt_cli.checkpoints.tensor_file import check_names, open_tensors
from microgpt_cli.errors import UserError
from microgpt_cli.model.accounting import empty_model
from microgpt_cli.model.gpt import GPT
from microgpt_cli.runs import layout, storage
from microgpt_cli.runs.layout import META, MODEL, OPTIM, STEP_FILES
from microgpt_cli.training.optimizers import make_optimizer

KEEP_LAST = 2
NO_OPTIMIZER = " (the optimizer's state): sample, eval and inspect work without it, resuming does not"


@dataclass(frozen=True)
class Checkpoint(Description):
    """Everything that is needed to resume a run, verified."""

    manifest: dict[str, Any]
    meta: dict[str, Any]
    model: dict[str, Tensor]
    optim: dict[str, Tensor]

    @property
    def step(self) -> int:
        return int(self.meta["step"])


def save(
    run: Path,
    step: int,
    weights: Mapping[str, Tensor],
    optim_state: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    best: int | None,
) -> Path:
    """Publish a checkpoint, then remove all but the last two and the best.

    Args:
        run: the run's folder, whose lock the caller holds.
        step: finished optimizer steps.
        weights: of the model, tied ones under each name.
        optim_state: of the optimizer.
        meta: other state of the run; plain JSON.
        best: step with the lowest val_loss so far.
    """
    parent = run / layout.CHECKPOINTS
    final = parent / layout.step_name(step)
    if parent.exists():
        storage.remove_stale_folders(parent)
    else:
        storage.make_folder(parent)
    if final.exists():
        try:
            load(final)
        except UserError:
            storage.rename(final, parent / f".broken-{final.name}-{os.getpid()}")
        else:
            storage.sync_folder(parent)  # its writer may have been killed before
    if not final.exists():
        files = {
            MODEL: _tensor_bytes(weights),
            OPTIM: _tensor_bytes(optim_state),
            META: storage.json_bytes({"format": FORMAT, "step": step, **meta}),
            layout.CONFIG: storage.read_bytes(run / layout.CONFIG),
            layout.TOKENIZER: storage.read_bytes(run / layout.TOKENIZER),
        }
        manifest = {name: {"bytes": len(data), "sha256": storage.sha256(data)} for name, data in files.items()}
        files[layout.MANIFEST] = storage.json_bytes({"format": FORMAT, "files": manifest})
        storage.publish_folder(final, files)
    _prune(parent, best)
    return final


def finish_save(run: Path, best: int | None) -> None:
    """Complete a save that was interrupted after it published its checkpoint, before resuming from it."""
    parent = run / layout.CHECKPOINTS
    storage.sync_folder(parent)  # make its name durable
    storage.remove_stale_folders(parent)
    _prune(parent, best)


def _prune(parent: Path, best: int | None) -> None:
    """Record the best step and remove all but the last two and the best."""
    steps = layout.step_folders(parent.parent)
    best_name = layout.step_name(best) if best is not None else None
    best_file = parent / layout.BEST
    if best_name is not None and parent / best_name in steps:
        data = storage.json_bytes({"checkpoint": best_name})
        if not best_file.is_file() or best_file.read_bytes() != data:
            storage.replace(best_file, data)
    storage.remove_folders(parent, [old.name for old in steps[KEEP_LAST:] if old.name != best_name])


def load(path: Path) -> Checkpoint:
    """Read the folder of a checkpoint and verify every byte.

    Args:
        path: a `step-…` folder.

    Raises:
        UserError: a file is missing, changed or invalid.
    """
    for name in (layout.MANIFEST, *STEP_FILES):
        if not (path / name).exists():
            raise UserError(f"{path / name}: missing{NO_OPTIMIZER if name == OPTIM else ''}")
    described = describe(path)
    assert described.manifest is not None
    assert described.meta is not None
    expected = dict(described.meta_model.named_parameters())
    model = _read_tensors(path / MODEL, described.manifest[MODEL], expected)
    state = make_optimizer(expected.items(), described.config.optim).state()
    optim = _read_tensors(path / OPTIM, described.manifest[OPTIM], state)
    return Checkpoint(path, described.config, described.tokenizer, described.manifest, described.meta, model, optim)


def _read_tensors(where: Path, entry: Any, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a file whose tensors must have the expected names, shapes and types."""
    with open_tensors(where, entry, expected) as file:
        tensors = {name: torch.empty(tensor.shape, dtype=torch.float32) for name, tensor in expected.items()}
        file.read_into(tensors)
    return tensors


def newest(run: Path) -> tuple[Checkpoint, list[str]]:
    """The newest valid checkpoint, and the problems of newer ones.

    Raises:
        UserError: there is none.
    """
    problems: list[str] = []
    for path in layout.step_folders(run):
        try:
            return load(path), problems
        except UserError as error:
            problems.append(str(error))
    detail = f" ({'; '.join(problems)})" if problems else ""
    raise UserError(f"resume={run}: no valid checkpoint in this folder{detail}")


def build_model(checkpoint: Checkpoint, device: torch.device) -> GPT:
    """Build the model of a checkpoint on a device."""
    model = empty_model(checkpoint.config.model, checkpoint.tokenizer.vocab_size)
    copy_tensors(checkpoint.model, dict(model.named_parameters()), checkpoint.path / MODEL)
    return model.to(device)


@torch.no_grad()
def copy_tensors(source: Mapping[str, Tensor], target: Mapping[str, Tensor], where: Path) -> None:
    """Copy `source` into `target`.

    Raises:
        UserError: names, shapes or dtypes differ.
    """
    check_names(source, target, where)
    for name, tensor in target.items():
        new = source[name]
        if new.shape != tensor.shape or new.dtype != tensor.dtype:
            raise UserError(
                f"{where}: {name} is {new.dtype} {tuple(new.shape)}, "
                f"and the model has {tensor.dtype} {tuple(tensor.shape)}"
            )
    for name, tensor in target.items():
        tensor.copy_(source[name])


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of a model by name, tied ones under each name."""
    return dict(model.named_parameters(remove_duplicate=False))


def _tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file, shared tensors once. Only one metadata key, since several are written in random order."""
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}
    plain = {name: tensors[name].detach().cpu().contiguous() for name in first.values()}
    ties = {name: other for name, other in names.items() if name != other}  # `lm_head.weight` → `token_embedding_…`
    note = json.dumps({"format": FORMAT, "ties": ties}, sort_keys=True)
    return safetensors.torch.save(plain, metadata={"microgpt": note})
