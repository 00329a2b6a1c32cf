"""Checkpoints: published whole or not at all, verified byte by byte, no pickle.

    ckpt/step-00001000/
        model.safetensors     weights by name, tied ones once
        optim.safetensors     the optimizer's state, by `adamw/PARAMETER/STATE`
        meta.json             step, tokens, best, the tail of the log, hashes, versions
        config.json  tokenizer.json
        MANIFEST.json         size and sha256 of all the others; written last

A step's folder needs nothing outside itself. There is no random state to keep: draws are functions of seed and step.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from microgpt_cli.config import TrainConfig, from_json
from microgpt_cli.data import tokenizers
from microgpt_cli.data.tokenizers import Tokenizer
from microgpt_cli.errors import UserError
from microgpt_cli.model.gpt import GPT
from microgpt_cli.runs import folder as layout
from microgpt_cli.runs import storage

FORMAT = 1
MODEL, OPTIM, META = "model.safetensors", "optim.safetensors", "meta.json"
FILES = (MODEL, OPTIM, META, layout.CONFIG, layout.TOKENIZER)
TENSORS_BYTES = 1 << 40  # largest file of tensors that is read
KEEP_LAST = 2


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its bytes were hashed, and these same bytes were parsed."""

    path: Path
    config: TrainConfig
    tokenizer: Tokenizer
    meta: dict[str, Any]
    model: dict[str, Tensor]
    optim: dict[str, Tensor]

    @property
    def step(self) -> int:
        return int(self.meta["step"])


def save(
    run: Path, step: int, model: nn.Module, optim_state: Mapping[str, Tensor], meta: Mapping[str, Any], best: int | None
) -> Path:
    """Publish a checkpoint of a run, then remove the ones that need not be kept: all but the last two and the best.

    Args:
        run: the run's folder, whose lock the caller holds.
        step: finished optimizer steps.
        model: its weights.
        optim_state: the optimizer's.
        meta: what else the run needs to go on; plain JSON.
        best: the step with the lowest val_loss so far.
    """
    parent = run / layout.CHECKPOINTS
    final = parent / layout.step_name(step)
    if parent.exists():
        storage.sweep(parent)
    else:
        storage.make_folder(parent)
    if final.exists():
        try:
            load(final)
        except UserError:
            storage.rename(final, parent / f".broken-{final.name}-{os.getpid()}")
        else:
            storage.sync_folder(parent)  # whoever made it may have died before doing so
    if not final.exists():
        files = {
            MODEL: _tensor_bytes(dict(model.named_parameters()), _ties(model)),
            OPTIM: _tensor_bytes(optim_state, {}),
            META: storage.json_bytes({"format": FORMAT, "step": step, **meta}),
            layout.CONFIG: storage.read_bytes(run / layout.CONFIG),
            layout.TOKENIZER: storage.read_bytes(run / layout.TOKENIZER),
        }
        manifest = {name: {"bytes": len(data), "sha256": storage.sha256(data)} for name, data in files.items()}
        files[layout.MANIFEST] = storage.json_bytes({"format": FORMAT, "files": manifest})
        storage.publish_folder(final, files)
    _keep(parent, best)
    return final


def take_over(run: Path, best: int | None) -> None:
    """Finish a save that stopped after it had published its checkpoint, which the run now goes on from."""
    parent = run / layout.CHECKPOINTS
    storage.sync_folder(parent)  # its name must be durable before anything relies on it
    storage.sweep(parent)
    _keep(parent, best)


def _keep(parent: Path, best: int | None) -> None:
    """Note which step is the best, and remove all but the last two and that one."""
    steps = layout.step_folders(parent.parent)
    best_name = layout.step_name(best) if best is not None else None
    noted = parent / layout.BEST
    if best_name is not None and parent / best_name in steps:
        data = storage.json_bytes({"checkpoint": best_name})
        if not noted.is_file() or noted.read_bytes() != data:
            storage.replace(noted, data)
    storage.remove_folders(parent, [old.name for old in steps[KEEP_LAST:] if old.name != best_name])


def load(path: Path, weights: bool = True) -> Checkpoint:
    """Read a checkpoint's folder, every byte verified before it is used.

    Args:
        path: a `step-…` folder.
        weights: whether the tensors are wanted too.

    Raises:
        UserError: a file is missing, changed, or not what it should be.
    """
    written = storage.read_bytes(path / layout.MANIFEST)
    manifest = storage.parse_json(written, str(path / layout.MANIFEST))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of format {FORMAT}")
    if written != storage.json_bytes(manifest):
        raise UserError(f"{path / layout.MANIFEST}: damaged: not written as we write it")
    noted = manifest.get("files")
    if not isinstance(noted, dict) or set(noted) != set(FILES):
        raise UserError(f"{path / layout.MANIFEST}: must name {', '.join(FILES)}")
    data: dict[str, bytes] = {}
    for name in FILES:
        if name in (MODEL, OPTIM) and not weights:
            continue
        data[name] = storage.read_bytes(path / name, TENSORS_BYTES)
        if noted[name] != {"bytes": len(data[name]), "sha256": storage.sha256(data[name])}:
            raise UserError(f"{path / name}: damaged: its size or checksum is not the one in {layout.MANIFEST}")
    parsed = {name: storage.parse_json(data[name], str(path / name)) for name in FILES if name.endswith(".json")}
    meta = parsed[META]
    if not isinstance(meta, dict) or meta.get("format") != FORMAT or not isinstance(meta.get("step"), int):
        raise UserError(f"{path / META}: not of format {FORMAT}")
    return Checkpoint(
        path=path,
        config=from_json(TrainConfig, parsed[layout.CONFIG], str(path / layout.CONFIG)),
        tokenizer=tokenizers.from_json(parsed[layout.TOKENIZER], str(path / layout.TOKENIZER)),
        meta=meta,
        model=_parse_tensors(data[MODEL], path / MODEL) if weights else {},
        optim=_parse_tensors(data[OPTIM], path / OPTIM) if weights else {},
    )


def newest(run: Path) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint that is whole, and what was wrong with the newer ones.

    Raises:
        UserError: there is none; a run is never started over silently.
    """
    problems: list[str] = []
    for path in layout.step_folders(run):
        try:
            return load(path), problems
        except UserError as error:
            problems.append(str(error))
    detail = f" ({'; '.join(problems)})" if problems else ""
    raise UserError(f"resume={run}: no whole checkpoint in this folder{detail}")


def build_model(checkpoint: Checkpoint, device: torch.device) -> GPT:
    """The model of a checkpoint, with its weights, on a device."""
    model = GPT(checkpoint.config.model, checkpoint.tokenizer.vocab_size)
    copy_tensors(checkpoint.model, dict(model.named_parameters()), checkpoint.path / MODEL)
    return model.to(device)


@torch.no_grad()
def copy_tensors(source: Mapping[str, Tensor], target: Mapping[str, Tensor], where: Path) -> None:
    """Fill `target` from `source`, which must have the same names, shapes and types.

    Raises:
        UserError: it has not.
    """
    for name in [*target, *source]:
        if name not in source or name not in target:
            raise UserError(f"{where}: {name} is {'missing' if name not in source else 'not part of this model'}")
    for name, tensor in target.items():
        new = source[name]
        if new.shape != tensor.shape or new.dtype != tensor.dtype:
            raise UserError(
                f"{where}: {name} is {new.dtype} {tuple(new.shape)}, "
                f"and the model has {tensor.dtype} {tuple(tensor.shape)}"
            )
    for name, tensor in target.items():
        tensor.copy_(source[name])


def _ties(model: nn.Module) -> dict[str, str]:
    """Names that share another name's tensor: `lm_head.weight` → `token_embedding_table.weight`."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in named if first.setdefault(id(p), name) != name}


def _tensor_bytes(tensors: Mapping[str, Tensor], ties: Mapping[str, str]) -> bytes:
    """A safetensors file. One key of metadata: with several, their order in the file is random."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    note = json.dumps({"format": FORMAT, "ties": dict(ties)}, sort_keys=True)
    return safetensors.torch.save(plain, metadata={"microgpt": note})


def _parse_tensors(data: bytes, where: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise UserError(f"{where}: not a valid safetensors file: {error}") from error
